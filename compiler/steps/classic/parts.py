"""Linear maps, as products read them."""

from __future__ import annotations

from crate_dsl.compiler.draft import Draft
from crate_dsl.compiler.graph import Node, Value
from crate_dsl.compiler.steps.classic.operator import Linear, Transpose
from crate_dsl.compiler.steps.parts.write import affine


def linear(d: Draft, node: Node) -> Value:
    """W z + b."""
    assert isinstance(node.operator, Linear)
    bias = d.array(node, "bias") if node.operator.bias else None
    return affine(d, node, "map", node.inputs[0], d.array(node, "weight").T, bias)


def transpose(d: Draft, node: Node) -> Value:
    """W'z."""
    assert isinstance(node.operator, Transpose)
    weight = d.array(node, "weight")
    return affine(d, node, "map", node.inputs[0], weight.T if node.operator.of == "embed" else weight)
