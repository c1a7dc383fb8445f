"""`cross_compress` and `cross_attend` against their formulas in float64 and against ONNX, and beside `compress`."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import crate_dsl
from crate_dsl.compiler.lower import lower
from crate_dsl.compiler.operators import Learned, Mistake, NoInverse, Operator, Port, TiedInverse, Weight
from crate_dsl.compiler.steps.attend.operator import Attend
from crate_dsl.compiler.steps.compress.operator import Compress
from crate_dsl.compiler.steps.cross.operator import CrossAttend, CrossCompress
from crate_dsl.compiler.steps.norm.operator import NoNorm, RmsNorm
from crate_dsl.compiler.types import Dim, Symbol, TensorType, floats
from tests.steps.harness import Step, borrowed, step

#: Rounding of float64 over sums of a few dozen terms.
EXACT = 1e-12
#: Rounding of float32 over sums of a few dozen terms of size 1 to 10.
SINGLE = 3e-5

N, M, D, K, P, HEADS = 5, 7, 12, 4, 2, 3
QUERIES = floats(N, D)
KEYS, KEPT = Port(floats(M, D)), Port(TensorType("bool", (Dim(M),)))
PER_SAMPLE = Port(floats())


def compress(**arguments: object) -> CrossCompress:
    return CrossCompress(subspaces=K, rank=P, keys=KEYS, **arguments)


VARIANTS: dict[str, Operator] = {
    "plain": compress(),
    "tied": compress(out="tied"),
    "published": compress(out="tied", step=Learned(1.0), norm_queries=False),
    "kept": compress(mask=KEPT),
    "no_bias": compress(bias=False, norm=RmsNorm()),
    "raw": compress(norm=NoNorm(), step=0.3, scale=0.7),
    "learned": compress(step=Learned(0.3, (D,)), scale=Learned(0.7)),
    "handed": compress(step=PER_SAMPLE, scale=PER_SAMPLE, dropout=0.5),
    "borrowed": compress(bases=Weight("axes", floats(K * P, D)), step=Weight("rate", floats())),
    "attend": CrossAttend(heads=HEADS, keys=KEYS),
    "attend_kept": CrossAttend(heads=HEADS, keys=KEYS, mask=KEPT),
    "attend_no_bias": CrossAttend(heads=1, keys=KEYS, bias=False, dropout=0.5),
}


def given(item: Step, batch: int) -> dict[str, Tensor]:
    """The keys, and all else that is handed over."""
    found: dict[str, Tensor] = {"keys": torch.randn(batch, M, D)}
    for name, value in vars(item.operator).items():
        if isinstance(value, Port) and name != "keys":
            if value.type.kind == "bool":
                found[name] = torch.rand(batch, M) < 0.6
                found[name][:, 0] = True
            else:
                found[name] = 0.5 + torch.rand(batch)
    for name, weight in borrowed(item).items():
        found[name] = 0.5 + 0.3 * torch.randn([dim.bound for dim in weight.type.shape])
    return found


def reference(item: Step, q: Tensor, g: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Head by head, in float64; also the attention of each, whose rows are those that ask."""
    op = item.operator
    w = {name: value.detach().double() for name, value in item.module.named_parameters()}
    w |= {name: value.double() for name, value in g.items() if value.is_floating_point()}
    q, z = q.double(), w["keys"]
    mask = g.get("mask", torch.ones(len(q), M, dtype=torch.bool))

    def factor(name: str, otherwise: float) -> Tensor | float:
        value = getattr(op, name)
        if value is None or isinstance(value, float):
            return otherwise if value is None else value
        return w[name].reshape(-1, 1, 1) if isinstance(value, Port) else w[name]

    def normed(x: Tensor) -> Tensor:
        if op.norm.word == "none":
            return x
        centred = x - x.mean(-1, keepdim=True) if op.norm.word == "layer" else x
        scaled = centred / (centred.square().mean(-1, keepdim=True) + op.norm.eps).sqrt() * w["norm_weight"]
        return scaled + w.get("norm_bias", 0.0)

    def head(asking: Tensor, keys: Tensor, values: Tensor, scale: Tensor | float) -> Tensor:
        scores = (asking @ keys.mT * scale).masked_fill(~mask[:, None, :], -torch.inf)
        attention.append(scores.softmax(-1))
        return attention[-1] @ values

    attention: list[Tensor] = []
    heads = []
    if isinstance(op, CrossAttend):
        asked = q @ w["query_weight"].T + w.get("query_bias", 0.0)
        both = z @ w["key_value_weight"].T + w.get("key_value_bias", 0.0)
        p = D // op.heads
        for h in range(op.heads):
            these = slice(h * p, (h + 1) * p)
            heads.append(
                head(asked[..., these], both[..., :D][..., these], both[..., D:][..., these], p**-0.5)
            )
        return torch.cat(heads, -1) @ w["out_weight"].T + w.get("out_bias", 0.0), attention
    x, y = normed(z), normed(q) if op.norm_queries else q
    for k in range(K):
        u = w["subspaces"][k * P : (k + 1) * P]
        heads.append(head(y @ u.T, x @ u.T, x @ u.T, factor("scale", P**-0.5)))
    joined = torch.cat(heads, -1)
    out = joined @ w["subspaces"] if op.out == "tied" else joined @ w["out_weight"].T + w.get("out_bias", 0.0)
    return q + factor("step", 1.0) * out, attention


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("variant", VARIANTS)
def test_module_and_onnx_are_the_formula(variant: str, batch: int) -> None:
    torch.manual_seed(batch)
    item = step(VARIANTS[variant], QUERIES)
    q, g = torch.randn(batch, N, D), given(item, batch)
    wanted, attention = reference(item, q, g)
    doubled = {name: value.double() if value.is_floating_point() else value for name, value in g.items()}
    double = deepcopy(item.module).double()
    assert (double(q.double(), **doubled) - wanted).abs().max() < EXACT
    assert (item.module(q, **g) - wanted).abs().max() < SINGLE
    (exported,) = item.onnx(q, **g)
    assert np.abs(exported - wanted.numpy()).max() < SINGLE
    taps = double.explain(q.double(), **doubled)
    assert set(taps) == {*item.operator.taps, "out"}
    assert (taps["out"] - wanted).abs().max() < EXACT
    assert (taps["attention"] - torch.stack(attention, 1)).abs().max() < EXACT
    if "mask" in g:
        assert taps["attention"].mT[~g["mask"][:, None].expand(-1, len(attention), -1)].abs().max() == 0


def test_tokens_that_ask_themselves_are_compressed() -> None:
    """With its own tokens for keys it is `compress`, free and tied."""
    z = torch.randn(2, N, D)
    for out in ("free", "tied"):
        cross = step(CrossCompress(subspaces=K, rank=P, keys=Port(QUERIES), out=out), QUERIES)
        alone = step(Compress(subspaces=K, rank=P, out=out), QUERIES)
        alone.module.load_state_dict(cross.module.state_dict())
        assert (cross.module(z, keys=z) - alone.module(z)).abs().max() < SINGLE


def test_tokens_that_ask_themselves_attend() -> None:
    z = torch.randn(2, N, D)
    cross = step(CrossAttend(heads=HEADS, keys=Port(QUERIES)), QUERIES).module
    alone = step(Attend(heads=HEADS), QUERIES).module
    with torch.no_grad():
        for kind in ("weight", "bias"):
            both = [getattr(cross, f"query_{kind}"), getattr(cross, f"key_value_{kind}")]
            getattr(alone, f"qkv_{kind}").copy_(torch.cat(both))
            getattr(alone, f"out_{kind}").copy_(getattr(cross, f"out_{kind}"))
    assert (cross(z, keys=z) - alone(z)).abs().max() < SINGLE


def test_rotating_tied_bases_changes_nothing() -> None:
    """DEPICT's `ortho`: the rate against a subspace knows the subspace, not its basis."""
    item = step(VARIANTS["tied"], QUERIES)
    q, keys = torch.randn(2, N, D), torch.randn(2, M, D)
    before = item.module(q, keys=keys)
    with torch.no_grad():
        for k in range(K):
            rotation, _ = torch.linalg.qr(torch.randn(P, P))
            rows = slice(k * P, (k + 1) * P)
            item.module.subspaces[rows] = rotation @ item.module.subspaces[rows]
    assert (item.module(q, keys=keys) - before).abs().max() < SINGLE


def test_keys_have_no_order() -> None:
    item = step(VARIANTS["plain"], QUERIES)
    q, keys, order = torch.randn(2, N, D), torch.randn(2, M, D), torch.randperm(M)
    assert (item.module(q, keys=keys[:, order]) - item.module(q, keys=keys)).abs().max() < SINGLE


def test_lengths_may_be_symbolic() -> None:
    n, m = (Dim.symbolic(Symbol(name, 9)) for name in "nm")
    for operator in (compress(), CrossAttend(heads=HEADS, keys=KEYS)):
        operator = operator.model_copy(update={"keys": Port(floats(m, D))})
        item = step(operator, floats(n, D))
        for asking, answering in ((1, 4), (9, 2), (3, 3)):
            q, keys = torch.randn(2, asking, D), torch.randn(2, answering, D)
            (exported,) = item.onnx(q, keys=keys)
            assert np.abs(exported - item.module(q, keys=keys).detach().numpy()).max() < SINGLE


def test_weights_and_operations_are_counted() -> None:
    typing = VARIANTS["plain"].infer(QUERIES)
    assert {name: slot.shape for name, slot in typing.slots.items()} == {
        "norm_weight": (D,), "norm_bias": (D,), "subspaces": (K * P, D), "out_weight": (D, K * P), "out_bias": (D,)
    }  # fmt: skip
    inner = K * P
    assert typing.flops == 5 * (N + M) * D + 2 * (2 * N + M) * D * inner + 2 * 2 * N * M * inner
    attend = VARIANTS["attend"].infer(QUERIES)
    plain = Attend(heads=HEADS).infer(QUERIES)
    assert sum(np.prod(s.shape) for s in attend.slots.values()) == sum(
        np.prod(s.shape) for s in plain.slots.values()
    )
    assert attend.flops == 2 * (2 * N + 2 * M) * D * D + 2 * 2 * N * M * D


@pytest.mark.parametrize(
    ("operator", "code", "at"),
    [
        (CrossCompress(subspaces=K, rank=P, keys=Port(floats(M, D + 1))), "E0480", "keys"),
        (CrossAttend(heads=HEADS, keys=Port(floats(D))), "E0480", "keys"),
        (CrossAttend(heads=HEADS, keys=KEYS, mask=Port(TensorType("bool", (Dim(N),)))), "E0481", "mask"),
        (compress(mask=Port(floats(M))), "E0481", "mask"),
        (compress(out="tied", bias=True), "E0305", "bias"),
        (compress(norm=NoNorm(), norm_queries=False), "E0305", "norm_queries"),
        (CrossAttend(heads=5, keys=KEYS), "E0312", "heads"),
        (compress(bases=Weight("axes", floats(3, D))), "E0343", "bases"),
    ],
)
def test_mistakes(operator: Operator, code: str, at: str) -> None:
    with pytest.raises(Mistake) as caught:
        operator.infer(QUERIES)
    assert (caught.value.code, caught.value.at) == (code, at)


def test_nobody_hands_the_keys_to_an_inverse() -> None:
    assert isinstance(VARIANTS["plain"].inverse(TiedInverse(), QUERIES), NoInverse)


TEXT = """
model depict(dim = 12, classes = 3) {
    input image : float[2, 8, 8]
    input kept  : bool[16]
    learn names : float[classes, dim] = normal(1)

    tokens  = image -> patchify(2) -> linear(dim) -> append(names)
    asking  = tokens -> keep(names)
    answers = tokens -> keep(patches)
    found   = asking -> cross_compress(2, rank = 6, keys = answers, mask = kept, step = learn(1), norm_queries = false)
                     -> cross_attend(3, keys = answers) -> cross_compress(3, rank = 4, keys = asking, out = tied)
                     -> append(answers) -> norm -> linear(4)

    output found
}
"""


def test_in_a_network_lowered_and_exported(tmp_path: Path) -> None:
    """The class embeddings of a decoder ask the patches; exact in torch, as parts, and in the file."""
    path = tmp_path / "depict.crate"
    path.write_text(TEXT)
    net = crate_dsl.build(crate_dsl.load(str(path)), seed=1).eval()
    image, kept = torch.randn(5, 2, 8, 8), torch.rand(5, 16) < 0.7
    kept[:, 3] = True
    with torch.no_grad():
        wanted = net(image, kept)
        assert (lower(net)(image, kept) - wanted).abs().max() < SINGLE
    assert wanted.shape == (5, 19, 4)
    assert crate_dsl.export(net.graph, net, tmp_path / "net.onnx").passed
    session = crate_dsl.open_session(tmp_path / "net.onnx", provider="cpu")
    found = session(image=image.numpy(), kept=kept.numpy())["found"]
    assert np.abs(found - wanted.numpy()).max() < SINGLE
