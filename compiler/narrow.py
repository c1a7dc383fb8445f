"""What an objective need not compute: tokens of the last layers that it does not read.

In training nothing is rewritten, for weights stay what they are. Steps that are run for some of their tokens alone are
called one by one instead, by an objective that hands them those tokens, or says which ones it wants.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from crate_dsl.compiler.graph import Apply, Call, Loop, ModelGraph, Node, Value, calls_inside, made_by
from crate_dsl.compiler.steps.tokens.operator import Cut, Drop, Keep
from crate_dsl.compiler.wanted import Places, acts_on_tokens, makes_tokens, taken, wanted

Item = Call | Apply | Loop


def narrowed(graph: ModelGraph, items: Iterable[Item]) -> dict[Value, Places]:
    """The tokens that an objective, which is these items, reads of each value, where they are few of them.

    Steps of a stage that is used again are not looked into: they are one text for all its uses.
    """
    assert graph.objective is not None
    needed = graph.reached([graph.objective])
    seen = set(_calls(graph, items))
    nodes = [node for node in graph.nodes if node.name in needed]
    whole = [graph.objective]
    for node in nodes:
        if node.name not in seen:
            whole += [Value(node.name), *node.inputs, *node.ports.values()]

    def alone(node: Node, places: Places) -> bool:
        """Whether a step can be run for these tokens, and they are a slice that is worth its copy."""
        if not places or not makes_tokens(node) or 2 * len(places) > node.typing.output.shape[0].bound:
            return False
        if places != tuple(range(places[0], places[-1] + 1)) or places[0] < 0 <= places[-1]:
            return False
        if isinstance(node.operator, Keep | Drop):
            return taken(node.operator, graph.type_of(node.inputs[0]), node) is not None
        return node.operator.narrows or acts_on_tokens(node, graph.type_of)

    return wanted(nodes, graph.type_of, whole, alone)


def opened(graph: ModelGraph, items: Iterable[Item], narrow: dict[Value, Places]) -> Sequence[Item]:
    """The same items, those stages and layers opened whose steps make or read narrowed values."""
    touched = {node.name for node in graph.nodes if _values(node) & narrow.keys()}
    needed = graph.reached([graph.objective]) if graph.objective is not None else frozenset[str]()

    def open(items: Iterable[Item]) -> Iterator[Item]:
        for item in items:
            if not made_by(item) & needed:
                continue
            if (
                isinstance(item, Apply)
                and _is_own(graph, item)
                and touched & {*calls_inside(graph.scopes, item.scope)}
            ):
                yield from open(graph.scopes[item.scope].body)
            elif isinstance(item, Loop):
                yield from open_layers(item)
            else:
                yield item

    def open_layers(loop: Loop) -> Iterator[Item]:
        """The layers before the first one that is opened stay a loop."""
        inside = [touched & {*calls_inside(graph.scopes, layer)} for layer in loop.layers]
        first = next((place for place, found in enumerate(inside) if found), len(inside))
        if first == len(inside):
            yield loop
            return
        if first:
            (result,) = graph.scopes[loop.layers[first - 1]].results
            yield Loop(loop.layers[:first], loop.argument, result)
        for layer in loop.layers[first:]:
            yield from open(graph.scopes[layer].body)

    return [*open(items)] if narrow else [*items]


def cut(places: Places, of: Places) -> Cut:
    """Where a slice of tokens lies in a tensor that holds these of them."""
    assert places is not None
    start = places[0] - (of[0] if of else 0)
    return start, start + len(places) or None


def _calls(graph: ModelGraph, items: Iterable[Item]) -> Iterator[str]:
    """The steps that items call, those inside a scope at its first use included."""
    for item in items:
        match item:
            case Call(node=name):
                yield name
            case Apply(scope=path) if _is_own(graph, item):
                yield from _calls(graph, graph.scopes[path].body)
            case Loop(layers=layers):
                for layer in layers:
                    yield from _calls(graph, graph.scopes[layer].body)


def _is_own(graph: ModelGraph, item: Apply) -> bool:
    """Whether this is the use that the scope's text was recorded at."""
    scope = graph.scopes[item.scope]
    return [*item.arguments] == scope.parameters and [*item.results] == scope.results


def _values(node: Node) -> set[Value]:
    return {Value(node.name), *node.inputs, *node.ports.values()}
