"""`softmax`: the scale of attention goes into the map before it.

Precondition: an affine map makes the queries, and nothing else reads them. Where queries are keys and values too, as in
MSSA, each of them takes the scale's root, and the map behind, which alone reads the heads, gives back what the values
have too much. Equal, since s qk' = (√s q)(√s k)', and attention is linear in its values.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

from crate_dsl.compiler.draft import Draft, rebuild
from crate_dsl.compiler.graph import Node, Value
from crate_dsl.compiler.steps.parts.operator import Affine, Attention
from crate_dsl.compiler.steps.parts.write import affine


def softmax(draft: Draft) -> Draft:
    """Attention without a scale."""
    factors: dict[str, float] = {}  # by what the matrix of an affine map is multiplied on its way out
    undone: dict[str, float] = {}  # and on its way in
    for node in draft.nodes:
        op = node.operator
        if not isinstance(op, Attention) or op.scale == 1.0 or op.scale <= 0:
            continue
        queries, keys, values = node.inputs
        before = draft.node(queries)
        if before is None or not isinstance(before.operator, Affine) or draft.only_user(queries) is not node:
            continue
        if queries == keys == values:
            behind = draft.only_user(Value(node.name))
            if behind is None or not isinstance(behind.operator, Affine):
                continue
            factors[before.name] = sqrt(op.scale)
            undone[behind.name] = 1 / sqrt(op.scale)
        elif queries not in (keys, values):
            factors[before.name] = op.scale
        else:
            continue
        factors[node.name] = 1.0

    def visit(new: Draft, node: Node) -> Sequence[Value]:
        if node.name not in factors.keys() | undone.keys():
            return new.keep(node)
        if isinstance(node.operator, Attention):
            return new.keep(node, node.operator.model_copy(update={"scale": 1.0}))
        out = factors.get(node.name, 1.0)
        matrix = new.array(node, "matrix") * (out * undone.get(node.name, 1.0))
        bias = new.array(node, "bias") * out if "bias" in node.weights else None
        return (affine(new, node, "", node.inputs[0], matrix, bias),)

    return rebuild(draft, visit)
