"""A graph as an SVG picture, drawn without any other program: boxes in one column, in their order and groups."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree as Xml

from crate_dsl.compiler.graph import ModelGraph
from crate_dsl.show.drawing import Box, Group, drawing
from crate_dsl.show.steps import short, size_of, title_of

#: Sizes in pixels.
BOX_WIDTH, BOX_HEIGHT, GAP, INDENT, HEADER, MARGIN, LANE = 300, 44, 20, 14, 24, 24, 16
CORNER = 8
#: The fill of a box by its step: the two white-box steps stand out.
FILLS = {"compress": "#cfe3fb", "sparsify": "#fde2c4"}
OTHER_FILL, END_FILL, GROUP_FILL, INK, FAINT = "#f4f4f5", "#e3f3e4", "#8080800f", "#1f2328", "#656d76"
#: The lines on the left, between a step and the one that undoes it.
PAIR = "#8250df"
STYLE = (
    f"text {{ font: 13px system-ui, sans-serif; fill: {INK} }} .faint {{ fill: {FAINT}; font-size: 11px }} "
    f".title {{ font-weight: 600 }} .line {{ stroke: {FAINT}; fill: none; stroke-width: 1.3 }} "
    f".pair {{ stroke: {PAIR}; fill: none; stroke-width: 1.3; stroke-dasharray: 5 3 }}"
)


@dataclass(slots=True)
class _Placed:
    """Where boxes and groups stand: the left edge, the top and (for groups) width and height."""

    boxes: dict[int, tuple[float, float]]
    groups: list[tuple[Group, float, float, float, float]]


def svg(graph: ModelGraph, *, fold: bool = True) -> str:
    """The graph as an SVG document; with `fold`, equal layers of a repeat are one group.

    What only training runs is dashed; so are the lines on the left, from a step to the one that undoes it. A browser
    shows a step's path, cost and place in the spec when the mouse rests on it.
    """
    drawn = drawing(graph, fold=fold)
    placed = _Placed({}, [])
    depth = max((len(box.groups) for box in drawn.boxes), default=0)
    paired = _lanes(drawn.pairs)
    left = MARGIN + depth * INDENT + LANE * max(paired.values(), default=0)
    bottom = _place(drawn.inside, placed, MARGIN + 2 * HEADER, left, 0)
    lanes = _lanes([(source, target) for source, target in drawn.arrows if target > source + 1])
    width = left + BOX_WIDTH + depth * INDENT + MARGIN + LANE * (1 + max(lanes.values(), default=0))
    root = Xml.Element(
        "svg",
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {width} {bottom + MARGIN}",
        width=str(width),
        role="img",
    )
    Xml.SubElement(root, "title").text = title_of(graph)
    Xml.SubElement(root, "style").text = STYLE
    definitions = Xml.SubElement(root, "defs")
    marker = Xml.SubElement(
        definitions,
        "marker",
        id="tip",
        viewBox="0 0 8 8",
        refX="7",
        refY="4",
        markerWidth="7",
        markerHeight="7",
        orient="auto",
    )
    Xml.SubElement(marker, "path", d="M0 0 L8 4 L0 8 z", fill=FAINT)
    Xml.SubElement(root, "rect", width="100%", height="100%", fill="white")
    _text(root, MARGIN, MARGIN + 8, title_of(graph), "title")
    _text(root, MARGIN, MARGIN + 26, size_of(graph), "faint")
    for group, x, top, group_width, height in placed.groups:
        _rectangle(root, x, top, group_width, height, GROUP_FILL)
        layers = f"  × {group.layers} layers" if group.layers > 1 else ""
        _text(root, x + CORNER, top + 16, group.name + layers, "faint")
    for source, target in drawn.arrows:
        _arrow(root, placed, source, target, lanes.get((source, target)), left + BOX_WIDTH + depth * INDENT)
    for (undone, step), lane in paired.items():
        _pair(root, placed, undone, step, left - depth * INDENT - lane * LANE)
    for at, (x, top) in placed.boxes.items():
        _box(root, drawn.boxes[at], x, top)
    Xml.indent(root)
    return Xml.tostring(root, encoding="unicode")


def _place(inside: tuple[Box | Group, ...], placed: _Placed, top: float, left: float, depth: int) -> float:
    """Place boxes and groups from `top` downwards; the bottom of the last one."""
    for at, item in enumerate(inside):
        if at:
            top += GAP
        if isinstance(item, Group):
            spot = len(placed.groups)
            bottom = _place(item.inside, placed, top + HEADER, left, depth + 1) + INDENT / 2
            outwards = INDENT * (max(len(box.groups) for box in _boxes(item)) - depth)
            placed.groups.insert(spot, (item, left - outwards, top, BOX_WIDTH + 2 * outwards, bottom - top))
            top = bottom
        else:
            placed.boxes[item.place] = (left, top)
            top += BOX_HEIGHT
    return top


def _boxes(group: Group) -> Iterator[Box]:
    for item in group.inside:
        if isinstance(item, Group):
            yield from _boxes(item)
        else:
            yield item


def _lanes(lines: Sequence[tuple[int, int]]) -> dict[tuple[int, int], int]:
    """The lane of each line beside the boxes, counted from them outwards: shorter ones lie further in."""
    ends: list[list[tuple[int, int]]] = []
    lanes = {}
    for source, target in sorted(lines, key=lambda line: line[1] - line[0]):
        lane = 0
        while lane < len(ends) and any(a < target and source < b for a, b in ends[lane]):
            lane += 1
        if lane == len(ends):
            ends.append([])
        ends[lane].append((source, target))
        lanes[source, target] = lane + 1
    return lanes


def _arrow(
    root: Xml.Element, placed: _Placed, source: int, target: int, lane: int | None, edge: float
) -> None:
    (x, top), (_, bottom) = placed.boxes[source], placed.boxes[target]
    if lane is None:
        middle = x + BOX_WIDTH / 2
        way = f"M{middle:g} {top + BOX_HEIGHT:g} V{bottom - 1:g}"
    else:
        # Beside the middle of a side, so that an arrow that leaves does not meet one that arrives.
        start, end = top + BOX_HEIGHT * 0.65, bottom + BOX_HEIGHT * 0.35
        out, right = edge + lane * LANE, x + BOX_WIDTH
        way = (
            f"M{right:g} {start:g} H{out - CORNER:g} q{CORNER} 0 {CORNER} {CORNER} "
            f"V{end - CORNER:g} q0 {CORNER} -{CORNER} {CORNER} H{right + 1:g}"
        )
    Xml.SubElement(root, "path", {"d": way, "class": "line", "marker-end": "url(#tip)"})


def _pair(root: Xml.Element, placed: _Placed, undone: int, step: int, out: float) -> None:
    """A line on the left, from a step to the one that undoes it."""
    (x, top), (_, bottom) = placed.boxes[undone], placed.boxes[step]
    start, end = top + BOX_HEIGHT / 2, bottom + BOX_HEIGHT / 2
    way = (
        f"M{x:g} {start:g} H{out + CORNER:g} q-{CORNER} 0 -{CORNER} {CORNER} "
        f"V{end - CORNER:g} q0 {CORNER} {CORNER} {CORNER} H{x:g}"
    )
    Xml.SubElement(root, "path", {"d": way, "class": "pair"})


def _box(root: Xml.Element, box: Box, x: float, top: float) -> None:
    group = Xml.SubElement(root, "g")
    fill = END_FILL if box.row is None else FILLS.get(box.word, OTHER_FILL)
    rectangle = _rectangle(group, x, top, BOX_WIDTH, BOX_HEIGHT, fill)
    rectangle.set("stroke", FAINT)
    if box.training:
        rectangle.set("stroke-dasharray", "4 3")
    _text(group, x + 12, top + 18, box.title if box.row else f"{box.word} {box.name}", "title")
    _text(group, x + 12, top + 35, box.type, "faint")
    if box.row is None:
        return
    layout = box.row.first.layout
    facts = [
        box.row.name,
        f"line {box.row.first.line}",
        *([f"tokens: {layout}"] if layout else []),
        f"{box.row.parameters:,} parameters, {short(box.row.flops)} operations a sample",
        f"inverse: {box.row.first.inverse}",
    ]
    Xml.SubElement(group, "title").text = "\n".join(facts)
    if box.row.parameters:
        _text(group, x + BOX_WIDTH - 12, top + 18, f"{box.row.parameters:,}", "faint", anchor="end")


def _rectangle(
    parent: Xml.Element, x: float, top: float, width: float, height: float, fill: str
) -> Xml.Element:
    sizes = {"x": x, "y": top, "width": width, "height": height, "rx": CORNER}
    return Xml.SubElement(
        parent, "rect", {name: f"{size:g}" for name, size in sizes.items()} | {"fill": fill}
    )


def _text(parent: Xml.Element, x: float, y: float, text: str, style: str, *, anchor: str = "start") -> None:
    Xml.SubElement(
        parent, "text", {"x": f"{x:g}", "y": f"{y:g}", "class": style, "text-anchor": anchor}
    ).text = text
