"""The growing model graph: nodes, weights and scopes are entered here while a spec is read, each once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import networkx as nx

from crate_dsl.compiler.graph import Apply, Call, Entry, Loop, Node, Pair, Scope, Value
from crate_dsl.compiler.meanings import Namespace, Tensor
from crate_dsl.compiler.operators import Constraint, Operator, Ref, Slot, Typing
from crate_dsl.compiler.types import TensorType
from crate_dsl.language.diagnostics import Label
from crate_dsl.language.source import Span

#: The most steps that a spec may expand to, uses of blocks and stages counted: CRATE of nearly 100,000 layers. More is
#: a mistake, found before time is spent.
MAXIMUM_STEPS = 200_000
#: The most blocks, stages and repeats that may be inside one another.
MAXIMUM_DEPTH = 64


class TooLarge(Exception):
    """The spec expands to more steps than `MAXIMUM_STEPS`. `span` is where that is known."""

    def __init__(self, span: Span) -> None:
        super().__init__(span)
        self.span = span


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
    taken: set[str] = field(default_factory=set)

    def path_of(self, name: str) -> str:
        """A path that nothing else has."""
        while True:
            self.counts[name] += 1
            own = name if self.counts[name] == 1 else f"{name}_{self.counts[name]}"
            if own not in self.taken:
                self.taken.add(own)
                return f"{self.path}.{own}" if self.path else own

    def layers(self) -> str:
        """The prefix of a repeat's layers: the owner's own path, or `owner.repeat_k` from the second repeat on."""
        path = self.path_of("repeat")
        return self.path if self.counts["repeat"] == 1 else path


@dataclass(frozen=True, slots=True)
class Use:
    """A use of a block, stage, repeat or residual that led to where steps are being read.

    `body` is its own text where that says no less than the label: a mistake inside it needs no word about the use.
    """

    label: Label
    body: Span | None = None

    def evident(self, span: Span) -> bool:
        """Whether who sees the place of a mistake also sees this use."""
        body = self.body
        inside = (
            body is not None
            and body.source is span.source
            and body.start <= span.start
            and span.end <= body.end
        )
        return inside or self.label.span == span


@dataclass(frozen=True, slots=True)
class Place:
    """Where steps are being read: who owns them, which scope records them, which names are seen, and what led there."""

    owner: Owner
    scope: Scope | None
    names: Namespace
    uses: tuple[Use, ...] = ()
    blocks: tuple[str, ...] = ()
    frozen: bool = False
    objective: bool = False
    dry: bool = False

    def within(self, text: str, span: Span, body: Span | None = None) -> Place:
        """One level further in, with the use that led there."""
        return replace(self, uses=(Use(Label(span=span, text=text), body), *self.uses))

    def led_to(self, span: Span) -> tuple[Label, ...]:
        """The chain of uses that led to a mistake, innermost first."""
        return tuple(use.label for use in self.uses if not use.evident(span))


class Recorder:
    """Enters nodes, weights and scopes."""

    def __init__(self) -> None:
        self.graph = nx.MultiDiGraph()
        self.scopes: dict[str, Scope] = {}
        self.slots: dict[str, Slot] = {}
        self.learns: dict[str, Slot] = {}
        self.names: dict[Value, str] = {}
        self.trained: set[str] = set()
        self.pairs: list[Pair] = []
        self.steps = 0
        self._first: dict[str, Node] = {}
        self._uses: Counter[str] = Counter()

    def count(self, span: Span) -> None:
        """One more step has been read. Raises `TooLarge` where there are too many."""
        self.steps += 1
        if self.steps > MAXIMUM_STEPS:
            raise TooLarge(span)

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

    def _constrain(self, path: str, constraint: Constraint) -> None:
        """Hold a weight that exists to what a step that borrows it needs."""
        self.slots[path] = constrained = replace(self.slots[path], constraint=constraint)
        if path in self.learns:
            self.learns[path] = constrained

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
            SlotMismatch, LayoutMismatch: the step was used before, on something else.
        """
        weights: dict[str, Ref] = {}
        for name, weight in typing.weights.items():
            slot_path = f"{path}.{name}" if isinstance(weight, Slot) else weight.name
            if isinstance(weight, Slot):
                self.slot(slot_path, weight)
            elif weight.constraint != "none":
                self._constrain(slot_path, weight.constraint)
            if not place.frozen and (not isinstance(weight, Slot) or weight.trained):
                self.trained.add(slot_path)
            weights[name] = Ref(slot_path, "detached" if place.frozen else "same")
        first = self._first.get(path)
        if first is not None and first.typing.facts != typing.facts:
            raise LayoutMismatch
        self._uses[path] += 1
        name = path if self._uses[path] == 1 else f"{path}@{self._uses[path]}"
        uses = tuple(use.label for use in place.uses)
        node = Node(name, path, operator, typing, inputs, dict(ports), weights, span, uses)
        self._first.setdefault(path, node)
        self.graph.add_node(name, item=node)
        for key, value in [*((str(i), value) for i, value in enumerate(inputs)), *ports.items()]:
            self.graph.add_edge(value.node, name, key=key, value=value)
        if place.scope is not None:
            place.scope.body.append(Call(name))
        return tuple(Tensor(Value(name, i), type_) for i, type_ in enumerate(typing.outputs))

    def scope(self, path: str, span: Span, pair: str | None = None) -> Scope:
        """A new owner of steps; as a layer of an inverse, with the layer that it undoes."""
        self.scopes[path] = scope = Scope(path, span, pair)
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
