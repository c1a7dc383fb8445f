"""Steps for the next tokens in ONNX. Axes: B batch, N next tokens, M all tokens, d width, i = K p."""

from __future__ import annotations

import numpy as np

from crate_dsl.compiler.functions import Body
from crate_dsl.compiler.operators import Typing
from crate_dsl.compiler.steps.attend.onnx_masks import pairs_of
from crate_dsl.compiler.steps.cached.operator import AttendStep, CompressStep, PositionStep, alternatives_of
from crate_dsl.compiler.steps.classic.onnx import affine
from crate_dsl.compiler.steps.compress.onnx import attention, factors, led_back, placed, projected
from crate_dsl.compiler.steps.position.operator import Positions
from crate_dsl.compiler.steps.position.tables import sincos_table
from crate_dsl.compiler.steps.rotary.onnx import rotated
from crate_dsl.compiler.steps.rotary.operator import Rotary


def length(b: Body, tokens: str) -> str:
    """How many tokens there are, int64 of shape (1,)."""
    return b("Shape", tokens, start=1, end=2)


def joined(b: Body, before_bmi: str, new_bni: str) -> str:
    """What is held, and a row for each of the next tokens."""
    return b("Concat", before_bmi, new_bni, axis=1)


def compress_step(
    b: Body, op: CompressStep, typing: Typing, z_bnd: str, past_b: str, before_bmi: str, **given: str
) -> tuple[str, str]:
    x_bnd, query_bni = projected(b, op, z_bnd, given)
    w_bmi = joined(b, before_bmi, query_bni)
    compared_bmi = placed(b, op, w_bmi)
    if compared_bmi != w_bmi:
        end = b.integers(np.iinfo(np.int64).max)
        query_bni = b("Slice", compared_bmi, length(b, before_bmi), end, b.integers(1))
    mask = pairs_of(b, alternatives_of(op.mask), None, z_bnd, w_bmi)
    heads_bni = attention(b, op, query_bni, compared_bmi, w_bmi, given, mask)
    alpha, rate = factors(b, op, typing, z_bnd, given)
    return b("Add", z_bnd, led_back(b, op, x_bnd, heads_bni, rate, alpha, given)), w_bmi


def attend_step(
    b: Body,
    op: AttendStep,
    typing: Typing,
    z_bnd: str,
    past_b: str,
    keys_bmd: str,
    values_bmd: str,
    *,
    qkv_weight: str,
    out_weight: str,
    qkv_bias: str | None = None,
    out_bias: str | None = None,
) -> tuple[str, str, str]:
    query_bnd, new_keys_bnd, new_values_bnd = b.several(
        "Split", 3, affine(b, z_bnd, qkv_weight, qkv_bias), axis=-1, num_outputs=3
    )
    held_bmd = keys_bmd
    keys_bmd, values_bmd = joined(b, keys_bmd, new_keys_bnd), joined(b, values_bmd, new_values_bnd)
    compared_bmd = keys_bmd
    if isinstance(op.positions, Rotary):
        rank = typing.output.shape[1].bound // op.heads
        first_b = b("Expand", length(b, held_bmd), b("Shape", z_bnd, start=0, end=1))
        query_bnd = rotated(b, query_bnd, op.heads, rank, op.positions.base, first_b)
        compared_bmd = rotated(b, keys_bmd, op.heads, rank, op.positions.base)
    heads_bnd = b(
        "Attention",
        query_bnd,
        compared_bmd,
        values_bmd,
        pairs_of(b, alternatives_of(op.mask), None, z_bnd, keys_bmd),
        q_num_heads=op.heads,
        kv_num_heads=op.heads,
    )
    return affine(b, heads_bnd, out_weight, out_bias), keys_bmd, values_bmd


def position_step(
    b: Body, op: PositionStep, typing: Typing, z_bnd: str, past_b: str, *, table: str | None = None
) -> str:
    if table is None:
        facts: Positions = typing.facts
        width = typing.output.shape[1].bound
        table = b.constant(sincos_table(facts, width, op.of.temperature).astype(np.float32))
    zero, one = (b.constant(np.asarray(value, np.int64)) for value in (0, 1))
    count = b("Squeeze", length(b, z_bnd))
    places_bn = b("Add", b("Unsqueeze", past_b, b.integers(1)), b("Range", zero, count, one))
    return b("Add", z_bnd, b("Gather", table, places_bn, axis=0))
