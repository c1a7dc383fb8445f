"""`constants`: what depends on weights alone is computed once, here, and not whenever a file is opened or run.

Precondition: the number of tokens is known. Positions become one table: sines, or a learned grid at the input's size.
A step `relative(c)` becomes a number: κ = c / (α‖U‖₂²). Equal, since the same formulas are evaluated, in float64.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from crate_dsl.compiler.draft import Array, Draft, rebuild
from crate_dsl.compiler.graph import Node, Value
from crate_dsl.compiler.steps.compress.operator import Decompress, SubspaceStep
from crate_dsl.compiler.steps.parts.operator import Offset
from crate_dsl.compiler.steps.position.operator import Position, Positions, Unposition
from crate_dsl.compiler.steps.position.tables import cubic, fourier_features, sincos_table


def constants(draft: Draft) -> Draft:
    """Tables and numbers in place of what is computed from weights alone."""

    def visit(new: Draft, node: Node) -> Sequence[Value]:
        op = node.operator
        tokens = new.type_of(node.inputs[0]) if node.inputs else None
        if tokens is None or not tokens.rank or tokens.shape[0].static is None:
            return new.keep(node)
        if isinstance(op, Position | Unposition):
            table = _table(new, node) * (1.0 if isinstance(op, Position) else -1.0)
            return (new.add(node, "table", Offset(), *node.inputs, weights={"table": table}),)
        if isinstance(op, Decompress) and op.iterations == "certified":
            return new.keep(node)  # its fraction says how many iterations are enough
        if isinstance(op, SubspaceStep) and op.fraction is not None and op.constraint == "none":
            norm = float(np.linalg.norm(new.array(node, "subspaces"), 2))
            if norm > 0:
                step = op.fraction / (op.alpha(tokens.shape[0].static) * norm**2)
                return new.keep(node, op.model_copy(update={"step": step}))
        return new.keep(node)

    return rebuild(draft, visit)


def _table(new: Draft, node: Node) -> Array:
    """What a `position` adds: (N, d)."""
    op = node.operator.of if isinstance(node.operator, Unposition) else node.operator
    facts: Positions = node.typing.facts
    assert isinstance(op, Position)
    count, width = (dim.bound for dim in node.typing.output.shape)
    if op.table == "sincos":
        return sincos_table(facts, width, op.temperature)[:count]
    if op.table == "fourier":
        features, inside = fourier_features(facts, op.temperature)
        return features @ new.array(node, "projection").T + inside * new.array(node, "bias")
    table = new.array(node, "table")
    if facts.resized_from is None:
        return table[:count]
    (patches,), (rows, columns) = facts.patches, facts.resized_from
    before, grid, after = np.split(table, [patches.start, patches.start + rows * columns])
    return np.concatenate([before, resized(grid, (rows, columns), (patches.rows, patches.columns)), after])


def resized(grid: Array, given: tuple[int, int], wanted: tuple[int, int]) -> Array:
    """A table over a grid, interpolated to another: (r c, d) -> (h w, d)."""
    over_rows = np.einsum("hr,rcd->hcd", cubic(given[0], wanted[0]), grid.reshape(*given, -1))
    return np.einsum("wc,hcd->hwd", cubic(given[1], wanted[1]), over_rows).reshape(-1, grid.shape[1])
