"""A network while it is being lowered: steps in order, and their weights as arrays."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crate_dsl.compiler.graph import Entry, ModelGraph, Node, Value, flat, items_of
from crate_dsl.compiler.operators import Operator, Ref, Typing, with_ports
from crate_dsl.compiler.types import TensorType

Array = NDArray[np.floating[Any]]


@dataclass
class Draft:
    """The exported part of a network. A rewrite reads one draft and writes another (`rebuild`).

    `weights` are float32 arrays by slot path; rewrites compute new ones in float64. While a draft is written, `before`
    is the one that is read, and `moved` says what became of its values.
    """

    source: ModelGraph
    weights: dict[str, Array]
    before: Draft | None = None
    nodes: list[Node] = field(default_factory=list)
    outputs: dict[str, Value] = field(default_factory=dict)
    names: dict[Value, str] = field(default_factory=dict)
    moved: dict[Value, Value] = field(default_factory=dict)
    _by_name: dict[str, Node] = field(default_factory=dict)
    _uses: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    @staticmethod
    def of(graph: ModelGraph, weights: Mapping[str, Array]) -> Draft:
        """The exported steps of a graph as they are."""
        draft = Draft(graph, dict(weights), outputs=dict(graph.outputs), names=dict(graph.names))
        for node in graph.nodes:
            if node.name in graph.exported:
                draft._append(node)
        return draft

    # -------------------------------------------------------------- what may be asked

    def node(self, value: Value) -> Node | None:
        """The step that a value comes from; None where it is an input."""
        return self._by_name.get(value.node)

    def type_of(self, value: Value) -> TensorType:
        node = self.node(value)
        if node is not None:
            return node.typing.outputs[value.index]
        entry = self.source.item(value.node)
        assert isinstance(entry, Entry)
        return entry.type

    @cached_property
    def users(self) -> Mapping[Value, list[Node]]:
        """The steps that read each value, once for each time that they do."""
        found: dict[Value, list[Node]] = defaultdict(list)
        for node in self.nodes:
            for value in (*node.inputs, *node.ports.values()):
                found[value].append(node)
        return found

    @cached_property
    def places(self) -> Mapping[str, int]:
        """Where each step stands in the order."""
        return {node.name: place for place, node in enumerate(self.nodes)}

    def only_user(self, value: Value) -> Node | None:
        """The step that alone reads a value, however often; None where there are others, or it is an output."""
        names = {node.name for node in self.users.get(value, [])}
        if len(names) != 1 or value in self.outputs.values():
            return None
        return self._by_name[names.pop()]

    def number(self, node: Node, argument: str) -> float | Array:
        """An argument of a step of the draft before that is a number, or learned and so a weight, in float64."""
        if argument in node.weights:
            return self.array(node, argument)
        return float(getattr(node.operator, argument))

    def array(self, node: Node, weight: str) -> Array:
        """A weight of a step of the draft before as it reads it, in float64."""
        ref = node.weights[weight]
        array = np.asarray((self.before or self).weights[ref.slot], np.float64)
        return array.T if ref.view == "transpose" else array

    @property
    def flops(self) -> int:
        items = items_of(self.nodes)
        return sum(node.typing.flops * items[node.name] for node in self.nodes)

    # -------------------------------------------------------------- writing

    def keep(
        self,
        node: Node,
        operator: Operator | None = None,
        inputs: tuple[Value, ...] | None = None,
        ports: Mapping[str, Value] | None = None,
    ) -> tuple[Value, ...]:
        """A step of the draft before with its weights, as it was or with another operator or other inputs."""
        inputs = node.inputs if inputs is None else inputs
        ports = node.ports if ports is None else ports
        return self._write(node, node.path, operator or node.operator, inputs, ports, node.weights)

    def add(
        self,
        by: Node,
        part: str,
        operator: Operator,
        *inputs: Value,
        weights: Mapping[str, Array] = {},
        ports: Mapping[str, Value] = {},
    ) -> Value:
        """A new step for (a part of) the step `by`, which owns these weights. Its results' first is given.

        Uses of one step share the weights of their parts as long as these are equal.
        """
        path = f"{by.path}.{part}" if part else by.path
        return self._write(by, path, operator, inputs, ports, weights)[0]

    def _write(
        self,
        by: Node,
        path: str,
        operator: Operator,
        inputs: tuple[Value, ...],
        ports: Mapping[str, Value],
        weights: Mapping[str, Array | Ref],
    ) -> tuple[Value, ...]:
        """Append a step; its weights are new arrays, or those of the draft before."""
        if ports:
            operator = with_ports(operator, {name: self.type_of(value) for name, value in ports.items()})
        typing = operator.infer(*map(self.type_of, inputs))
        arrays = {
            name: self._before(given) if isinstance(given, Ref) else np.asarray(given, np.float32)
            for name, given in weights.items()
        }
        own = {name: array for name, array in arrays.items() if name in typing.slots}
        path = self._path(path, operator, typing, own)
        refs = {name: given for name, given in weights.items() if isinstance(given, Ref)}
        refs |= {name: Ref(f"{path}.{name}") for name in own}
        self.weights |= {ref.slot: arrays[name] for name, ref in refs.items()}
        uses = self._uses[path]
        uses.append(name := path if not uses else f"{path}@{len(uses) + 1}")
        return self._append(Node(name, path, operator, typing, inputs, dict(ports), refs, by.span, by.uses))

    def _before(self, ref: Ref) -> Array:
        assert self.before is not None
        return self.before.weights[ref.slot]

    def _path(self, wanted: str, operator: Operator, typing: Typing, own: Mapping[str, Array]) -> str:
        """The path, numbered if there is a step already that is not the same one."""
        path, count = wanted, 1
        while self._uses[path]:
            known = self.step(path)
            if (known.operator, known.typing.facts) == (operator, typing.facts) and all(
                self.weights[f"{path}.{name}"] is array
                or np.array_equal(self.weights[f"{path}.{name}"], array)
                for name, array in own.items()
            ):
                break
            count += 1
            path = f"{wanted}_{count}"
        return path

    def step(self, name: str) -> Node:
        """The step of that name."""
        return self._by_name[name]

    def _append(self, node: Node) -> tuple[Value, ...]:
        assert node.name not in self._by_name, f"two steps are called {node.name}"
        self.nodes.append(node)
        self._by_name[node.name] = node
        return tuple(Value(node.name, index) for index in range(len(node.typing.outputs)))

    def moved_to(self, value: Value) -> Value:
        """What became of a value of the draft before; an input stays what it is."""
        return self.moved.get(value, value)

    # -------------------------------------------------------------- the end

    def graph(self) -> tuple[ModelGraph, dict[str, NDArray[np.float32]]]:
        """The lowered network as a flat model graph, and its weights in float32."""
        read = {ref.slot for node in self.nodes for ref in node.weights.values()}
        weights = {
            slot: np.asarray(array, np.float32, order="C")
            for slot, array in self.weights.items()
            if slot in read
        }
        graph = flat(self.source, self.source.export_inputs, self.nodes, self.outputs, self.names)
        return graph, weights


#: What a rewrite makes of a step: the values that stand for its results. The step's inputs are the new draft's.
Visit = Callable[[Draft, Node], Sequence[Value]]


def rebuild(old: Draft, visit: Visit, finish: Callable[[Draft, Value], Value] | None = None) -> Draft:
    """A draft written anew, step by step in order; what nothing reads any more is left out.

    `finish` says what stands for an output, given what became of it.
    """
    new = Draft(old.source, {}, before=old)
    for node in old.nodes:
        here = replace(
            node,
            inputs=tuple(map(new.moved_to, node.inputs)),
            ports={port: new.moved_to(value) for port, value in node.ports.items()},
        )
        results = visit(new, here)
        for index, value in enumerate(results):
            new.moved[Value(node.name, index)] = value
    new.outputs = {name: new.moved_to(value) for name, value in old.outputs.items()}
    if finish is not None:
        new.outputs = {name: finish(new, value) for name, value in new.outputs.items()}
    new.names = {new.moved_to(value): name for value, name in old.names.items()}
    return pruned(new)


def pruned(draft: Draft) -> Draft:
    """Without steps that no output reaches, and names of values that are gone."""
    needed = {value.node for value in draft.outputs.values()}
    for node in reversed(draft.nodes):
        if node.name in needed:
            needed |= {value.node for value in (*node.inputs, *node.ports.values())}
    kept = Draft(draft.source, draft.weights, outputs=draft.outputs)
    for node in draft.nodes:
        if node.name in needed:
            kept._append(node)
    inputs = draft.source.export_inputs
    kept.names = {v: name for v, name in draft.names.items() if v.node in kept._by_name or v.node in inputs}
    return kept
