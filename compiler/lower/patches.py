"""`patches`: the numbers of a patch lie as they do in the picture, and the map behind is written for that order.

Precondition: affine maps alone read the patches, directly or behind norms without scale and shift, and no picture is
put together from patches of that order. Equal, since such a norm does not see an order, and a product sums over all
numbers of a patch, whatever their order. Runs of pixels are then copied instead of single ones.
"""

from __future__ import annotations

from collections.abc import Sequence

from crate_dsl.compiler.draft import Array, Draft, rebuild
from crate_dsl.compiler.graph import Node, Value
from crate_dsl.compiler.steps.parts.operator import Affine, Standardise
from crate_dsl.compiler.steps.parts.write import affine
from crate_dsl.compiler.steps.patches.operator import Patchify, Unpatchify
from crate_dsl.compiler.types import Grid


def patches(draft: Draft) -> Draft:
    """Patches whose channels come first, as in pictures."""
    grids: dict[str, Grid] = {}  # of patches, and of the maps that read them
    if any(isinstance(node.operator, Unpatchify) for node in draft.nodes):
        return draft
    for node in draft.nodes:
        if isinstance(node.operator, Patchify) and node.operator.order == "pqc":
            maps = _maps(draft, Value(node.name))
            if maps is not None:
                grids |= {name: node.typing.facts for name in (node.name, *maps)}

    def visit(new: Draft, node: Node) -> Sequence[Value]:
        op = node.operator
        if node.name not in grids:
            return new.keep(node)
        if isinstance(op, Patchify):
            return new.keep(node, op.model_copy(update={"order": "cpq"}))
        bias = new.array(node, "bias") if "bias" in node.weights else None
        return (affine(new, node, "", node.inputs[0], _reordered(new, node, grids[node.name]), bias),)

    return rebuild(draft, visit)


def _maps(draft: Draft, value: Value) -> list[str] | None:
    """The affine maps that read a value, directly or normed; None where something else does."""
    found: list[str] = []
    if value in draft.outputs.values():
        return None
    for user in draft.users.get(value, []):
        behind = _maps(draft, Value(user.name)) if isinstance(user.operator, Standardise) else [user.name]
        if behind is None or not isinstance(user.operator, Standardise | Affine):
            return None
        found += behind
    return found


def _reordered(new: Draft, node: Node, grid: Grid) -> Array:
    """A matrix whose rows are for (row, column, channel), for (channel, row, column)."""
    matrix = new.array(node, "matrix")
    cut = matrix.reshape(grid.patch, grid.patch, grid.channels, -1)
    return cut.transpose(2, 0, 1, 3).reshape(matrix.shape)
