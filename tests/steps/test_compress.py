"""`compress` and `decompress` against their formulas in float64 and against ONNX; what arguments go together."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import torch

from crate_dsl.compiler.operators import (
    Mistake,
    Port,
)
from crate_dsl.compiler.steps.compress.operator import Compress
from crate_dsl.compiler.types import Dim, Symbol, TensorType, floats
from tests.steps.compress_formulas import (
    EXACT,
    SINGLE,
    TOKENS,
    VARIANTS,
    D,
    K,
    N,
    P,
    arguments,
    normalised,
    reference,
)
from tests.steps.harness import step


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("variant", VARIANTS)
def test_module_and_onnx_are_the_formula(variant: str, batch: int) -> None:
    torch.manual_seed(batch)
    item = step(VARIANTS[variant], TOKENS)
    z, given = torch.randn(batch, N, D), arguments(item, batch)
    wanted = reference(item, z, **given)
    doubled = {name: value.double() if value.is_floating_point() else value for name, value in given.items()}
    double = deepcopy(item.module).double()
    assert (double(z.double(), **doubled) - wanted).abs().max() < EXACT
    assert (item.module(z, **given) - wanted).abs().max() < SINGLE
    (exported,) = item.onnx(z, **given)
    assert np.abs(exported - wanted.numpy()).max() < SINGLE
    taps = double.explain(z.double(), **doubled)
    assert set(taps) == {*item.operator.taps, "out"}
    assert (taps["out"] - wanted).abs().max() < EXACT


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
