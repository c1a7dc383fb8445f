"""Which tokens of each value somebody reads: followed backwards through a network, from what is asked of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from crate_dsl.compiler.graph import Node, Value
from crate_dsl.compiler.steps.parts.operator import Attention
from crate_dsl.compiler.steps.tokens.operator import Cut, Drop, Keep, Select
from crate_dsl.compiler.types import TensorType

#: Places of tokens, counted from the end where they are below zero; None is all of them.
Places = tuple[int, ...] | None


def wanted(
    nodes: Sequence[Node],
    type_of: Callable[[Value], TensorType],
    whole: Iterable[Value],
    alone: Callable[[Node, Places], bool],
) -> dict[Value, Places]:
    """The tokens that are read of each value that a step makes, where they are not all.

    Args:
        nodes: Steps, each behind what it reads.
        type_of: The type of a value.
        whole: What is read whole by others than these steps.
        alone: Whether a step can be run for these of its tokens alone.
    """
    asked: dict[Value, list[Places]] = {value: [None] for value in whole}
    for node in reversed(nodes):
        here = Value(node.name)
        places = _union(asked.get(here, []), type_of(here))
        if places is not None and not alone(node, places):
            places = None
        asked[here] = [places]
        for value, of in _reads(node, type_of, places):
            asked.setdefault(value, []).append(of)
    made = {Value(node.name) for node in nodes}
    return {value: lists[0] for value, lists in asked.items() if value in made and lists[0] is not None}


def acts_on_tokens(node: Node, type_of: Callable[[Value], TensorType]) -> bool:
    """Whether a step makes float[tokens, dim] of such, token by token."""
    given = [type_of(value) for value in (*node.inputs, *node.ports.values())]
    return makes_tokens(node) and node.operator.tokenwise and all(type_.rank == 2 for type_ in given)


def makes_tokens(node: Node) -> bool:
    """Whether a step's only result is float[tokens, dim]."""
    out = node.typing.output
    return len(node.typing.outputs) == 1 and out.rank == 2 and out.kind == "float"


def taken(op: Select | Keep | Drop, tokens: TensorType, node: Node) -> Places:
    """The places that a step takes; None where they depend on a length that is known only at run time."""
    facts: tuple[Cut, ...] | int = node.typing.facts
    count = tokens.shape[0].static
    if isinstance(facts, int):
        return (facts % count if count is not None else facts,)
    found: list[int] = []
    for start, stop in facts:
        if count is not None:
            found += range(*slice(start, stop).indices(count))
        elif stop is None and start < 0:
            found += range(start, 0)
        elif stop is not None and (start < 0) == (stop < 0):
            found += range(start, stop)
        else:
            return None
    return tuple(found)


def _reads(node: Node, type_of: Callable[[Value], TensorType], places: Places) -> list[tuple[Value, Places]]:
    """Which tokens of what a step reads, where these of its own are wanted."""
    op = node.operator
    if isinstance(op, Select | Keep | Drop):
        of = taken(op, type_of(node.inputs[0]), node)
        if of is None:
            return [(node.inputs[0], None)]
        return [(node.inputs[0], of if places is None else tuple(of[place] for place in places))]
    if isinstance(op, Attention):
        queries, keys, values = node.inputs
        return [(queries, places), (keys, None), (values, None), *((v, None) for v in node.ports.values())]
    places = places if op.tokenwise else None
    return [(value, places) for value in (*node.inputs, *node.ports.values())]


def _union(lists: Sequence[Places], of: TensorType) -> Places:
    if any(places is None for places in lists):
        return None
    union = tuple(sorted({place for places in lists for place in places or ()}))
    return None if len(union) == of.shape[0].static else union
