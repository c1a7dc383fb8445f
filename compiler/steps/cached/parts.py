"""What steps for the next tokens consist of: what the steps on all tokens do, and rows that are held."""

from __future__ import annotations

from crate_dsl.compiler.draft import Draft
from crate_dsl.compiler.graph import Node, Value
from crate_dsl.compiler.steps.arithmetic.operator import Add
from crate_dsl.compiler.steps.attend.parts import attended
from crate_dsl.compiler.steps.cached.operator import CompressStep
from crate_dsl.compiler.steps.compress.parts import branch
from crate_dsl.compiler.steps.parts.write import combine


def compress_step(d: Draft, node: Node) -> tuple[Value, Value] | None:
    """Z + F(Z), and W of all tokens."""
    assert isinstance(node.operator, CompressStep)
    found = branch(d, node, node.operator, node.inputs[2])
    return None if found is None else (combine(d, node, "sum", Add, node.inputs[0], found[0]), found[1])


def attend_step(d: Draft, node: Node) -> tuple[Value, Value, Value] | None:
    """Attention, and keys and values of all tokens."""
    return attended(d, node, (node.inputs[2], node.inputs[3]))
