"""A graph as boxes in groups, with arrows: what every kind of drawing draws."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

from crate_dsl.compiler.graph import ModelGraph
from crate_dsl.compiler.types import TensorType
from crate_dsl.show.pairs import paired_rows
from crate_dsl.show.steps import Row, edges_of, rows_of


@dataclass(frozen=True, slots=True)
class Box:
    """An input, target or output, or a row of equal steps.

    `place` is its place in the drawing's order; `groups` are the owners around it, the outermost first.
    """

    place: int
    word: str
    name: str
    type: str
    groups: tuple[str, ...] = ()
    row: Row | None = None
    training: bool = False

    @property
    def title(self) -> str:
        return self.word if self.row is None else self.row.parts[-1]


@dataclass(frozen=True, slots=True)
class Group:
    """An owner: a stage, the layers of a repeat, a binding. `layers` is how many equal layers it stands for."""

    name: str
    layers: int
    inside: tuple[Box | Group, ...]


@dataclass(frozen=True, slots=True)
class Drawing:
    """`boxes` in order; `inside`, the same boxes in their groups; `arrows` between boxes by their places.

    `pairs` are boxes of which the later one undoes the earlier.
    """

    boxes: tuple[Box, ...]
    inside: tuple[Box | Group, ...]
    arrows: tuple[tuple[int, int], ...]
    pairs: tuple[tuple[int, int], ...]


def drawing(graph: ModelGraph, *, fold: bool = True) -> Drawing:
    """The boxes and arrows of a graph.

    Arrows all lead forward: those from one folded layer to the next are left out.
    """
    boxes: list[Box] = []
    starts: dict[str, int] = {}
    ends: dict[str, int] = {}

    def add_step(row: Row) -> None:
        starts.update(dict.fromkeys((step.name for step in row.steps), len(boxes)))
        step = row.first
        groups = _groups(row.parts)
        boxes.append(Box(len(boxes), step.node.word, row.name, step.type, groups, row, not step.exported))

    def add_end(known: dict[str, int], word: str, name: str, type_: TensorType) -> None:
        known[name] = len(boxes)
        boxes.append(Box(len(boxes), word, name, str(type_), training=word == "target"))

    rows = rows_of(graph, fold=fold)
    for name, entry in graph.inputs.items():
        add_end(starts, "input", name, entry.type)
    for row in (row for row in rows if row.first.exported):
        add_step(row)
    for name, value in graph.outputs.items():
        add_end(ends, "output", name, graph.type_of(value))
    for name, entry in graph.targets.items():
        add_end(starts, "target", name, entry.type)
    for row in (row for row in rows if not row.first.exported):
        add_step(row)
    arrows = {
        (starts[edge.source], (ends if edge.output else starts)[edge.target])
        for edge in edges_of(graph, targets=True)
    }
    forward = tuple(sorted((source, target) for source, target in arrows if source < target))
    paired = sorted(
        (starts[undone.first.name], starts[step.first.name]) for step, undone in paired_rows(graph, rows)
    )
    return Drawing(tuple(boxes), tuple(_grouped(boxes, 0)), forward, tuple(paired))


def _groups(parts: tuple[str, ...]) -> tuple[str, ...]:
    """The owners of a step by name, the numbers of layers with their repeat: (`encoder.0-11`,)."""
    groups: list[str] = []
    for part in parts[:-1]:
        if part[0].isdigit() and groups:
            groups[-1] += f".{part}"
        else:
            groups.append(part)
    return tuple(groups)


def _grouped(boxes: list[Box], depth: int) -> Iterator[Box | Group]:
    for name, run in groupby(boxes, lambda box: box.groups[depth] if len(box.groups) > depth else ""):
        if not name:
            yield from run
            continue
        low, _, high = name.rpartition(".")[2].partition("-")
        layers = int(high) - int(low) + 1 if high else 1
        yield Group(name, layers, tuple(_grouped(list(run), depth + 1)))
