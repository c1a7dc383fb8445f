"""`compress` against its formula in float64, the derivation that it comes from, and ONNX."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import Tensor

from crate_dsl.compiler.operators import Learned, Mistake, Port, Weight
from crate_dsl.compiler.steps.compress.operator import Compress
from crate_dsl.compiler.steps.norm.operator import LayerNorm, NoNorm, RmsNorm
from crate_dsl.compiler.types import Dim, Symbol, TensorType, floats
from tests.steps.harness import Step, step

#: Rounding of float64 over sums of a few dozen terms.
EXACT = 1e-12
#: Rounding of float32 over sums of a few dozen terms of size 1 to 10.
SINGLE = 3e-5

N, D, K, P = 7, 11, 3, 5
TOKENS = floats(N, D)
KEPT = Port(TensorType("bool", (Dim(N),)))
PER_SAMPLE = Port(floats())
VARIANTS = {
    "published": Compress(subspaces=K, rank=P),
    "one_subspace": Compress(subspaces=1, rank=P),
    "tied": Compress(subspaces=K, rank=P, out="tied"),
    "no_bias": Compress(subspaces=K, rank=P, bias=False, norm=LayerNorm(eps=1e-6)),
    "rms": Compress(subspaces=K, rank=P, norm=RmsNorm()),
    "raw": Compress(subspaces=K, rank=P, norm=NoNorm()),
    "step": Compress(subspaces=K, rank=P, step=0.3, scale=0.7),
    "learned": Compress(subspaces=K, rank=P, step=Learned(0.3, (D,)), scale=Learned(0.7)),
    "handed": Compress(subspaces=K, rank=P, step=PER_SAMPLE, scale=PER_SAMPLE),
    "borrowed": Compress(subspaces=K, rank=P, step=Weight("rate", floats())),
    "causal": Compress(subspaces=K, rank=P, mask="causal"),
    "kept": Compress(subspaces=K, rank=P, mask=KEPT),
    "softmax": Compress(subspaces=K, rank=P, gradient="softmax"),
    "softmax_step": Compress(subspaces=K, rank=P, gradient="softmax", step=0.2, eps=0.7, norm=NoNorm()),
}


def normalised(item: Step, z: Tensor, w: dict[str, Tensor]) -> Tensor:
    form = item.operator.norm
    if isinstance(form, LayerNorm):
        centred = z - z.mean(-1, keepdim=True)
        return (
            centred / (centred.square().mean(-1, keepdim=True) + form.eps).sqrt() * w["norm_weight"]
            + w["norm_bias"]
        )
    if isinstance(form, RmsNorm):
        return z / (z.square().mean(-1, keepdim=True) + form.eps).sqrt() * w["norm_weight"]
    return z


def reference(item: Step, z: Tensor, **given: Tensor) -> Tensor:
    """The formula, subspace by subspace: tokens are columns there and rows here."""
    op, w = item.operator, {name: value.detach().double() for name, value in item.module.named_parameters()}
    x = normalised(item, z.double(), w)

    def number(name: str, published: float) -> Tensor | float:
        value = getattr(op, name)
        if name in given:
            return given[name].double().reshape(-1, 1, 1) if isinstance(value, Port) else given[name].double()
        return w[name] if isinstance(value, Learned) else published if value is None else value

    allowed = torch.ones(len(z), N, N, dtype=torch.bool)
    if op.mask == "causal":
        allowed = allowed.tril()
    if "mask" in given:
        allowed = allowed & given["mask"][:, None, :]
    scale = number("scale", P**-0.5 if op.gradient == "attention" else 1.0)
    heads = []
    for k in range(op.subspaces):
        projected = x @ w["subspaces"][k * P : (k + 1) * P].T
        scores = (scale * (projected @ projected.transpose(1, 2))).masked_fill(~allowed, -torch.inf)
        heads.append(scores.softmax(-1) @ projected)
    joined = torch.cat(heads, -1)
    if op.gradient == "softmax":
        alpha = P / (N * op.eps**2)
        kappa = number("step", 0.5 / alpha)
        return z.double() - kappa * alpha * x + kappa * alpha * (alpha * joined @ w["subspaces"])
    out = joined @ w["subspaces"] if op.tied else joined @ w["out_weight"].T + w.get("out_bias", 0.0)
    return z.double() + number("step", 1.0) * out


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("variant", VARIANTS)
def test_module_and_onnx_are_the_formula(variant: str, batch: int) -> None:
    torch.manual_seed(batch)
    item = step(VARIANTS[variant], TOKENS)
    z = torch.randn(batch, N, D)
    given: dict[str, Tensor] = {}
    if variant == "kept":
        given["mask"] = torch.rand(batch, N) < 0.6
        given["mask"][:, 0] = True
    if variant == "handed":
        given = {"step": torch.rand(batch), "scale": torch.rand(batch)}
    if variant == "borrowed":
        given = {"step": torch.tensor(0.4)}
    wanted = reference(item, z, **given)
    doubled = {name: value.double() if value.is_floating_point() else value for name, value in given.items()}
    assert (deepcopy(item.module).double()(z.double(), **doubled) - wanted).abs().max() < EXACT
    assert (item.module(z, **given) - wanted).abs().max() < SINGLE
    (exported,) = item.onnx(z, **given)
    assert np.abs(exported - wanted.numpy()).max() < SINGLE


def test_no_subspace_is_special() -> None:
    """Permuting subspaces, with the columns of the output map, changes nothing."""
    item = step(VARIANTS["published"], TOKENS)
    z, order = torch.randn(2, N, D), torch.tensor([2, 0, 1])
    before = item.module(z)
    rows = (order[:, None] * P + torch.arange(P)).flatten()
    with torch.no_grad():
        item.module.subspaces.copy_(item.module.subspaces[rows])
        item.module.out_weight.copy_(item.module.out_weight[:, rows])
    assert (item.module(z) - before).abs().max() < SINGLE


def test_tokens_have_no_order() -> None:
    item = step(VARIANTS["published"], TOKENS)
    z, order = torch.randn(2, N, D), torch.randperm(N)
    assert (item.module(z[:, order]) - item.module(z)[:, order]).abs().max() < SINGLE


def test_rotating_tied_bases_changes_nothing() -> None:
    """The rate against a subspace knows the subspace, not its basis (CATALOGUE's T17, DEPICT's `ortho`)."""
    item = step(VARIANTS["tied"], TOKENS)
    z = torch.randn(2, N, D)
    before = item.module(z)
    with torch.no_grad():
        for k in range(K):
            rotation, _ = torch.linalg.qr(torch.randn(P, P))
            rows = slice(k * P, (k + 1) * P)
            item.module.subspaces[rows] = rotation @ item.module.subspaces[rows]
    assert (item.module(z) - before).abs().max() < SINGLE


def test_a_causal_prefix_is_the_prefix() -> None:
    item = step(VARIANTS["causal"], TOKENS)
    z = torch.randn(2, N, D)
    assert (item.module(z[:, :4]) - item.module(z)[:, :4]).abs().max() < SINGLE


def test_one_token_attends_to_itself() -> None:
    item = step(VARIANTS["published"], floats(1, D))
    z = torch.randn(3, 1, D)
    x = normalised(
        item, z.double(), {n: v.detach().double() for n, v in item.module.named_parameters()}
    ).float()
    wanted = z + (x @ item.module.subspaces.T) @ item.module.out_weight.T + item.module.out_bias
    assert (item.module(z) - wanted).abs().max() < SINGLE


def test_weights_and_operations_are_counted() -> None:
    typing = VARIANTS["published"].infer(TOKENS)
    counts = {name: slot.shape for name, slot in typing.slots.items()}
    assert counts == {
        "norm_weight": (D,), "norm_bias": (D,), "subspaces": (K * P, D), "out_weight": (D, K * P), "out_bias": (D,)
    }  # fmt: skip
    assert typing.flops == 5 * N * D + 2 * (2 * N * D * K * P) + 2 * (2 * N * N * K * P)
    assert set(VARIANTS["tied"].infer(TOKENS).slots) == {"norm_weight", "norm_bias", "subspaces"}


def test_lengths_may_be_symbolic() -> None:
    item = step(VARIANTS["causal"], floats(Dim.symbolic(Symbol("n", 9)), D))
    for n in (1, 4, 9):
        z = torch.randn(2, n, D)
        (exported,) = item.onnx(z)
        assert np.abs(exported - item.module(z).detach().numpy()).max() < SINGLE


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ({"gradient": "softmax", "out": "free"}, "E0305"),
        ({"gradient": "softmax", "mask": "causal"}, "E0305"),
        ({"out": "tied", "bias": True}, "E0305"),
        ({"constraint": "orthonormal"}, "E0340"),
        ({"mask": Port(TensorType("bool", (Dim(N + 1),)))}, "E0406"),
        ({"mask": Port(floats(N))}, "E0406"),
    ],
)
def test_arguments_that_do_not_go_together(arguments: dict[str, object], code: str) -> None:
    with pytest.raises(Mistake) as caught:
        Compress(subspaces=K, rank=P, **arguments).infer(TOKENS)
    assert caught.value.code == code


def test_images_are_not_tokens() -> None:
    with pytest.raises(Mistake) as caught:
        Compress(subspaces=K, rank=P).infer(floats(3, 8, 8))
    assert caught.value.code == "E0401"
