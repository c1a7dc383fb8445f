"""Parts of steps in ONNX. Axes: B batch, N queries, M keys, m = h p width of all heads; `…` are any axes."""

from __future__ import annotations

import numpy as np

from crate_dsl.compiler.functions import Body
from crate_dsl.compiler.masks import CAUSAL
from crate_dsl.compiler.operators import Typing
from crate_dsl.compiler.steps.attend.onnx_masks import of_keys, pairs_of
from crate_dsl.compiler.steps.norm.operator import LayerNorm
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


def affine(b: Body, op: Affine, typing: Typing, z: str, *, matrix: str, bias: str | None = None) -> str:
    if bias is None:
        return b("MatMul", z, matrix)
    if typing.output.flat or typing.output.rank == 1:
        # Rows of one matrix: one kernel, its bias included.
        return b("Gemm", z, matrix, bias)
    return b("Add", b("MatMul", z, matrix), bias)


def standardise(b: Body, op: Standardise, typing: Typing, z: str) -> str:
    ones = b.constant(np.ones(typing.output.shape[-1].bound, np.float32))
    kind = "LayerNormalization" if isinstance(op.by, LayerNorm) else "RMSNormalization"
    return b(kind, z, ones, axis=-1, epsilon=op.by.eps)


def leak(b: Body, op: Leak, typing: Typing, z: str) -> str:
    return b("LeakyRelu", z, alpha=op.slope)


def shrink(b: Body, op: Shrink, typing: Typing, z: str) -> str:
    return b("Shrink", z, lambd=op.threshold, bias=op.threshold)


def offset(b: Body, op: Offset, typing: Typing, z_bnd: str, *, table: str) -> str:
    return b("Add", z_bnd, table)


def attention(
    b: Body,
    op: Attention,
    typing: Typing,
    queries_bnm: str,
    keys_bmm: str,
    values_bmm: str,
    *,
    mask: str | None = None,
) -> str:
    arguments = [queries_bnm, keys_bmm, values_bmm]
    behind = op.causal and op.before
    if mask is not None:
        arguments.append(of_keys(b, mask, queries_bnm))
    elif behind:
        arguments.append(pairs_of(b, ((CAUSAL,),), None, queries_bnm, keys_bmm))
    return b(
        "Attention",
        *arguments,
        q_num_heads=op.heads,
        kv_num_heads=op.heads,
        scale=op.scale,
        is_causal=int(op.causal and not behind),
    )


def join(b: Body, op: Join, typing: Typing, rows_bmd: str, z_bnd: str) -> str:
    return b("Concat", rows_bmd, z_bnd, axis=1)


def take(b: Body, op: Take, typing: Typing, z_bnd: str) -> str:
    first, last = op.places[0], op.places[-1]
    if op.places == tuple(range(first, last + 1)) and not first < 0 <= last:
        end = last + 1 or np.iinfo(np.int64).max
        return b("Slice", z_bnd, b.integers(first), b.integers(end), b.integers(1))
    return b("Gather", z_bnd, b.integers(*op.places), axis=1)


def only(b: Body, op: Only, typing: Typing, z: str) -> str:
    return b("Identity", z) if typing.facts else b("Squeeze", z, b.integers(1))


def flatten(b: Body, op: Flatten, typing: Typing, z_bnd: str) -> str:
    return b("Reshape", z_bnd, b.integers(-1, typing.output.shape[1].bound))


def unflatten(b: Body, op: Unflatten, typing: Typing, z_rd: str, *, like: str | None = None) -> str:
    width = typing.output.shape[1].bound
    if like is None:
        return b("Reshape", z_rd, b.integers(-1, typing.facts, width))
    tokens = b("Shape", like, start=1, end=2)
    return b("Reshape", z_rd, b("Concat", b.integers(-1), tokens, b.integers(width), axis=0))
