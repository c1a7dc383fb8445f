"""The growing model graph: nodes, weights and scopes are entered here while a spec is read, each once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import networkx as nx

from crate_dsl.compiler.graph import Apply, Average, Call, Entry, Loop, Node, Pair, Scope, Value
from crate_dsl.compiler.meanings import Namespace, Tensor
from crate_dsl.compiler.operators import Constraint, Operator, Ref, Slot, Typing, Weight
from crate_dsl.compiler.types import Dim, Shapes, TensorType
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
    """A step that exists already is asked to work on another layout of tokens, and no shape tells the two apart."""


class PathClash(Exception):
    """Two things that a slow copy holds would have one path there: they follow `first` and `second`."""

    def __init__(self, path: str, first: str, second: str) -> None:
        super().__init__(path)
        self.path, self.first, self.second = path, first, second


def may_be_equal(one: Shapes, two: Shapes) -> bool:
    """Whether two uses can meet in their shapes when the network runs: an open length is any up to its bound."""

    def together(a: Dim, b: Dim) -> bool:
        if a.static is not None and b.static is not None:
            return a == b
        return (a.static is None or a.static <= b.bound) and (b.static is None or b.static <= a.bound)

    return len(one) == len(two) and all(
        len(a) == len(b) and all(map(together, a, b)) for a, b in zip(one, two, strict=True)
    )


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
class Averaging:
    """Where the steps of a slow copy are read, and what their weights follow.

    The copy's path is `top`. What lies under `here` follows what lies under `source`: the stage itself, or one that it
    uses. Weights from elsewhere have copies of their own under `top`, too.
    """

    top: str
    here: str
    source: str
    momentum: float

    def followed(self, path: str) -> str:
        """The path of what a thing of the copy follows."""
        return self.source + path.removeprefix(self.here)

    def holds(self, path: str) -> bool:
        """Whether a path is one of the copy's own."""
        return path == self.top or path.startswith(f"{self.top}.")

    def inside(self, path: str) -> str:
        """Where the copy keeps its own of something from elsewhere."""
        return f"{self.top}.{path}"


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
    """Where steps are being read: who owns them, which scope records them, which names are seen, and what led there.

    `batch` says what the batch axis holds: samples, or (by the path of its fold) the items of an `each`.
    """

    owner: Owner
    scope: Scope | None
    names: Namespace
    uses: tuple[Use, ...] = ()
    blocks: tuple[str, ...] = ()
    frozen: bool = False
    objective: bool = False
    dry: bool = False
    averaging: Averaging | None = None
    batch: str = ""

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
        #: What each weight of a slow copy follows, and likewise each step.
        self.averages: dict[str, Average] = {}
        self.followed: dict[str, str] = {}
        #: What the batch axis of a node's results holds, where these are not samples.
        self.batches: dict[str, str] = {}
        self._facts: dict[str, dict[Shapes, Any]] = {}
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

    def follow(self, path: str, source: str, momentum: float) -> None:
        """Let a weight of a slow copy follow another one. Raises `PathClash` where it follows a third."""
        known = self.averages.setdefault(path, Average(source, momentum))
        if known.source != source:
            raise PathClash(path, known.source, source)

    def type_of(self, value: Value) -> TensorType:
        item = self.graph.nodes[value.node]["item"]
        found: TensorType = item.type if isinstance(item, Entry) else item.typing.outputs[value.index]
        return found

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
            PathClash: in a slow copy, another step has its path.
        """
        if place.averaging is not None:
            source = place.averaging.followed(path)
            if (known := self.followed.setdefault(path, source)) != source:
                raise PathClash(path, known, source)
        weights: dict[str, Ref] = {}
        for name, weight in typing.weights.items():
            slot_path = self._owned(f"{path}.{name}", weight, place.averaging)
            if not isinstance(weight, Slot) and weight.constraint != "none":
                self._constrain(slot_path, weight.constraint)
            if not place.frozen and (not isinstance(weight, Slot) or weight.trained):
                self.trained.add(slot_path)
            weights[name] = Ref(slot_path, "detached" if place.frozen else "same")
        shapes = tuple(self.type_of(value).shape for value in inputs)
        known_facts = self._facts.setdefault(path, {})
        if shapes not in known_facts or known_facts[shapes] != typing.facts:
            for others, facts in known_facts.items():
                if facts != typing.facts and may_be_equal(others, shapes):
                    raise LayoutMismatch
            known_facts[shapes] = typing.facts
        self._uses[path] += 1
        name = path if self._uses[path] == 1 else f"{path}@{self._uses[path]}"
        uses = tuple(use.label for use in place.uses)
        node = Node(name, path, operator, typing, inputs, dict(ports), weights, span, uses)
        self.graph.add_node(name, item=node)
        if place.batch:
            self.batches[name] = place.batch
        for key, value in [*((str(i), value) for i, value in enumerate(inputs)), *ports.items()]:
            self.graph.add_edge(value.node, name, key=key, value=value)
        if place.scope is not None:
            place.scope.body.append(Call(name))
        return tuple(Tensor(Value(name, i), type_) for i, type_ in enumerate(typing.outputs))

    def _owned(self, path: str, weight: Slot | Weight, averaging: Averaging | None) -> str:
        """The path of the weight that a step reads: its own, at `path`, or one from elsewhere."""
        if isinstance(weight, Slot):
            self.slot(path, weight)
            if averaging is not None:
                self.follow(path, averaging.followed(path), averaging.momentum)
            return path
        if averaging is None or averaging.holds(weight.name):
            return weight.name
        copied = averaging.inside(weight.name)
        self.slot(copied, self.slots[weight.name])
        self.follow(copied, weight.name, averaging.momentum)
        return copied

    def uses_of(self, path: str) -> Iterator[Node]:
        """Every use of a step so far, the first one first."""
        for count in range(1, self._uses[path] + 1):
            node: Node = self.graph.nodes[path if count == 1 else f"{path}@{count}"]["item"]
            yield node

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

    def learn(self, path: str, slot: Slot, place: Place) -> None:
        self._owned(path, slot, place.averaging)
        if "." not in path:
            self.learns[path] = slot
