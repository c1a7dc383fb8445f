"""`position` in ONNX. Axes: B batch, N tokens, d width, r x c the table's grid, h x w the input's."""

from __future__ import annotations

import numpy as np

from crate_dsl.compiler.functions import Body
from crate_dsl.compiler.operators import Typing
from crate_dsl.compiler.steps.position.operator import Position, Positions, Unposition
from crate_dsl.compiler.steps.position.tables import cubic, sincos_table


def position(b: Body, op: Position, typing: Typing, z_bnd: str, *, table: str | None = None) -> str:
    return b("Add", z_bnd, _positions(b, op, typing, z_bnd, table))


def unposition(b: Body, op: Unposition, typing: Typing, z_bnd: str, *, table: str | None = None) -> str:
    return b("Sub", z_bnd, _positions(b, op.of, typing, z_bnd, table))


def _positions(b: Body, op: Position, typing: Typing, z_bnd: str, table: str | None) -> str:
    """What is added to the tokens: (N, d)."""
    facts: Positions = typing.facts
    width = typing.output.shape[1].bound
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
