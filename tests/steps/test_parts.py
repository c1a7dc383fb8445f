"""Parts of steps against their formulas in float64 and against ONNX; on tokens with a batch axis and as rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from crate_dsl.compiler.operators import Operator, Port
from crate_dsl.compiler.steps.norm.operator import LayerNorm, RmsNorm
from crate_dsl.compiler.steps.parts.operator import (
    Affine,
    Attention,
    Flatten,
    Join,
    Leak,
    Offset,
    Only,
    Shrink,
    Standardise,
    Take,
    Unflatten,
)
from crate_dsl.compiler.types import Dim, Symbol, TensorType, floats
from tests.steps.harness import Step, step

#: Rounding of float64, and of float32, over a dozen terms of size 1.
EXACT, SINGLE = 1e-12, 2e-6

BATCH, COUNT, WIDTH = 3, 7, 12
TOKENS = floats(COUNT, WIDTH)
OPEN = floats(Dim.symbolic(Symbol("n", 9)), WIDTH)
ROWS = replace(TOKENS, flat=True)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    """Numbers that float32 holds exactly, so that both arithmetics are given the same."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).double()


def held(item: Step, wanted: Tensor, *given: Tensor, **named: Tensor) -> None:
    """Both faces are the formula."""
    module = item.module.double()
    with torch.no_grad():
        found = module(*given, **named)
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() < EXACT
    module.float()
    single = [z.float() for z in given]
    named = {name: z.float() if z.is_floating_point() else z for name, z in named.items()}
    (exported,) = item.onnx(*single, **named)
    assert exported.shape == wanted.shape
    assert np.abs(exported - wanted.numpy()).max() < SINGLE * max(1.0, float(wanted.abs().max()))


def weight(item: Step, name: str) -> Tensor:
    return getattr(item.module, name).detach().double()  # type: ignore[no-any-return]


# ------------------------------------------------------------------ token by token


def affine(item: Step, z: Tensor) -> Tensor:
    product = torch.einsum("...i,io->...o", z, weight(item, "matrix"))
    return product + (weight(item, "bias") if item.operator.bias else 0)  # type: ignore[attr-defined]


def layer(item: Step, z: Tensor) -> Tensor:
    centred = z - z.sum(-1, keepdim=True) / WIDTH
    return centred / ((centred**2).sum(-1, keepdim=True) / WIDTH + 0.01) ** 0.5


def rms(item: Step, z: Tensor) -> Tensor:
    return z / ((z**2).sum(-1, keepdim=True) / WIDTH + 0.02) ** 0.5


TOKENWISE: list[tuple[Operator, Callable[[Step, Tensor], Tensor]]] = [
    (Affine(dim=5), affine),
    (Affine(dim=30, bias=False), affine),
    (Standardise(by=LayerNorm(eps=0.01)), layer),
    (Standardise(by=RmsNorm(eps=0.02)), rms),
    (Leak(slope=0.25), lambda _, z: torch.where(z > 0, z, 0.25 * z)),
    (Leak(slope=4.0), lambda _, z: torch.where(z > 0, z, 4 * z)),
    (Shrink(threshold=0.75), lambda _, z: z.sign() * (z.abs() - 0.75).clamp(min=0)),
    (Shrink(threshold=0.0), lambda _, z: z),
]


@pytest.mark.parametrize("kind", ["tokens", "open", "rows", "vector"])
@pytest.mark.parametrize(("operator", "formula"), TOKENWISE, ids=[repr(o) for o, _ in TOKENWISE])
def test_token_by_token(operator: Operator, formula: Callable[[Step, Tensor], Tensor], kind: str) -> None:
    types = {"tokens": TOKENS, "open": OPEN, "rows": ROWS, "vector": floats(WIDTH)}
    shapes = {
        "tokens": (BATCH, COUNT, WIDTH),
        "open": (BATCH, 4, WIDTH),
        "rows": (BATCH * COUNT, WIDTH),
        "vector": (BATCH, WIDTH),
    }
    assert operator.tokenwise
    item = step(operator, types[kind])
    z = numbers(*shapes[kind])
    assert item.typing.output.flat == (kind == "rows")
    held(item, formula(item, z), z)


def test_operations_are_counted() -> None:
    """2 for each multiply-add, for one sample."""
    assert Affine(dim=5).infer(TOKENS).flops == 2 * COUNT * WIDTH * 5
    one = floats(1, WIDTH)
    attention = Attention(heads=2, scale=1.0)
    assert attention.infer(TOKENS, TOKENS, TOKENS).flops == 2 * 2 * COUNT * COUNT * WIDTH
    assert attention.infer(one, TOKENS, TOKENS).flops == 2 * 2 * COUNT * WIDTH


# ------------------------------------------------------------------ attention


def attended(
    queries: Tensor, keys: Tensor, values: Tensor, heads: int, scale: float, allowed: Tensor | None = None
) -> Tensor:
    """Head by head; `allowed` (B, N, M) says which keys a query sees."""
    found = []
    size = queries.shape[-1] // heads
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        scores = scale * queries[..., part] @ keys[..., part].mT
        if allowed is not None:
            scores = torch.where(allowed, scores, -torch.inf)
        shares = (scores - scores.amax(-1, keepdim=True)).exp()
        found.append(shares / shares.sum(-1, keepdim=True) @ values[..., part])
    return torch.cat(found, -1)


@pytest.mark.parametrize("queries", [COUNT, 1, 2])
@pytest.mark.parametrize("heads", [1, 3])
def test_attention(queries: int, heads: int) -> None:
    q, k, v = (
        numbers(BATCH, queries, WIDTH),
        numbers(BATCH, COUNT, WIDTH, seed=1),
        numbers(BATCH, COUNT, WIDTH, seed=2),
    )
    item = step(Attention(heads=heads, scale=0.6), floats(queries, WIDTH), TOKENS, TOKENS)
    held(item, attended(q, k, v, heads, 0.6), q, k, v)
    held(item, attended(q, k, k, heads, 0.6), q, k, k)


def test_causal_attention() -> None:
    z = numbers(BATCH, COUNT, WIDTH)
    item = step(Attention(heads=3, scale=0.6, causal=True), TOKENS, TOKENS, TOKENS)
    earlier = torch.ones(COUNT, COUNT).tril().bool()
    held(item, attended(z, z, z, 3, 0.6, earlier), z, z, z)


@pytest.mark.parametrize("queries", [COUNT, 1, 3])
def test_causal_attention_behind_tokens_that_came_before(queries: int) -> None:
    q, z = numbers(BATCH, queries, WIDTH), numbers(BATCH, COUNT, WIDTH, seed=1)
    attention = Attention(heads=3, scale=0.6, causal=True, before=True)
    item = step(attention, floats(queries, WIDTH), TOKENS, TOKENS)
    earlier = torch.ones(COUNT, COUNT).tril().bool()[-queries:]
    held(item, attended(q, z, z, 3, 0.6, earlier), q, z, z)


@pytest.mark.parametrize("before", [COUNT, 0])
def test_join(before: int) -> None:
    rows, z = numbers(BATCH, before, WIDTH), numbers(BATCH, 3, WIDTH, seed=1)
    item = step(Join(), floats(before, WIDTH), floats(3, WIDTH))
    held(item, torch.cat([rows, z], 1), rows, z)


@pytest.mark.parametrize("queries", [COUNT, 1])
def test_masked_attention(queries: int) -> None:
    q, z = numbers(BATCH, queries, WIDTH), numbers(BATCH, COUNT, WIDTH, seed=1)
    mask = torch.rand(BATCH, COUNT, generator=torch.Generator().manual_seed(0)) < 0.6
    mask[:, 0] = True
    port = Port(TensorType("bool", (Dim.of(COUNT),)))
    item = step(Attention(heads=2, scale=0.6, mask=port), floats(queries, WIDTH), TOKENS, TOKENS)
    allowed = mask[:, None, :].expand(BATCH, queries, COUNT)
    held(item, attended(q, z, z, 2, 0.6, allowed), q, z, z, mask=mask)


# ------------------------------------------------------------------ places


def test_offset() -> None:
    item = step(Offset(), TOKENS)
    z = numbers(BATCH, COUNT, WIDTH)
    held(item, z + weight(item, "table"), z)


@pytest.mark.parametrize(
    "places", [(0,), (2, 3, 4), (6,), (-1,), (-3, -2), (-2, -1), (-1, 0), (5, 1), (0, 2, -1)]
)
def test_take(places: tuple[int, ...]) -> None:
    z = numbers(BATCH, COUNT, WIDTH)
    for type_ in (TOKENS, OPEN):
        held(step(Take(places=places), type_), torch.stack([z[:, place] for place in places], 1), z)


def test_only() -> None:
    z = numbers(BATCH, 1, WIDTH)
    held(step(Only(), floats(1, WIDTH)), z[:, 0], z)
    held(step(Only(), replace(floats(1, WIDTH), flat=True)), z[:, 0], z[:, 0])


# ------------------------------------------------------------------ rows


def test_there_and_back() -> None:
    z = numbers(BATCH, COUNT, WIDTH)
    rows = torch.cat(list(z))
    held(step(Flatten(), TOKENS), rows, z)
    held(step(Unflatten(), ROWS), z, rows)
    assert step(Flatten(), TOKENS).typing.output == ROWS and step(Unflatten(), ROWS).typing.output == TOKENS


@pytest.mark.parametrize("count", [1, 4, 9])
def test_lengths_come_from_another_tensor(count: int) -> None:
    z, other = numbers(BATCH, count, WIDTH), numbers(BATCH, count, 5, seed=1)
    operator = Unflatten(like=Port(floats(OPEN.shape[0], 5)))
    held(step(operator, replace(OPEN, flat=True)), z, torch.cat(list(z)), like=other)
