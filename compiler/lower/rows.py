"""`rows`: the tokens of all samples are the rows of one matrix, wherever steps act token by token.

Precondition: the step says that it does (`tokenwise`). Equal, since such a step is the same map for every row. A
product with a matrix then takes its bias along, and norms and sums have nothing to do with batches.
"""

from __future__ import annotations

from collections.abc import Sequence

from crate_dsl.compiler.draft import Draft, rebuild
from crate_dsl.compiler.graph import Node, Value
from crate_dsl.compiler.steps.parts.operator import Affine, Flatten, Only, Unflatten


def rows(draft: Draft) -> Draft:
    """Flat tokens between the steps that need to know which sample they are of."""
    flat: dict[Value, Value] = {}  # the flat form of a value, in the new draft
    whole: dict[Value, Value] = {}  # and the form with a batch axis
    like: dict[Value, Value] = {}  # of a flat value of unknown length: one with a batch axis and its length

    def flattened(new: Draft, node: Node, value: Value) -> Value:
        if new.type_of(value).flat:
            return value
        if value not in flat:
            flat[value] = new.add(node, "rows", Flatten(), value)
            like[flat[value]] = value
        return flat[value]

    def batched(new: Draft, node: Node, value: Value) -> Value:
        if not new.type_of(value).flat:
            return value
        if value not in whole:
            known = new.type_of(value).shape[0].static is not None
            ports = {} if known else {"like": like[value]}
            whole[value] = new.add(node, "tokens", Unflatten(), value, ports=ports)
            flat[whole[value]] = value
        return whole[value]

    def visit(new: Draft, node: Node) -> Sequence[Value]:
        if isinstance(node.operator, Only) and new.type_of(node.inputs[0]).flat:
            return new.keep(node)
        if _runs_on_rows(new, node):
            inputs = tuple(flattened(new, node, value) for value in node.inputs)
            ports = {port: flattened(new, node, value) for port, value in node.ports.items()}
            (out,) = new.keep(node, inputs=inputs, ports=ports)
            like[out] = like[next(iter((*inputs, *ports.values())))]
            return (out,)
        inputs = tuple(batched(new, node, value) for value in node.inputs)
        ports = {port: batched(new, node, value) for port, value in node.ports.items()}
        return new.keep(node, inputs=inputs, ports=ports)

    def finish(new: Draft, value: Value) -> Value:
        node = new.node(value)
        return value if node is None else batched(new, node, value)

    return rebuild(draft, visit, finish)


def _runs_on_rows(new: Draft, node: Node) -> bool:
    """Whether a step can: it is worth it where there is a product with a matrix, or its tokens are flat already."""
    types = [new.type_of(value) for value in (*node.inputs, *node.ports.values())]
    if not node.operator.tokenwise or any(t.rank != 2 or t.kind != "float" for t in types):
        return False
    return isinstance(node.operator, Affine) or any(t.flat for t in types)
