"""How well steps undo each other, measured: a decoder's steps on what the encoder's made of real images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import groupby
from typing import Literal

import torch
from torch import Tensor

from crate_dsl.compiler.graph import ModelGraph, Node, Pair, Value
from crate_dsl.compiler.network import Network
from crate_dsl.compiler.trace import call_step
from crate_dsl.inspection.measures import Samples

Extent = Literal["step", "layer", "stage"]


class Way:
    """There and back: consecutive pairs in the decoder's order, and the values at the ends of both ways.

    The encoder makes `code` of `origin`; the decoder's steps from `start` to `end` are to make `origin` of `code`.
    """

    def __init__(self, graph: ModelGraph, extent: Extent, pairs: list[Pair]) -> None:
        first, last = graph.node(pairs[0].step), graph.node(pairs[-1].step)
        self.extent, self.pairs = extent, pairs
        self.code = Value(pairs[0].undoes)
        self.origin = _taken(graph.node(pairs[-1].undoes))
        self.start, self.end = _taken(first), Value(last.name)
        self.steps = between(graph, self.start, self.end)
        self.errors = Samples()

    @property
    def name(self) -> str:
        """What is undone: a step, a layer or a stage of the encoder."""
        path = self.pairs[0].undoes
        return {"step": path, "layer": _owner(path), "stage": self.pairs[0].stage}[self.extent]

    @property
    def undone_by(self) -> str:
        path = self.pairs[0].step
        return {"step": path, "layer": _owner(path), "stage": self.pairs[0].inverse}[self.extent]

    def back(self, net: Network, code: Tensor) -> Tensor:
        """The decoder's steps on a code."""
        values = {self.start: code}
        for node in self.steps:
            piped = [values[value] for value in node.inputs]
            ports = {name: values[value] for name, value in node.ports.items()}
            results, _ = call_step(net, node, piped, ports)
            values |= {Value(node.name, at): result for at, result in enumerate(results)}
        return values[self.end]


class Pairs:
    """Gathers ‖x̂ - x‖ / ‖x‖ of each image for every step, layer and stage that has an inverse."""

    def __init__(self, graph: ModelGraph) -> None:
        pairs = [pair for pair in graph.pairs if {pair.step, pair.undoes} <= graph.exported]
        self.ways: list[Way] = []
        grouped: list[tuple[Extent, Callable[[Pair], object]]] = [
            ("stage", lambda pair: (pair.inverse, pair.stage)),
            ("layer", lambda pair: (_owner(pair.step), _owner(pair.undoes))),
            ("step", lambda pair: pair.step),
        ]
        for extent, key in grouped:
            groups = [list(group) for _, group in groupby(pairs, key)]
            # A stage of one layer, or a layer of one step, is not told twice.
            self.ways += [Way(graph, extent, group) for group in groups if extent == "step" or len(group) > 1]
        self.read = frozenset(value.node for way in self.ways for value in (way.origin, way.code))

    @torch.no_grad()
    def compare(self, net: Network, values: Mapping[str, Tensor]) -> None:
        """All comparisons of a batch. `values` are those of the paths that are `read`."""
        for way in self.ways:
            origin = values[way.origin.node]
            difference = (way.back(net, values[way.code.node]) - origin).flatten(1).double()
            length_b = origin.flatten(1).double().norm(dim=1)
            way.errors.add(difference.norm(dim=1) / length_b.masked_fill(length_b == 0, 1))


def undoing(graph: ModelGraph, pair: Pair) -> list[Node]:
    """The nodes that undo a step, in order: one, or those of an iteration."""
    step = graph.node(pair.step)
    return between(graph, _taken(step), Value(step.name))


def between(graph: ModelGraph, start: Value, end: Value) -> list[Node]:
    """The nodes that lead from one value of a chain to another, in order."""
    needed: dict[str, Node] = {}
    pending = [end]
    while pending:
        value = pending.pop()
        if value != start and value.node not in needed:
            node = needed[value.node] = graph.node(value.node)
            pending += [*node.inputs, *node.ports.values()]
    order = {node.name: at for at, node in enumerate(graph.nodes)} if len(needed) > 1 else {}
    return sorted(needed.values(), key=lambda node: order.get(node.name, 0))


def _taken(node: Node) -> Value:
    """What a step of a chain takes: what is piped in, or the left side of a residual's sum or difference."""
    return node.inputs[0] if node.inputs else node.ports["left"]


def _owner(path: str) -> str:
    return path.partition("@")[0].rpartition(".")[0]
