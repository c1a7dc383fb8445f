"""Rotary positions: the rotation against its formula, and `compress` and `attend` with it; both know only distances."""

from __future__ import annotations

from copy import deepcopy
from math import cos, sin
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import crate_dsl
from crate_dsl.compiler.lower import lower
from crate_dsl.compiler.operators import Learned, Mistake, Operator, Port
from crate_dsl.compiler.steps.attend.operator import Attend
from crate_dsl.compiler.steps.compress.operator import Compress, Decompress
from crate_dsl.compiler.steps.norm.operator import NoNorm
from crate_dsl.compiler.steps.rotary.operator import Rotary, Rotate
from crate_dsl.compiler.types import Dim, Symbol, TensorType, floats
from tests.steps.harness import step

#: Rounding of float64 over sums of a few dozen terms.
EXACT = 1e-12
#: Rounding of float32 over sums of a few dozen terms of size 1, and of angles up to 30.
SINGLE = 3e-5

N, D, K, P = 7, 12, 3, 4
TOKENS = floats(N, D)
ROTARY = Rotary(base=50)
KEPT = Port(TensorType("bool", (Dim(N),)))


def turned(w: Tensor, base: float, past: int = 0) -> Tensor:
    """(N, p), each row rotated by its place, plane by plane."""
    half, out = w.shape[1] // 2, torch.empty_like(w)
    for i, row in enumerate(w):
        for j in range(half):
            angle = (past + i) * base ** (-2 * j / w.shape[1])
            out[i, j] = cos(angle) * row[j] - sin(angle) * row[half + j]
            out[i, half + j] = sin(angle) * row[j] + cos(angle) * row[half + j]
    return out


def turned_heads(z: Tensor, heads: int, base: float, past: int = 0) -> Tensor:
    return torch.cat([turned(w, base, past) for w in z.chunk(heads, dim=-1)], dim=-1)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("past", [0, 23])
def test_the_rotation_is_its_formula(batch: int, past: int) -> None:
    given = Port(TensorType("index", (), classes=100)) if past else None
    item = step(Rotate(heads=K, base=50, past=given), TOKENS)
    z = torch.randn(batch, N, D, dtype=torch.float64)
    # Each sample has a past of its own.
    pasts = past + torch.arange(batch) * (past > 0)
    named = {"past": pasts} if past else {}
    wanted = torch.stack([turned_heads(z_nd, K, 50, int(p)) for z_nd, p in zip(z, pasts, strict=True)])
    assert (item.module(z, **named) - wanted).abs().max() < EXACT
    (exported,) = item.onnx(z.float(), **named)
    assert np.abs(exported - wanted.numpy()).max() < SINGLE


def test_a_rotation_in_chunks_is_the_rotation() -> None:
    whole, chunk = Rotate(heads=K), Rotate(heads=K, past=Port(TensorType("index", (), classes=100)))
    z = torch.randn(2, N, D, dtype=torch.float64)
    wanted = step(whole, TOKENS).module(z)
    module = step(chunk, TOKENS).module
    parts = [module(z[:, a:b], past=torch.tensor([a, a])) for a, b in ((0, 1), (1, 5), (5, N))]
    assert (torch.cat(parts, 1) - wanted).abs().max() < EXACT


def reference(operator: Operator, w: dict[str, Tensor], z: Tensor, mask: Tensor | None) -> Tensor:
    """One sample, (N, d): what is compared is turned, what is averaged is not."""
    allowed = torch.ones(len(z), len(z), dtype=torch.bool)
    if operator.mask == "causal":
        allowed = allowed.tril()
    if mask is not None:
        allowed = allowed & mask
    heads = []
    if isinstance(operator, Attend):
        q, k, v = (z @ w["qkv_weight"].T + w["qkv_bias"]).chunk(3, -1)
        count, scale = operator.heads, (D // operator.heads) ** -0.5
    else:
        x = z
        if operator.norm.word != "none":
            x = (z - z.mean(-1, keepdim=True)) / (z.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
            x = x * w["norm_weight"] + w["norm_bias"]
        q = k = v = x @ w["subspaces"].T
        count, scale = K, w.get("scale", P**-0.5)
    base = operator.positions.base
    for qh, kh, vh in zip(q.chunk(count, -1), k.chunk(count, -1), v.chunk(count, -1), strict=True):
        scores = turned(qh, base) @ turned(kh, base).T * scale
        heads.append(scores.masked_fill(~allowed, -torch.inf).softmax(-1) @ vh)
    joined = torch.cat(heads, -1)
    if isinstance(operator, Attend):
        return joined @ w["out_weight"].T + w["out_bias"]
    out = joined @ w["subspaces"] if operator.tied else joined @ w["out_weight"].T + w["out_bias"]
    return z - out if isinstance(operator, Decompress) else z + out


def compress(**arguments: object) -> Compress:
    return Compress(subspaces=K, rank=P, positions=ROTARY, **arguments)


VARIANTS: dict[str, Operator] = {
    "plain": compress(),
    "tied": compress(out="tied", norm=NoNorm()),
    "causal": compress(mask="causal"),
    "kept": compress(mask=KEPT),
    "scale": compress(scale=Learned(0.7)),
    "undone": Decompress(subspaces=K, rank=P, positions=ROTARY),
    "attend": Attend(heads=K, positions=ROTARY),
    "attend_causal": Attend(heads=K, positions=Rotary(), mask="causal"),
    "attend_kept": Attend(heads=2, positions=ROTARY, mask=KEPT),
}


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("variant", VARIANTS)
def test_steps_that_attend_compare_what_is_rotated(variant: str, batch: int) -> None:
    torch.manual_seed(batch)
    item = step(VARIANTS[variant], TOKENS)
    z = torch.randn(batch, N, D)
    given = {"mask": torch.rand(batch, N) < 0.6} if variant.endswith("kept") else {}
    for mask in given.values():
        mask[:, 0] = True
    w = {name: value.detach().double() for name, value in item.module.named_parameters()}
    masks = given.get("mask", [None] * batch)
    wanted = torch.stack(
        [reference(item.operator, w, zn.double(), m) for zn, m in zip(z, masks, strict=True)]
    )
    double = deepcopy(item.module).double()
    assert (double(z.double(), **given) - wanted).abs().max() < EXACT
    assert (double.explain(z.double(), **given)["out"] - wanted).abs().max() < EXACT
    assert (item.module(z, **given) - wanted).abs().max() < SINGLE
    (exported,) = item.onnx(z, **given)
    assert np.abs(exported - wanted.numpy()).max() < SINGLE


@pytest.mark.parametrize("variant", ["tied", "causal", "attend_causal"])
def test_only_distances_count(variant: str) -> None:
    """Behind tokens that nobody attends to, the others are what they are without them."""
    operator = VARIANTS[variant].model_copy(update={"mask": Port(TensorType("bool", (Dim(N + 3),)))})
    item = step(operator, floats(N + 3, D))
    item.module.double()
    alone = step(operator.model_copy(update={"mask": "none"}), TOKENS)
    alone.module.load_state_dict(item.module.state_dict())
    alone.module.double()
    z = torch.randn(2, N, D, dtype=torch.float64)
    padded = torch.cat([torch.randn(2, 3, D, dtype=torch.float64), z], 1)
    kept = torch.tensor([[False] * 3 + [True] * N] * 2)
    assert (item.module(padded, mask=kept)[:, 3:] - alone.module(z)).abs().max() < EXACT


def test_places_count() -> None:
    """Without it tokens have no order; with it they have."""
    z, order = torch.randn(1, N, D), torch.tensor([1, 0, *range(2, N)])
    for positions, moved in (("none", False), (ROTARY, True)):
        module = step(Compress(subspaces=K, rank=P, positions=positions), TOKENS).module
        difference = (module(z[:, order]) - module(z)[:, order]).abs().max()
        assert (difference > 1e-2) is moved or (difference < SINGLE) is not moved


def test_lengths_may_be_symbolic() -> None:
    tokens = floats(Dim.symbolic(Symbol("n", 9)), D)
    for operator in (compress(mask="causal"), Attend(heads=K, positions=ROTARY)):
        item = step(operator, tokens)
        for n in (1, 4, 9):
            z = torch.randn(2, n, D)
            (exported,) = item.onnx(z)
            assert np.abs(exported - item.module(z).detach().numpy()).max() < SINGLE


@pytest.mark.parametrize(
    ("operator", "code", "at"),
    [
        (Compress(subspaces=2, rank=5, positions=ROTARY), "E0484", "rank"),
        (Attend(heads=4, positions=ROTARY), "E0484", "heads"),
        (Compress(subspaces=K, rank=P, positions=ROTARY, gradient="exact"), "E0305", "positions"),
        (Compress(subspaces=K, rank=P, positions=ROTARY, gradient="statistics"), "E0305", "positions"),
    ],
)
def test_mistakes(operator: Operator, code: str, at: str) -> None:
    with pytest.raises(Mistake) as caught:
        operator.infer(TOKENS)
    assert (caught.value.code, caught.value.at) == (code, at)


TEXT = """
model rotating(dim = 12, vocab = 11) {
    input ids : index(vocab)[n <= 20]

    logits = ids -> embed(dim)
        -> repeat(2) {
               compress(3, rank = dim / 3, mask = causal, positions = rotary(base = 100))
               residual { norm -> attend(2, mask = causal, positions = rotary) }
           }
        -> norm -> linear(vocab)

    output logits
    objective next_token(logits, ids)
}
"""


def test_in_a_network_lowered_and_exported(tmp_path: Path) -> None:
    path = tmp_path / "rotating.crate"
    path.write_text(TEXT)
    net = crate_dsl.build(crate_dsl.load(str(path)), seed=1).eval()
    crate_dsl.export(net.graph, net, tmp_path / "net.onnx")
    session = crate_dsl.open_session(tmp_path / "net.onnx", provider="cpu")
    lowered = lower(net)
    for n in (1, 6, 20):
        ids = torch.randint(0, 11, (3, n))
        with torch.no_grad():
            wanted = net(ids)
            assert (lowered(ids) - wanted).abs().max() < SINGLE
        assert np.abs(session(ids=ids.numpy())["logits"] - wanted.numpy()).max() < SINGLE
