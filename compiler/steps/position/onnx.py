"""`position` and `sinusoid` in ONNX. Axes: B batch, N tokens, d width, r x c the table's grid, h x w the input's."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from crate_dsl.compiler.functions import Body
from crate_dsl.compiler.operators import Typing
from crate_dsl.compiler.steps.position.operator import Position, Positions, Sinusoid, Unposition
from crate_dsl.compiler.steps.position.tables import cubic, fourier_features, frequencies, sincos_table


def position(b: Body, op: Position, typing: Typing, z_bnd: str, **given: str) -> str:
    return b("Add", z_bnd, _positions(b, op, typing, z_bnd, given))


def unposition(b: Body, op: Unposition, typing: Typing, z_bnd: str, **given: str) -> str:
    return b("Sub", z_bnd, _positions(b, op.of, typing, z_bnd, given))


def sinusoid(b: Body, op: Sinusoid, typing: Typing, t: str) -> str:
    falling = b.constant(frequencies(op.dim, op.temperature).astype(np.float32))
    angles = b("Mul", b("Unsqueeze", b("Cast", t, to=1), b.integers(-1)), falling)
    return b("Concat", b("Sin", angles), b("Cos", angles), axis=-1)


def _positions(b: Body, op: Position, typing: Typing, z_bnd: str, given: Mapping[str, str]) -> str:
    """What is added to the tokens: (N, d)."""
    facts: Positions = typing.facts
    width = typing.output.shape[1].bound
    if op.table == "fourier":
        features_nf, inside_n1 = fourier_features(facts, op.temperature)
        mapped_nd = b(
            "MatMul",
            b.constant(features_nf.astype(np.float32)),
            b("Transpose", given["projection"], perm=[1, 0]),
        )
        return b("Add", mapped_nd, b("Mul", b.constant(inside_n1.astype(np.float32)), given["bias"]))
    table = given.get("table")
    if table is None:
        table = b.constant(sincos_table(facts, width, op.temperature).astype(np.float32))
    if facts.resized_from is not None:
        table = _resized(b, facts, table, width)
    elif facts.sliced:
        tokens = b("Shape", z_bnd, start=1, end=2)
        table = b("Slice", table, b.integers(0), tokens, b.integers(0))
    return table


def _resized(b: Body, facts: Positions, table: str, width: int) -> str:
    """The table with its grid interpolated to the input's; other tokens keep their rows: (N, d)."""
    assert facts.resized_from is not None
    (patches,), (rows, columns) = facts.patches, facts.resized_from
    sizes = [patches.start, rows * columns, facts.rows - patches.start - patches.count]
    before, grid, after = b.several("Split", 3, table, b.integers(*sizes), axis=0)
    rows_hr = b.constant(cubic(rows, patches.rows).astype(np.float32))
    columns_wc = b.constant(cubic(columns, patches.columns).astype(np.float32))
    grid_hm = b("MatMul", rows_hr, b("Reshape", grid, b.integers(rows, columns * width)))
    grid_hcd = b("Reshape", grid_hm, b.integers(patches.rows, columns, width))
    grid_hwd = b("MatMul", columns_wc, grid_hcd)
    grid_nd = b("Reshape", grid_hwd, b.integers(patches.count, width))
    return b("Concat", before, grid_nd, after, axis=0)
