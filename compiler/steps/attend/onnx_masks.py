"""Masks as the standard `Attention` operator takes them. Axes: B batch, N queries, M keys."""

from __future__ import annotations

import numpy as np

from crate_dsl.compiler.functions import Body
from crate_dsl.compiler.masks import Alternatives, Columns, Rule, Term, allowed


def of_keys(b: Body, mask_bm: str, queries: str | None = None) -> str:
    """A boolean for each key, for every query: onnxruntime does not broadcast (B, M) to (B, 1, N, M).

    `queries`, (B, N, …), are there where others ask than those that are asked.
    """
    batch, keys = b("Shape", mask_bm, start=0, end=1), b("Shape", mask_bm, start=1, end=2)
    asking = keys if queries is None else b("Shape", queries, start=1, end=2)
    shape = b("Concat", batch, b.integers(1), asking, keys, axis=0)
    return b("Expand", b("Unsqueeze", mask_bm, b.integers(1, 2)), shape)


_SIGNS = {"==": "Equal", "<": "Less", "<=": "LessOrEqual", ">": "Greater", ">=": "GreaterOrEqual"}


def ruled(b: Body, rule: Rule, columns: Columns | None, z_bnd: str, kept_bn: str | None) -> str:
    """Which keys each token attends to: (N, N), or with the boolean that the rule reads (B, 1, N, N)."""
    if kept_bn is None:
        return pairs_of(b, rule.alternatives, columns, z_bnd)
    kept_b1nn = of_keys(b, kept_bn)
    where_kept = b("And", pairs_of(b, rule.where_kept, columns, z_bnd), kept_b1nn)
    if not rule.alternatives:
        return where_kept
    return b("Or", pairs_of(b, rule.alternatives, columns, z_bnd), where_kept)


def pairs_of(
    b: Body, alternatives: Alternatives, columns: Columns | None, z_bnd: str, keys_bm: str | None = None
) -> str:
    """Alternatives, (N, N): a constant, or, where only places are known, worked out at run time.

    Where other tokens came before these, `keys_bm` has a row for each of all: (N, M).
    """
    if () in alternatives:
        return b.constant(np.asarray(True))
    if columns is not None:
        count = len(columns.queries[0][1])
        rows = allowed(alternatives, columns, count, count)
        bits = np.unpackbits(np.frombuffer(rows.packed(), np.uint8), bitorder="little")
        return b.constant(bits.reshape(count, -1)[:, :count].astype(bool))
    zero, one_more = b.constant(np.asarray(0)), b.constant(np.asarray(1))
    tokens = b("Squeeze", b("Shape", z_bnd, start=1, end=2))
    key_m = query_n = b("Range", zero, tokens, one_more)
    if keys_bm is not None:
        every = b("Squeeze", b("Shape", keys_bm, start=1, end=2))
        key_m = b("Range", zero, every, one_more)
        query_n = b("Range", b("Sub", every, tokens), every, one_more)

    def side(places: str, terms: tuple[Term, ...], constant: int, axis: int) -> str:
        factor = sum(term.factor for term in terms)
        total = places if factor == 1 else b("Mul", places, b.integers(factor))
        total = b("Add", total, b.integers(constant)) if constant else total
        return b("Unsqueeze", total, b.integers(axis))

    found: str | None = None
    for all_of in alternatives:
        mine: str | None = None
        for one in all_of:
            operands = side(key_m, one.keys, 0, 0), side(query_n, one.queries, one.constant, 1)
            if one.sign == "!=":
                holds = b("Not", b("Equal", *operands))
            else:
                holds = b(_SIGNS[one.sign], *operands)
            mine = holds if mine is None else b("And", mine, holds)
        assert mine is not None, "an alternative has a comparison"
        found = mine if found is None else b("Or", found, mine)
    assert found is not None, "a rule has an alternative"
    return found
