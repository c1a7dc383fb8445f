"""Representatives: cells of a grid, what takes part in them, counts, laws.

That both faces are the formula is held by `test_compress`.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

import crate_dsl
from crate_dsl.compiler.operators import (
    CertifiedInverse,
    Mistake,
    NoInverse,
    Normal,
    Port,
    Weight,
)
from crate_dsl.compiler.steps.compress.operator import Compress, Relative
from crate_dsl.compiler.steps.compress.pooling import Pool, span
from crate_dsl.compiler.steps.norm.operator import NoNorm
from crate_dsl.compiler.types import Dim, Grid, Layout, Segment, Symbol, TensorType, floats
from crate_dsl.language.source import Source
from crate_dsl.workspace import Target, load_source
from tests.steps.compress_formulas import EXACT, POOLED, SINGLE, TOKENS, D, K, N, P
from tests.steps.harness import Step, step

#: Float32 in two orders of summation over some hundred terms.
LARGE = 1e-4


def patches(rows: int, columns: int, before: int = 0, after: int = 0, width: int = D) -> TensorType:
    """Tokens of a picture, with others before and behind it."""
    grid = Segment("patches", Dim(rows * columns), grid=Grid(rows, columns, patch=4, channels=3))
    segments = [Segment("before", Dim(before)), grid, Segment("after", Dim(after))]
    used = tuple(segment for segment in segments if segment.length.static)
    return floats(before + rows * columns + after, width, layout=Layout(used))


def pooled(item: Step, z: torch.Tensor) -> torch.Tensor:
    """The representatives, their subspaces side by side: (B, M, K p)."""
    return item.module.explain(z)["representatives"].transpose(1, 2).flatten(2)


@pytest.mark.parametrize(("rows", "columns"), [(14, 14), (16, 16), (7, 9), (5, 3), (8, 20)])
@pytest.mark.parametrize(("before", "after"), [(0, 0), (1, 0), (2, 3)])
def test_cells_cover_the_grid_and_nothing_else(rows: int, columns: int, before: int, after: int) -> None:
    """At published sizes, at sizes that do not divide, at grids smaller than the cells; wherever the grid stands."""
    torch.manual_seed(rows)
    tokens = patches(rows, columns, before, after)
    item = step(Compress(subspaces=K, rank=P, gradient="representatives", norm=NoNorm()), tokens)
    z = torch.randn(2, before + rows * columns + after, D)
    grid = z[:, before : before + rows * columns].reshape(2, rows, columns, D)
    means = [
        grid[:, rs.start : rs.stop, cs.start : cs.stop].mean((1, 2))
        for rs in (span(i, 8, rows) for i in range(8))
        for cs in (span(j, 8, columns) for j in range(8))
    ]
    wanted = torch.stack(means, 1) @ item.module.subspaces.T
    assert (pooled(item, z) - wanted).abs().max() < SINGLE
    (exported,) = item.onnx(z)
    found = item.module(z).detach().numpy()
    assert np.abs(exported - found).max() < LARGE * np.abs(found).max()


def test_the_last_patch_is_not_lost_and_the_class_token_is_no_patch() -> None:
    """What the published code does otherwise, since its class token stands first."""
    item = step(Compress(subspaces=K, rank=P, gradient="representatives"), patches(14, 14, before=1))
    z = torch.randn(1, 197, D)
    moved = z.clone()
    moved[:, 0] += 1
    assert torch.equal(pooled(item, moved), pooled(item, z))
    moved = z.clone()
    moved[:, -1] += torch.randn(D)
    assert (pooled(item, moved) - pooled(item, z)).abs().amax(-1)[0].nonzero().flatten().tolist() == [63]


def test_tokens_beside_the_grid_are_attended_to_and_changed() -> None:
    item = step(Compress(**POOLED), TOKENS)
    taps = item.module.explain(torch.randn(2, N, D))
    assert taps["assignment"].shape == (2, K, 3, N)
    assert (taps["assignment"].sum(-1) - 1).abs().max() < SINGLE
    assert (taps["assignment"] > 0).all()


def test_tokens_that_represent_themselves_have_no_order_and_need_no_grid() -> None:
    item = step(Compress(**(POOLED | {"representatives": "tokens"})), floats(N, D))
    item.module.double()
    z, order = torch.randn(2, N, D, dtype=torch.double), torch.randperm(N)
    assert (item.module(z[:, order]) - item.module(z)[:, order]).abs().max() < EXACT


def test_as_many_cells_as_patches_are_the_tokens_themselves() -> None:
    tokens = patches(2, 3)
    few = step(Compress(**(POOLED | {"representatives": Pool(rows=2, columns=3)})), tokens)
    all_ = step(Compress(**(POOLED | {"representatives": "tokens"})), tokens)
    all_.module.load_state_dict(few.module.state_dict())
    z = torch.randn(2, 6, D, dtype=torch.double)
    assert (few.module.double()(z) - all_.module.double()(z)).abs().max() < EXACT


def test_weights_and_operations_are_counted() -> None:
    slots = Compress(**POOLED).infer(TOKENS).slots
    assert {name: slot.shape for name, slot in slots.items()} == {
        "norm_weight": (D,), "norm_bias": (D,), "subspaces": (K * P, D), "representatives_step": (K,),
        "tokens_step": (K,), "out_weight": (D, K * P), "out_bias": (D,),
    }  # fmt: skip
    assert slots["representatives_step"].initial == slots["tokens_step"].initial == Normal(std=1.0)
    inner = K * P
    rest = 5 * N * D + 2 * (2 * N * D * inner)
    assert Compress(**POOLED).infer(TOKENS).flops == rest + N * inner + 6 * N * 3 * inner + 4 * 9 * inner
    itself = Compress(**(POOLED | {"representatives": "tokens"}))
    assert itself.infer(TOKENS).flops == rest + 6 * N * N * inner + 4 * N * N * inner


@pytest.mark.parametrize(
    ("dim", "depth", "heads", "published"),
    [
        (192, 12, 3, 1_789_192),
        (384, 12, 6, 6_667_048),
        (768, 12, 12, 25_691_752),
        (1024, 24, 16, 83_051_368),
    ],
)
def test_the_published_classifiers_have_so_many_parameters(
    dim: int, depth: int, heads: int, published: int
) -> None:
    """Blocks as the steps count them; the stem of four convolutions, positions and head by their sizes."""
    tokens = patches(14, 14, before=1, width=dim)
    block = Compress(subspaces=heads, rank=dim // heads, gradient="representatives").infer(tokens).slots
    weights = sum(torch.Size(slot.shape).numel() for slot in block.values())
    ista = dim * dim + 2 * dim
    widths = [3, dim // 8, dim // 4, dim // 2, dim]
    stem = sum(9 * a * b + 2 * b for a, b in pairwise(widths))
    beside = 197 * dim + dim + 2 * dim + 1000 * dim + 1000
    assert stem + depth * (weights + ista) + beside == published


NETWORK = """model example {
    input image : float[1, 12, 12]
    learn class_token : float[8]
    y = image -> patchify(4) -> linear(8) -> prepend(class_token)
        -> repeat(2) { compress(2, 4, gradient = representatives, representatives = pool(2, 2)) sparsify } -> norm
    output y
}"""


def test_a_network_is_lowered_and_built() -> None:
    graph = load_source(Source("example.crate", NETWORK), Target("example.crate"))
    net = crate_dsl.build(graph, seed=1)
    image = torch.randn(3, 1, 12, 12)
    assert (crate_dsl.lower(net)(image) - net(image)).abs().max() < SINGLE


def test_gradients_are_those_of_finite_differences() -> None:
    item = step(Compress(**POOLED), TOKENS)
    z = torch.randn(1, N, D, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(item.module.double(), (z,))


def test_nothing_certifies_it() -> None:
    operator = Compress(**POOLED, norm=NoNorm())
    for found in (operator.certificate(TOKENS), operator.inverse(CertifiedInverse(), TOKENS)):
        assert isinstance(found, NoInverse) and "attention" in found.reason


KEPT = Port(TensorType("bool", (Dim(N),)))
TWO = floats(12, D, layout=Layout((patches(2, 3).layout.segments[0],) * 2))  # type: ignore[union-attr]
LATE = floats(
    Dim.symbolic(Symbol("n", 9)) + 6,
    D,
    layout=Layout(
        (Segment("words", Dim.symbolic(Symbol("n", 9))), patches(2, 3).layout.segments[0])  # type: ignore[union-attr]
    ),
)


@pytest.mark.parametrize(
    ("arguments", "tokens", "code", "at"),
    [
        ({}, floats(N, D), "E0350", "representatives"),
        ({"representatives": Pool(rows=2, columns=2)}, floats(N, D), "E0350", "representatives"),
        ({}, TWO, "E0350", "representatives"),
        ({}, LATE, "E0350", "representatives"),
        ({"mask": "causal"}, TOKENS, "E0305", "mask"),
        ({"mask": KEPT}, TOKENS, "E0305", "mask"),
        ({"scale": Weight("scale", floats())}, TOKENS, "E0305", "scale"),
        ({"eps": 0.7}, TOKENS, "E0305", "eps"),
        ({"step": Relative()}, TOKENS, "E0305", "step"),
        ({"length": 9}, TOKENS, "E0305", "length"),
    ],
)
def test_mistakes(arguments: dict[str, Any], tokens: TensorType, code: str, at: str) -> None:
    with pytest.raises(Mistake) as caught:
        Compress(subspaces=K, rank=P, gradient="representatives", **arguments).infer(tokens)
    assert (caught.value.code, caught.value.at) == (code, at)


def test_representatives_belong_to_their_gradient() -> None:
    with pytest.raises(Mistake) as caught:
        Compress(subspaces=K, rank=P, representatives=Pool(rows=2, columns=2)).infer(TOKENS)
    assert (caught.value.code, caught.value.at) == ("E0305", "representatives")
