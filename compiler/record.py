"""The growing model graph: nodes, weights and scopes are entered here while a spec is read, each once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import networkx as nx

from crate_dsl.compiler.graph import Apply, Call, Entry, Loop, Node, Scope, Value
from crate_dsl.compiler.meanings import Namespace, Tensor
from crate_dsl.compiler.operators import Operator, Ref, Slot, Typing
from crate_dsl.compiler.types import TensorType
from crate_dsl.language.diagnostics import Label
from crate_dsl.language.source import Span

#: The most steps that a spec may expand to: CRATE of 100,000 layers. More is a mistake, found before time is spent.
MAXIMUM_NODES = 200_000
#: The most blocks, stages and repeats that may be inside one another.
MAXIMUM_DEPTH = 64


class TooLarge(Exception):
    """The spec expands to more steps than `MAXIMUM_NODES`."""


class SlotMismatch(Exception):
    """A weight that exists already is asked for in another shape: a stage is used at two widths."""

    def __init__(self, path: str, first: Slot, second: Slot) -> None:
        super().__init__(path)
        self.path, self.first, self.second = path, first, second


class LayoutMismatch(Exception):
    """A step that exists already is asked to work on another layout of tokens."""


@dataclass(slots=True)
class Owner:
    """Whoever owns unnamed steps: gives them their paths, `owner.step_k` for the k-th of a name."""

    path: str
    counts: Counter[str] = field(default_factory=Counter)

    def path_of(self, name: str) -> str:
        self.counts[name] += 1
        count = self.counts[name]
        own = name if count == 1 else f"{name}_{count}"
        return f"{self.path}.{own}" if self.path else own

    def layers(self) -> str:
        """The prefix of a repeat's layers: the owner's own path, or `owner.repeat_k` from the second repeat on."""
        self.counts["repeat"] += 1
        count = self.counts["repeat"]
        return self.path if count == 1 else f"{self.path}.repeat_{count}"


@dataclass(frozen=True, slots=True)
class Place:
    """Where steps are being read: who owns them, which scope records them, which names are seen, and what led there."""

    owner: Owner
    scope: Scope | None
    names: Namespace
    uses: tuple[Label, ...] = ()
    blocks: tuple[str, ...] = ()
    frozen: bool = False
    objective: bool = False
    dry: bool = False

    def within(self, text: str, span: Span) -> Place:
        """One level further in, with the use that led there."""
        return replace(self, uses=(Label(span=span, text=text), *self.uses))

    @property
    def depth(self) -> int:
        return len(self.uses)


class Recorder:
    """Enters nodes, weights and scopes."""

    def __init__(self) -> None:
        self.graph = nx.MultiDiGraph()
        self.scopes: dict[str, Scope] = {}
        self.slots: dict[str, Slot] = {}
        self.learns: dict[str, Slot] = {}
        self.names: dict[Value, str] = {}
        self.trained: set[str] = set()
        self._first: dict[str, Node] = {}
        self._uses: Counter[str] = Counter()

    def entry(self, entry: Entry) -> Tensor:
        """An input or target."""
        self.graph.add_node(entry.name, item=entry)
        value = Value(entry.name)
        self.names[value] = entry.name
        return Tensor(value, entry.type)

    def slot(self, path: str, slot: Slot) -> None:
        """A weight. Raises `SlotMismatch` where it exists in another shape."""
        known = self.slots.setdefault(path, slot)
        if known.shape != slot.shape:
            raise SlotMismatch(path, known, slot)

    def step(
        self,
        path: str,
        operator: Operator,
        typing: Typing,
        inputs: tuple[Value, ...],
        ports: Mapping[str, Value],
        span: Span,
        place: Place,
    ) -> tuple[Tensor, ...]:
        """One use of a step; its results.

        Raises:
            TooLarge: the graph is full.
            SlotMismatch, LayoutMismatch: the step was used before, on something else.
        """
        if len(self.graph) >= MAXIMUM_NODES:
            raise TooLarge
        weights: dict[str, Ref] = {}
        for name, weight in typing.weights.items():
            slot_path = f"{path}.{name}" if isinstance(weight, Slot) else weight.name
            if isinstance(weight, Slot):
                self.slot(slot_path, weight)
            if not place.frozen:
                self.trained.add(slot_path)
            weights[name] = Ref(slot_path, "detached" if place.frozen else "same")
        first = self._first.get(path)
        if first is not None and first.typing.facts != typing.facts:
            raise LayoutMismatch
        self._uses[path] += 1
        name = path if self._uses[path] == 1 else f"{path}@{self._uses[path]}"
        node = Node(name, path, operator, typing, inputs, dict(ports), weights, span, place.uses)
        self._first.setdefault(path, node)
        self.graph.add_node(name, item=node)
        for key, value in [*((str(i), value) for i, value in enumerate(inputs)), *ports.items()]:
            self.graph.add_edge(value.node, name, key=key, value=value)
        if place.scope is not None:
            place.scope.body.append(Call(name))
        return tuple(Tensor(Value(name, i), type_) for i, type_ in enumerate(typing.outputs))

    def scope(self, path: str, span: Span) -> Scope:
        """A new owner of steps."""
        self.scopes[path] = scope = Scope(path, span)
        return scope

    def apply(
        self, place: Place, scope: str, arguments: tuple[Value, ...], results: tuple[Value, ...], frozen: bool
    ) -> None:
        if place.scope is not None:
            place.scope.body.append(Apply(place.owner.path, scope, arguments, results, frozen))

    def loop(self, place: Place, layers: tuple[str, ...], argument: Value, result: Value) -> None:
        if place.scope is not None:
            place.scope.body.append(Loop(layers, argument, result))

    def name(self, value: Value, name: str) -> None:
        self.names.setdefault(value, name)

    def learn(self, path: str, slot: Slot, type_: TensorType) -> None:
        self.slot(path, slot)
        if "." not in path:
            self.learns[path] = slot
