"""`demand`: only the tokens that somebody reads are computed.

Which tokens are read goes backwards through the network: through a step that acts token by token it stays what it is,
of attention it asks for queries (keys and values are all read), and `select`, `keep` and `drop` read what they name.
Precondition: the places are known before the network runs. Equal, since what is left out reaches no output.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from crate_dsl.compiler.draft import Draft, rebuild
from crate_dsl.compiler.graph import Node, Value
from crate_dsl.compiler.steps.parts.operator import Attention, Only, Take
from crate_dsl.compiler.steps.tokens.operator import Drop, Keep, Select
from crate_dsl.compiler.types import Dim, Layout, Segment, TensorType
from crate_dsl.compiler.wanted import Places, acts_on_tokens, makes_tokens, taken, wanted


def demand(draft: Draft) -> Draft:
    """A network without the tokens that nobody reads."""
    found = wanted(draft.nodes, draft.type_of, draft.outputs.values(), partial(_alone, draft))

    def narrowed(new: Draft, node: Node, value: Value, places: Places) -> Value:
        """Some tokens of a value of the old draft, which has those that are wanted."""
        have, now = found.get(value), new.moved_to(value)
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
        places = found.get(Value(node.name))
        if isinstance(op, Select):
            (one,) = taken(op, draft.type_of(old.inputs[0]), old) or (None,)
            if one is None:
                return new.keep(node)
            return (new.add(node, "", Only(), narrowed(new, node, old.inputs[0], (one,))),)
        if isinstance(op, Keep | Drop):
            of = taken(op, draft.type_of(old.inputs[0]), old)
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


def _alone(draft: Draft, node: Node, places: Places) -> bool:
    """Whether a step can be run for these of its tokens alone."""
    if not makes_tokens(node):
        return False
    if isinstance(node.operator, Keep | Drop):
        return taken(node.operator, draft.type_of(node.inputs[0]), node) is not None
    if isinstance(node.operator, Attention):
        # A causal one is aligned to its first query. The last query alone sees everything, and needs no mask.
        count = draft.type_of(node.inputs[1]).shape[0].static
        return not node.operator.causal or places in ((-1,), (count and count - 1,))
    return acts_on_tokens(node, draft.type_of)


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
        present = [place for place in range(start, start + segment.length.static) if place in places]
        whole = len(present) == segment.length.static
        if present:
            kept = segment if whole else Segment(segment.name, Dim.of(len(present)))
            found.append((places.index(present[0]), kept))
    return Layout(tuple(segment for _, segment in sorted(found, key=lambda item: item[0])))
