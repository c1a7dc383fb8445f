"""Steps for the next tokens in ONNX. Axes: B batch, N next tokens, M all tokens, d width, i = K p."""

from __future__ import annotations

import numpy as np

from crate_dsl.compiler.functions import Body
from crate_dsl.compiler.masks import Alternatives, Term
from crate_dsl.compiler.operators import Typing
from crate_dsl.compiler.steps.attend.onnx_masks import _SIGNS
from crate_dsl.compiler.steps.cached.operator import AttendStep, CompressStep, PositionStep, alternatives_of
from crate_dsl.compiler.steps.classic.onnx import affine
from crate_dsl.compiler.steps.compress.onnx import factors, led_back, projected
from crate_dsl.compiler.steps.position.operator import Positions
from crate_dsl.compiler.steps.position.tables import sincos_table
from crate_dsl.compiler.steps.rotary.onnx import rotated
from crate_dsl.compiler.steps.rotary.operator import Rotary


def length(b: Body, tokens: str) -> str:
    """How many tokens there are, int64 of shape (1,)."""
    return b("Shape", tokens, start=1, end=2)


def places(b: Body, start: str, stop: str) -> str:
    """The places from one to another, both of shape (1,)."""
    one = b.constant(np.asarray(1, np.int64))
    return b("Range", b("Squeeze", start), b("Squeeze", stop), one)


def seen(b: Body, alternatives: Alternatives, before_bmi: str, z_bnd: str) -> str:
    """Which of all tokens each of the next ones attends to: (N, M)."""
    before = length(b, before_bmi)
    count = b("Add", before, length(b, z_bnd))
    keys_m, queries_n = places(b, b.integers(0), count), places(b, before, count)

    def side(terms: tuple[Term, ...], constant: int, of: str, axis: int) -> str:
        total = b("Mul", of, b.integers(sum(term.factor for term in terms)))
        return b("Unsqueeze", b("Add", total, b.integers(constant)), b.integers(axis))

    found: str | None = None
    for all_of in alternatives:
        mine: str | None = None
        for one in all_of:
            operands = side(one.keys, 0, keys_m, 0), side(one.queries, one.constant, queries_n, 1)
            negated = one.sign == "!="
            holds = b("Not", b("Equal", *operands)) if negated else b(_SIGNS[one.sign], *operands)
            mine = holds if mine is None else b("And", mine, holds)
        assert mine is not None, "an alternative has a comparison"
        found = mine if found is None else b("Or", found, mine)
    assert found is not None, "a rule has an alternative"
    return found


def joined(b: Body, before_bmi: str, new_bni: str) -> str:
    """What is held, and a row for each of the next tokens."""
    return b("Concat", before_bmi, new_bni, axis=1)


def compress_step(
    b: Body, op: CompressStep, typing: Typing, z_bnd: str, past_b: str, before_bmi: str, **given: str
) -> tuple[str, str]:
    x_bnd, query_bni = projected(b, op, z_bnd, given)
    compared_bmi = w_bmi = joined(b, before_bmi, query_bni)
    if isinstance(op.positions, Rotary):
        compared_bmi = rotated(b, w_bmi, op.subspaces, op.rank, op.positions.base)
        end = b.integers(np.iinfo(np.int64).max)
        query_bni = b("Slice", compared_bmi, length(b, before_bmi), end, b.integers(1))
    scale = given.get("scale")
    heads_bni = b(
        "Attention",
        query_bni if scale is None else b("Mul", query_bni, b.scalar(op, "scale", scale)),
        compared_bmi,
        w_bmi,
        seen(b, alternatives_of(op.mask), before_bmi, z_bnd),
        q_num_heads=op.subspaces,
        kv_num_heads=op.subspaces,
        scale=op.softmax_scale if scale is None else 1.0,
    )
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
        seen(b, alternatives_of(op.mask), held_bmd, z_bnd),
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
    places_n = places(b, b.integers(0), length(b, z_bnd))
    places_bn = b("Add", b("Unsqueeze", past_b, b.integers(1)), places_n)
    return b("Add", z_bnd, b("Gather", table, places_bn, axis=0))
