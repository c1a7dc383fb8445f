"""Steps on the token axis in ONNX. Axes: B batch, N tokens, k tokens of a segment, d width."""

from __future__ import annotations

import numpy as np

from crate_dsl.compiler.functions import Body
from crate_dsl.compiler.operators import Port, Typing
from crate_dsl.compiler.steps.tokens.operator import Append, Cut, Drop, Keep, Pool, Prepend, Select

#: Where a slice to the end ends.
END = np.iinfo(np.int64).max


def _for_each_sample(b: Body, op: Prepend | Append, tokens: str, z_bnd: str) -> str:
    """Learned tokens, (k, d) or (d,) -> (B, k, d); others have their samples, and stay."""
    if isinstance(op.tokens, Port):
        return tokens
    batch = b("Shape", z_bnd, start=0, end=1)
    return b("Expand", tokens, b("Concat", batch, b.integers(1, 1), axis=0))


def _slice(b: Body, z_bnd: str, cut: Cut) -> str:
    start, stop = cut
    return b("Slice", z_bnd, b.integers(start), b.integers(END if stop is None else stop), b.integers(1))


def prepend(b: Body, op: Prepend, typing: Typing, z_bnd: str, *, tokens: str) -> str:
    return b("Concat", _for_each_sample(b, op, tokens, z_bnd), z_bnd, axis=1)


def append(b: Body, op: Append, typing: Typing, z_bnd: str, *, tokens: str) -> str:
    return b("Concat", z_bnd, _for_each_sample(b, op, tokens, z_bnd), axis=1)


def drop(b: Body, op: Drop, typing: Typing, z_bnd: str) -> str:
    parts = [_slice(b, z_bnd, cut) for cut in typing.facts]
    return parts[0] if len(parts) == 1 else b("Concat", *parts, axis=1)


def keep(b: Body, op: Keep, typing: Typing, z_bnd: str) -> str:
    (cut,) = typing.facts
    return _slice(b, z_bnd, cut)


def select(b: Body, op: Select, typing: Typing, z_bnd: str) -> str:
    return b("Gather", z_bnd, b.constant(np.asarray(typing.facts, np.int64)), axis=1)


def pool(b: Body, op: Pool, typing: Typing, z_bnd: str) -> str:
    return b("ReduceMean" if op.by == "mean" else "ReduceMax", z_bnd, b.integers(1), keepdims=0)
