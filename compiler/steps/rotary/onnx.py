"""Rotation by place in ONNX. Axes: B batch, K subspaces or heads, N tokens, p their width, h = p / 2 planes."""

from __future__ import annotations

import numpy as np

from crate_dsl.compiler.functions import Body
from crate_dsl.compiler.operators import Typing
from crate_dsl.compiler.steps.rotary.operator import Rotate


def rotated(b: Body, z_bnm: str, heads: int, rank: int, base: float, past_b: str | None = None) -> str:
    """Each token's heads, side by side, rotated by its place, which is counted from `past`: (B, N, m) -> the same."""
    half = rank // 2
    turns_h = b.constant(np.asarray([base ** (-j / half) for j in range(half)], np.float32))
    count = b("Squeeze", b("Shape", z_bnm, start=1, end=2))
    zero, one = (b.constant(np.asarray(n, np.int64)) for n in (0, 1))
    places_bn = b("Unsqueeze", b("Range", zero, count, one), b.integers(0))
    if past_b is not None:
        places_bn = b("Add", places_bn, b("Unsqueeze", past_b, b.integers(1)))
    places_bn11 = b("Unsqueeze", b("Cast", places_bn, to=1), b.integers(2, 3))
    angles_bn1h = b("Mul", places_bn11, turns_h)
    cos, sin = b("Cos", angles_bn1h), b("Sin", angles_bn1h)
    heads_bnkp = b("Reshape", z_bnm, b.integers(0, 0, heads, rank))
    first, second = b.several("Split", 2, heads_bnkp, axis=-1, num_outputs=2)
    turned_bnkp = b(
        "Concat",
        b("Sub", b("Mul", first, cos), b("Mul", second, sin)),
        b("Add", b("Mul", second, cos), b("Mul", first, sin)),
        axis=-1,
    )
    return b("Reshape", turned_bnkp, b.integers(0, 0, heads * rank))


def rotate(b: Body, op: Rotate, typing: Typing, z_bnm: str, *, past: str | None = None) -> str:
    rank = typing.output.shape[1].bound // op.heads
    return rotated(b, z_bnm, op.heads, rank, op.base, past)
