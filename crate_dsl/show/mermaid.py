"""A graph as a Mermaid flowchart, which GitHub and many editors draw."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from itertools import count

from crate_dsl.compiler.graph import ModelGraph
from crate_dsl.show.drawing import Box, Group, drawing
from crate_dsl.show.steps import size_of, title_of

#: The brackets around a box: inputs, targets and outputs are round.
ROUND, SQUARE = ('(["', '"])'), ('["', '"]')


def mermaid(graph: ModelGraph, *, fold: bool = True) -> str:
    """The graph as a flowchart; with `fold`, equal layers of a repeat are one group."""
    drawn = drawing(graph, fold=fold)
    lines = ["---", f'title: "{title_of(graph)}: {size_of(graph)}"', "---", "flowchart TD"]
    lines += _inside(drawn.inside, count(), 1)
    lines += [f"  n{source} --> n{target}" for source, target in drawn.arrows]
    lines += [f"  n{undone} -. undone by .-> n{step}" for undone, step in drawn.pairs]
    dashed = ",".join(f"n{box.place}" for box in drawn.boxes if box.training)
    if dashed:
        lines += ["  classDef training stroke-dasharray: 4 3", f"  class {dashed} training"]
    return "\n".join(lines)


def _inside(inside: tuple[Box | Group, ...], numbers: Iterator[int], depth: int) -> Iterator[str]:
    margin = "  " * depth
    for item in inside:
        if isinstance(item, Group):
            layers = f" × {item.layers}" if item.layers > 1 else ""
            yield f'{margin}subgraph g{next(numbers)}["{_text(item.name + layers)}"]'
            yield from _inside(item.inside, numbers, depth + 1)
            yield f"{margin}end"
        else:
            left, right = SQUARE if item.row else ROUND
            yield f"{margin}n{item.place}{left}{'<br/>'.join(map(_text, _lines(item)))}{right}"


def _lines(box: Box) -> list[str]:
    if box.row is None:
        return [f"{box.word} {box.name}", box.type]
    return [box.title, box.type, *([f"{box.row.parameters:,} parameters"] if box.row.parameters else [])]


def _text(text: str) -> str:
    """Text inside Mermaid's quotes: signs that it might read are written as entities."""
    return escape(text).replace("&", "#")
