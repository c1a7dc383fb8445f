"""The model graph: every step that a spec means, typed, in order, with the weights that it reads.

Two views of the same network:

- the *flat* view, `ModelGraph.graph`: a networkx graph with a node for each use of a step. Types, costs, export and
  drawings are asked of it;
- the *nested* view, `ModelGraph.scopes`: who owns which step, and the order of calls inside each owner, as the spec is
  written. The torch modules are generated from it.

Nodes are called by their spec paths, `owner[.layer].step[_k]`; a stage's second use adds `@2`, since its
weights are the first one's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from typing import Any

import networkx as nx
from pydantic import BaseModel, ConfigDict

from crate_dsl.compiler.operators import Certificate, Form, Mode, Operator, Ref, Slot, Typing
from crate_dsl.compiler.types import TensorType
from crate_dsl.language.diagnostics import Diagnostic, Label
from crate_dsl.language.source import Source, Span


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor of the network: the `index`-th result of a node."""

    node: str
    index: int = 0


@dataclass(frozen=True, slots=True)
class Entry:
    """An input or a target: where data enters. `source` is the draw that stands in where nobody gives it."""

    name: str
    type: TensorType
    span: Span
    source: Form | None = None

    @property
    def word(self) -> str:
        return "input"


@dataclass(frozen=True, slots=True)
class Node:
    """One use of a step. `path` names the step that owns the weights; `name` also tells uses apart."""

    name: str
    path: str
    operator: Operator
    typing: Typing
    inputs: tuple[Value, ...]
    ports: Mapping[str, Value]
    weights: Mapping[str, Ref]
    span: Span
    uses: tuple[Label, ...] = ()

    @property
    def word(self) -> str:
        return type(self.operator).word

    @property
    def slots(self) -> dict[str, Slot]:
        return self.typing.slots

    @property
    def parameters(self) -> int:
        """Numbers in the weights that this step owns."""
        return sum(prod(slot.shape) for slot in self.slots.values())


@dataclass(frozen=True, slots=True)
class Pair:
    """A step that undoes another one: names of nodes, the decoder's and the encoder's.

    `inverse` is the inverse stage (or the binding that holds it), `stage` the stage that it undoes. `certificate` is
    there where the pair is certified, or exact in itself.
    """

    step: str
    undoes: str
    inverse: str
    stage: str
    mode: Mode
    certificate: Certificate | None = None


@dataclass(frozen=True, slots=True)
class Average:
    """What a weight of a slow copy follows: after each step of training it is m times itself and 1 - m times `source`.

    `source` is the path of the weight that it copies, `momentum` is m.
    """

    source: str
    momentum: float


class Cache(BaseModel):
    """What a network for the next tokens is given, and gives, beside them: names of its inputs and outputs.

    `tokens` is the input of the next tokens, `past` that of how many were before, `scores` the first output, and
    `states` are pairs: what is held of the tokens before, and what is to be held after them. A state whose first length
    is known only at run time has none at first; any other is zero at first. Exported files carry it as JSON.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)

    tokens: str
    past: str
    scores: str
    states: tuple[tuple[str, str], ...]


def items_of(nodes: Iterable[Node]) -> dict[str, int]:
    """How many items of each sample lie in the batch axis of each node's results: V inside `each { … }`, else 1.

    Nodes stand behind those that they read.
    """
    found: dict[str, int] = {}
    for node in nodes:
        given = node.inputs or tuple(node.ports.values())
        found[node.name] = node.operator.items(max((found.get(v.node, 1) for v in given), default=1))
    return found


# ------------------------------------------------------------------ the nested view


@dataclass(frozen=True, slots=True)
class Call:
    """Inside a scope: one step is applied."""

    node: str


@dataclass(frozen=True, slots=True)
class Apply:
    """Inside a scope: another scope is applied to values, by `owner`."""

    owner: str
    scope: str
    arguments: tuple[Value, ...]
    results: tuple[Value, ...]
    frozen: bool = False


@dataclass(frozen=True, slots=True)
class Loop:
    """Inside a scope: the layers of a `repeat`, one after another, each taking the last one's result."""

    layers: tuple[str, ...]
    argument: Value
    result: Value


@dataclass(slots=True)
class Scope:
    """An owner of steps: the model (path ""), a stage, a layer of a repeat. Its body is in the order of the text.

    `pair` is the layer that this one undoes, where it is a layer of an inverse.
    """

    path: str
    span: Span
    pair: str | None = None
    parameters: list[Value] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    body: list[Call | Apply | Loop] = field(default_factory=list)
    results: list[Value] = field(default_factory=list)


def made_by(item: Call | Apply | Loop) -> set[str]:
    """The nodes whose results an item of a scope gives to those behind it."""
    match item:
        case Call(node=node):
            return {node}
        case Apply(results=results):
            return {value.node for value in results}
        case Loop(result=result):
            return {result.node}


def calls_inside(scopes: Mapping[str, Scope], path: str) -> Iterator[str]:
    """The names of the nodes that a scope calls, those of stages and layers inside it included."""
    found = scopes.get(path)
    for item in found.body if found else ():
        match item:
            case Call(node=name):
                yield name
            case Apply(scope=inner):
                yield from calls_inside(scopes, inner)
            case Loop(layers=layers):
                for layer in layers:
                    yield from calls_inside(scopes, layer)


# ------------------------------------------------------------------ the model


@dataclass(frozen=True)
class ModelGraph:
    """A checked network. Everything that the compiler and its tools ask of a spec is asked here.

    `pairs` says which step undoes which. `names` gives values the names that the spec gives them; `settings` are the
    parameters' values in force; `learns` are the model's own `learn` tensors by name; `slots` are all weights by path,
    in the order in which they are initialised. `frozen` are the weights that no gradient moves; those of them that
    belong to slow copies (`ema(student)`) follow others, as `averages` says by path. `cache` is there where the network
    takes the next tokens alone.
    """

    model: str
    variant: str | None
    settings: Mapping[str, Any]
    sources: tuple[Source, ...]
    graph: nx.MultiDiGraph
    scopes: Mapping[str, Scope]
    slots: Mapping[str, Slot]
    learns: Mapping[str, Slot]
    frozen: frozenset[str]
    inputs: Mapping[str, Entry]
    targets: Mapping[str, Entry]
    outputs: Mapping[str, Value]
    objective: Value | None
    names: Mapping[Value, str]
    train: Mapping[str, Any]
    pairs: tuple[Pair, ...] = ()
    warnings: tuple[Diagnostic, ...] = ()
    averages: Mapping[str, Average] = field(default_factory=dict)
    cache: Cache | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> ModelGraph:
        """A graph never changes: copies of a network share it."""
        return self

    def item(self, name: str) -> Node | Entry:
        """What stands at a node of the flat graph."""
        item: Node | Entry = self.graph.nodes[name]["item"]
        return item

    def node(self, name: str) -> Node:
        item = self.item(name)
        assert isinstance(item, Node)
        return item

    def type_of(self, value: Value) -> TensorType:
        item = self.item(value.node)
        return item.type if isinstance(item, Entry) else item.typing.outputs[value.index]

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """Every use of a step, each after what it reads."""
        items = (data["item"] for _, data in self.graph.nodes(data=True))
        return tuple(item for item in items if isinstance(item, Node))

    def reached(self, values: Iterable[Value]) -> frozenset[str]:
        """The names of the nodes that these values depend on, their own included."""
        pending = [value.node for value in values]
        seen: set[str] = set()
        while pending:
            name = pending.pop()
            if name not in seen:
                seen.add(name)
                pending.extend(self.graph.predecessors(name))
        return frozenset(seen)

    @cached_property
    def exported(self) -> frozenset[str]:
        """The nodes that the outputs reach: what is exported."""
        return self.reached(self.outputs.values())

    @cached_property
    def export_inputs(self) -> dict[str, Entry]:
        """The inputs that the outputs need, in the order of the spec."""
        return {name: entry for name, entry in self.inputs.items() if name in self.exported}

    @cached_property
    def items(self) -> Mapping[str, int]:
        """How many items of each sample lie in the batch axis of each node's results: V inside `each { … }`, else 1."""
        return items_of(self.nodes)

    @property
    def parameters(self) -> int:
        """Unique trained numbers: frozen ones are not counted (`frozen_parameters`), nor those of slow copies."""
        return sum(prod(slot.shape) for path, slot in self.slots.items() if path not in self.frozen)

    @property
    def frozen_parameters(self) -> int:
        """Numbers that nothing moves, and those of slow copies."""
        return sum(prod(self.slots[path].shape) for path in self.frozen)

    @property
    def averaged_parameters(self) -> int:
        """Numbers in slow copies."""
        return sum(prod(self.slots[path].shape) for path in self.averages)

    @property
    def flops(self) -> int:
        """Operations for one sample, 2 per multiply-add, of what is exported."""
        exported = (node for node in self.nodes if node.name in self.exported)
        return sum(node.typing.flops * self.items[node.name] for node in exported)


def flat(
    source: ModelGraph,
    inputs: Mapping[str, Entry],
    nodes: Iterable[Node],
    outputs: Mapping[str, Value],
    names: Mapping[Value, str],
) -> ModelGraph:
    """A network made of another one's exported part: these steps in order, one after another, nothing nested.

    Nothing trains it: weights are frozen, and there are neither targets nor an objective.
    """
    nodes = list(nodes)
    made = nx.MultiDiGraph()
    for name, entry in inputs.items():
        made.add_node(name, item=entry)
    for node in nodes:
        made.add_node(node.name, item=node)
        made.add_edges_from((value.node, node.name) for value in (*node.inputs, *node.ports.values()))
    read = {ref.slot for node in nodes for ref in node.weights.values()}
    slots = {**source.slots}
    for node in nodes:
        slots |= {node.weights[name].slot: slot for name, slot in node.slots.items()}
    slots = {path: slot for path, slot in slots.items() if path in read}
    return replace(
        source,
        graph=made,
        scopes={"": Scope("", source.scopes[""].span, body=[Call(node.name) for node in nodes])},
        slots=slots,
        learns={name: slot for name, slot in source.learns.items() if name in slots},
        frozen=frozenset(slots),
        inputs=dict(inputs),
        targets={},
        outputs=dict(outputs),
        objective=None,
        names=dict(names),
        pairs=(),
        warnings=(),
        averages={},
    )
