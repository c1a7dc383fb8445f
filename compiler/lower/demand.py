"""`demand`: only the tokens that somebody reads are computed.

Which tokens are read goes backwards through the network: through a step that acts token by token it stays what it is,
of attention it asks for queries (keys and values are all read), and `select`, `keep` and `drop` read what they name.
Precondition: the places are known before the network runs. Equal, since what is left out reaches no output.
"""

from __future__ import annotations

from collections.abc import Sequence

from crate_dsl.compiler.draft import Draft, rebuild
from crate_dsl.compiler.graph import Node, Value
from crate_dsl.compiler.steps.parts.operator import Attention, Only, Take
from crate_dsl.compiler.steps.tokens.operator import Cut, Drop, Keep, Select
from crate_dsl.compiler.types import Dim, Layout, Segment, TensorType

#: Places of tokens, counted from the end where they are below zero; None is all of them.
Places = tuple[int, ...] | None


def demand(draft: Draft) -> Draft:
    """A network without the tokens that nobody reads."""
    wanted = _wanted(draft)

    def narrowed(new: Draft, node: Node, value: Value, places: Places) -> Value:
        """Some tokens of a value of the old draft, which has those that are wanted."""
        have, now = wanted.get(value), new.moved_to(value)
        if places == have or places is None:
            assert have is None or places is not None
            return now
        take = Take(
            places=places if have is None else tuple(map(have.index, places)),
            layout=_layout(draft.type_of(value), places),
        )
        return new.add(node, "read", take, now)

    def visit(new: Draft, node: Node) -> Sequence[Value]:
        old, op = draft.step(node.name), node.operator
        places = wanted.get(Value(node.name))
        if isinstance(op, Select):
            (one,) = _taken(op, draft.type_of(old.inputs[0]), old) or (None,)
            if one is None:
                return new.keep(node)
            return (new.add(node, "", Only(), narrowed(new, node, old.inputs[0], (one,))),)
        if isinstance(op, Keep | Drop):
            of = _taken(op, draft.type_of(old.inputs[0]), old)
            if of is not None:
                chosen = of if places is None else tuple(of[place] for place in places)
                return (narrowed(new, node, old.inputs[0], chosen),)
        if places is None:
            return new.keep(
                node,
                inputs=tuple(narrowed(new, node, v, None) for v in old.inputs),
                ports={port: narrowed(new, node, v, None) for port, v in old.ports.items()},
            )
        if isinstance(op, Attention):
            queries, keys, values = old.inputs
            inputs = (narrowed(new, node, queries, places), *(new.moved_to(v) for v in (keys, values)))
            return new.keep(node, op.model_copy(update={"causal": False}), inputs)
        inputs = tuple(narrowed(new, node, v, places) for v in old.inputs)
        ports = {port: narrowed(new, node, v, places) for port, v in old.ports.items()}
        return new.keep(node, inputs=inputs, ports=ports)

    return rebuild(draft, visit)


def _wanted(draft: Draft) -> dict[Value, Places]:
    """The tokens that are read of each value, where they are not all."""
    asked: dict[Value, list[Places]] = {value: [None] for value in draft.outputs.values()}
    for node in reversed(draft.nodes):
        here = Value(node.name)
        places = _union(asked.get(here, []), draft.type_of(here))
        if not _narrows(draft, node, places):
            places = None
        asked[here] = [places]
        for value, of in _reads(draft, node, places):
            asked.setdefault(value, []).append(of)
    made = {Value(node.name) for node in draft.nodes}
    return {value: lists[0] for value, lists in asked.items() if value in made and lists[0] is not None}


def _narrows(draft: Draft, node: Node, places: Places) -> bool:
    """Whether a step can be run for these of its tokens alone."""
    out = node.typing.output
    if len(node.typing.outputs) > 1 or out.rank != 2 or out.kind != "float":
        return False
    if isinstance(node.operator, Keep | Drop):
        return _taken(node.operator, draft.type_of(node.inputs[0]), node) is not None
    if isinstance(node.operator, Attention):
        # A causal one is aligned to its first query. The last query alone sees everything, and needs no mask.
        count = draft.type_of(node.inputs[1]).shape[0].static
        return not node.operator.causal or places in ((-1,), (count and count - 1,))
    given = [draft.type_of(value) for value in (*node.inputs, *node.ports.values())]
    return node.operator.tokenwise and all(type_.rank == 2 for type_ in given)


def _reads(draft: Draft, node: Node, places: Places) -> list[tuple[Value, Places]]:
    """Which tokens of what a step reads, where these of its own are wanted."""
    op = node.operator
    if isinstance(op, Select | Keep | Drop):
        of = _taken(op, draft.type_of(node.inputs[0]), node)
        if of is None:
            return [(node.inputs[0], None)]
        return [(node.inputs[0], of if places is None else tuple(of[place] for place in places))]
    if isinstance(op, Attention):
        queries, keys, values = node.inputs
        return [(queries, places), (keys, None), (values, None), *((v, None) for v in node.ports.values())]
    return [(value, places) for value in (*node.inputs, *node.ports.values())]


def _taken(op: Select | Keep | Drop, tokens: TensorType, node: Node) -> Places:
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


def _layout(tokens: TensorType, places: tuple[int, ...]) -> Layout | None:
    """What the tokens at these places consist of: a segment of which some are missing has lost its grid."""
    if tokens.layout is None:
        return None
    found: list[tuple[int, Segment]] = []
    for segment in tokens.layout:
        before = tokens.layout.start(segment.name)
        start = before.static if before.static is not None else (before - tokens.shape[0]).static
        if start is None or segment.length.static is None:
            continue  # as long as it comes, and no place of it is known
        taken = [place for place in range(start, start + segment.length.static) if place in places]
        whole = len(taken) == segment.length.static
        if taken:
            kept = segment if whole else Segment(segment.name, Dim.of(len(taken)))
            found.append((places.index(taken[0]), kept))
    return Layout(tuple(segment for _, segment in sorted(found, key=lambda item: item[0])))


def _union(lists: Sequence[Places], of: TensorType) -> Places:
    if any(places is None for places in lists):
        return None
    union = tuple(sorted({place for places in lists for place in places or ()}))
    return None if len(union) == of.shape[0].static else union
