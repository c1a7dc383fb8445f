"""What all renderings of a graph say of its steps: names, types, counts, inverses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

from crate_dsl.compiler.graph import ModelGraph, Node
from crate_dsl.compiler.operators import LearnedInverse, NoInverse, Operator, Weight
from crate_dsl.compiler.types import Layout, TensorType
from crate_dsl.show.folding import Fold, folded, unfolded


@dataclass(frozen=True, slots=True)
class Step:
    """One use of a step. Parameters and operations add up to the graph's own numbers.

    `parameters` counts trained weights, each at the first step that reads it; `flops` is 0 where only training runs the
    step (`exported` is False).
    """

    node: Node
    inputs: tuple[TensorType, ...]
    parameters: int
    flops: int
    exported: bool

    @property
    def name(self) -> str:
        return self.node.name

    @property
    def types(self) -> tuple[TensorType, ...]:
        return self.node.typing.outputs

    @property
    def type(self) -> str:
        return ", ".join(map(str, self.types))

    @property
    def layout(self) -> Layout | None:
        return self.types[0].layout

    @property
    def inverse(self) -> str:
        """The word of the step that undoes it, or why there is none."""
        inverse = self.node.operator.inverse(LearnedInverse(), *self.inputs)
        return inverse.reason if isinstance(inverse, NoInverse) else type(inverse.operator).word

    @property
    def line(self) -> int:
        return self.node.span.line


@dataclass(frozen=True, slots=True)
class Row:
    """Equal steps of successive layers, or a single step. `first` is one of them; the numbers are those of all."""

    parts: tuple[str, ...]
    steps: tuple[Step, ...]

    @property
    def name(self) -> str:
        return ".".join(self.parts)

    @property
    def first(self) -> Step:
        return self.steps[0]

    @property
    def count(self) -> int:
        return len(self.steps)

    @property
    def parameters(self) -> int:
        return sum(step.parameters for step in self.steps)

    @property
    def flops(self) -> int:
        return sum(step.flops for step in self.steps)


def steps_of(graph: ModelGraph) -> list[Step]:
    """Every use of a step, each after what it reads."""
    counted: set[str] = set(graph.frozen)
    found = []
    for node in graph.nodes:
        exported = node.name in graph.exported
        new = {ref.slot for ref in node.weights.values()} - counted
        counted |= new
        parameters = sum(prod(graph.slots[slot].shape) for slot in new)
        inputs = tuple(graph.type_of(value) for value in node.inputs)
        flops = node.typing.flops * graph.items[node.name]
        found.append(Step(node, inputs, parameters, flops if exported else 0, exported))
    return found


def rows_of(graph: ModelGraph, *, fold: bool = True) -> list[Row]:
    """The steps in order; with `fold`, equal layers of a repeat as one."""
    steps = steps_of(graph)
    names = [step.name for step in steps]
    keys = [
        (_alike(s.node.operator), s.types, str(s.layout), s.parameters, s.flops, s.exported) for s in steps
    ]
    found: list[Fold] = (folded if fold else unfolded)(names, keys)
    return [Row(item.parts, tuple(steps[index] for index in item.members)) for item in found]


def _alike(operator: Operator) -> tuple[Any, ...]:
    """What makes two steps of successive layers equal: everything but which `learn` or layer they borrow from."""
    values = (getattr(operator, name) for name in type(operator).model_fields)
    return (type(operator), *(value.type if isinstance(value, Weight) else value for value in values))


def title_of(graph: ModelGraph) -> str:
    """`crate@tiny`."""
    return graph.model if graph.variant is None else f"{graph.model}@{graph.variant}"


def size_of(graph: ModelGraph) -> str:
    """The totals of a network as one line."""
    slow = graph.averaged_parameters
    held = {"frozen": graph.frozen_parameters - slow, "in slow copies": slow}
    beside = " and ".join(f"{count:,} {what}" for what, count in held.items() if count)
    whole = f"{graph.parameters:,} parameters{f' and {beside}' if beside else ''}"
    return f"{whole}, {short(graph.flops)} operations a sample"


def short(number: int) -> str:
    """A large number in four characters and its unit.

    >>> [short(number) for number in (0, 950, 20_480, 4_316_000_000)]
    ['0', '950', '20.5 k', '4.32 G']
    """
    value, unit = float(number), ""
    for unit in ("", "k", "M", "G", "T", "P"):
        if value < 999.5 or unit == "P":
            break
        value /= 1000
    if not unit:
        return str(number)
    return f"{value:.{max(0, 3 - len(str(int(value))))}f} {unit}"


@dataclass(frozen=True, slots=True)
class Edge:
    """A tensor that goes from an input, target or step to a step, or (with `output`) to an output of that name."""

    source: str
    target: str
    output: bool = False


def edges_of(graph: ModelGraph, *, targets: bool = False) -> Iterator[Edge]:
    """The way of every tensor, from inputs (and `targets`, on request) over steps to outputs."""
    seen = set()
    for source, target in graph.graph.edges():
        edge = Edge(source, target)
        if edge not in seen and (targets or source not in graph.targets):
            seen.add(edge)
            yield edge
    for name, value in graph.outputs.items():
        yield Edge(value.node, name, output=True)
