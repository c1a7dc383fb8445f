"""`fold`: affine maps, sums and differences of one tensor become one affine map, such as a proximal step's gradient.

Precondition: a chain of steps that are affine in one tensor, token by token, and the one map costs less than those
steps of the chain that nothing else reads. Equal, since affine maps are closed under sums and composition: in
`sparsify`, x + η D'(x - D x) - ηλ is x M + b with M = I + η (D - D'D) for tokens as rows. Computed in float64.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from crate_dsl.compiler.draft import Array, Draft, rebuild
from crate_dsl.compiler.graph import Node, Value
from crate_dsl.compiler.steps.arithmetic.operator import Add, Negative, Subtract
from crate_dsl.compiler.steps.classic.operator import Scale
from crate_dsl.compiler.steps.parts.operator import Affine
from crate_dsl.compiler.steps.parts.write import affine

#: A map of rows z -> z M + b. A number for M stands for so many times the identity.
Map = tuple[Array | float, Array | float]


def fold(draft: Draft) -> Draft:
    """One affine map for each chain of them, where that is less work."""
    roots = _roots(draft)
    folded = {node.name: node for node in draft.nodes if _pays(draft, roots, node)}

    def visit(new: Draft, node: Node) -> Sequence[Value]:
        if node.name not in folded:
            return new.keep(node)
        here = Value(node.name)
        root = roots[here]
        matrix, shift = _composed(draft, root, here)
        bias = None if np.ndim(shift) == 0 and shift == 0 else shift
        return (affine(new, node, "", new.moved_to(root), _dense(matrix, draft, root), bias),)

    return rebuild(draft, visit)


def operands(node: Node) -> tuple[Value, ...] | None:
    """The tensors in which a step is affine, token by token; None where it is not."""
    op = node.operator
    if isinstance(op, Affine) or (isinstance(op, Scale) and isinstance(op.factor, float)):
        return node.inputs
    if isinstance(op, Add | Subtract) and set(node.ports) == {"left", "right"} and op.tokenwise:
        return (node.ports["left"], node.ports["right"])
    return (node.ports["value"],) if isinstance(op, Negative) and node.ports else None


def _roots(draft: Draft) -> dict[Value, Value]:
    """The one tensor in which each result of an affine step is affine, as far back as that goes."""
    found: dict[Value, Value] = {}
    for node in draft.nodes:
        given = operands(node)
        if given is not None:
            roots = {found.get(value, value) for value in given}
            if len(roots) == 1:
                found[Value(node.name)] = roots.pop()
    return found


def _chain(draft: Draft, root: Value, end: Node) -> list[Node]:
    """The steps between a tensor and what is affine in it, last first."""
    found: dict[str, Node] = {}
    pending = [end]
    while pending:
        node = pending.pop()
        if node.name not in found:
            found[node.name] = node
            given = operands(node) or ()
            pending += [step for v in given if v != root and (step := draft.node(v)) is not None]
    return sorted(found.values(), key=lambda node: draft.places[node.name], reverse=True)


def _pays(draft: Draft, roots: dict[Value, Value], node: Node) -> bool:
    """Whether a chain ends here, and one map costs less than what would no longer be computed."""
    here = Value(node.name)
    root = roots.get(here)
    if root is None:
        return False
    read = set(draft.outputs.values())
    users = draft.users.get(here, [])
    if here not in read and users and all(roots.get(Value(user.name)) == root for user in users):
        return False  # the chain goes on
    gone: set[str] = set()
    saved = 0
    for step in _chain(draft, root, node):
        value = Value(step.name)
        if step is node or (value not in read and all(user.name in gone for user in draft.users[value])):
            gone.add(step.name)
            saved += step.typing.flops
    return len(gone) > 1 and saved > 2 * draft.type_of(root).elements * draft.type_of(here).shape[-1].bound


def _composed(draft: Draft, root: Value, value: Value) -> Map:
    """The map from a tensor to what is affine in it."""
    maps: dict[Value, Map] = {root: (1.0, 0.0)}
    end = draft.node(value)
    assert end is not None
    for node in reversed(_chain(draft, root, end)):
        given = [maps[operand] for operand in operands(node) or ()]
        maps[Value(node.name)] = _through(draft, node, given)
    return maps[value]


def _through(draft: Draft, node: Node, given: list[Map]) -> Map:
    op = node.operator
    matrix, shift = given[0]
    if isinstance(op, Affine):
        by = draft.array(node, "matrix")
        bias = draft.array(node, "bias") if op.bias else 0.0
        product = matrix * by if isinstance(matrix, float) else matrix @ by
        return product, (shift * by.sum(0) if np.ndim(shift) == 0 else shift @ by) + bias
    if isinstance(op, Add | Subtract):
        sign = 1.0 if isinstance(op, Add) else -1.0
        other, other_shift = given[1]
        width = draft.type_of(Value(node.name)).shape[-1].bound
        return _sum(matrix, sign * other, width), shift + sign * other_shift
    factor = op.factor if isinstance(op, Scale) else -1.0
    assert isinstance(factor, float)
    return factor * matrix, factor * shift


def _sum(one: Array | float, two: Array | float, width: int) -> Array | float:
    if isinstance(one, float) and isinstance(two, float):
        return one + two
    return _full(one, width) + _full(two, width)


def _full(matrix: Array | float, width: int) -> Array:
    return matrix * np.eye(width) if isinstance(matrix, float) else matrix


def _dense(matrix: Array | float, draft: Draft, root: Value) -> Array:
    return _full(matrix, draft.type_of(root).shape[-1].bound)
