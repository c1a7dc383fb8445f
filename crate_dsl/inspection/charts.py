"""Charts as SVG, drawn by hand: their colours are the page's, so that they are right in light and dark.

A colour is the name of one of the page's custom properties: `rate` is `var(--rate)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import ceil, floor, inf, log10
from typing import Literal
from xml.etree import ElementTree as Xml

#: Sizes in the picture's own units, which are pixels where it has its natural width.
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 480, 236, 46, 10, 22, 40
#: How wide a digit is.
LETTER = 6.8
#: Names under the axis keep at least this distance.
LEAST_BETWEEN = 24


@dataclass(frozen=True)
class Point:
    """A value, how far it spreads to either side, whether it is marked as failing, what is said of it, and the value
    that it came from.
    """

    value: float
    spread: float = 0.0
    failing: bool = False
    tip: str = ""
    origin: float | None = None


@dataclass(frozen=True)
class Series:
    """A quantity along the axis; None where it is not known. `faint` ones stand behind as a comparison."""

    name: str
    colour: str
    points: Sequence[Point | None]
    style: Literal["line", "bars", "dots", "moves"] = "line"
    faint: bool = False


@dataclass(frozen=True)
class Axis:
    """What stands under the points: their names, and the groups that follow one another, as (name, how many)."""

    names: Sequence[str]
    groups: Sequence[tuple[str, int]] = field(default_factory=tuple)
    title: str = ""


def chart(
    axis: Axis,
    series: Sequence[Series],
    *,
    label: str,
    zero: bool = False,
    top: float | None = None,
    percent: bool = False,
    logarithmic: bool = False,
) -> str:
    """A chart as an SVG element.

    Args:
        axis: what stands below.
        series: the first is the one that is spoken of, and has its values written out.
        label: what is drawn, for those who cannot see it.
        zero: the scale begins at zero.
        top: where the scale ends, if that is known.
        percent: values are shares.
        logarithmic: powers of ten at equal distances.
    """
    scale = _Scale.of(series, zero=zero, top=top, percent=percent, logarithmic=logarithmic)
    root = Xml.Element(
        "svg", {"viewBox": f"0 0 {WIDTH} {HEIGHT}", "role": "img", "aria-label": label, "class": "chart"}
    )
    for tick in scale.ticks:
        y = scale.y(tick)
        Xml.SubElement(root, "line", _numbers(x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y) | {"class": "rule"})
        _text(root, LEFT - 6, y + 4, scale.written(tick), "tick", "end")
    places = _places(root, axis)
    for one in sorted(series, key=lambda one: not one.faint):
        group = Xml.SubElement(root, "g", {"style": f"--ink: var(--{one.colour})"})
        group.set("class", "faint" if one.faint else "series")
        {"line": _line, "bars": _bars, "dots": _dots, "moves": _moves}[one.style](group, one, places, scale)
    if series and series[0].points:
        _values(root, series[0], places, scale)
    return Xml.tostring(root, encoding="unicode")


# ------------------------------------------------------------------ the scale


@dataclass(frozen=True)
class _Scale:
    low: float
    high: float
    percent: bool
    logarithmic: bool
    ticks: tuple[float, ...]

    @staticmethod
    def of(
        series: Sequence[Series], *, zero: bool, top: float | None, percent: bool, logarithmic: bool
    ) -> _Scale:
        points = [point for one in series for point in one.points if point is not None]
        lows = [point.value - point.spread for point in points] or [0.0]
        highs = [point.value + point.spread for point in points] or [1.0]
        origins = [point.origin for point in points if point.origin is not None]
        lows, highs = lows + origins, highs + origins
        if logarithmic:
            above = [point.value for point in points if point.value > 0] or [1.0]
            first, last = floor(log10(min(above))), ceil(log10(max(above)))
            last = max(last, first + 1)
            ticks = tuple(10.0**power for power in range(first, last + 1, max(1, ceil((last - first) / 6))))
            return _Scale(10.0**first, 10.0**last, percent, True, ticks)
        low, high = min(lows), max(highs)
        if zero:
            low = min(low, 0.0)
        if top is not None:
            high = max(top, high) if high > top else top
        if high <= low:
            margin = 0.05 if percent else 0.5
            low, high = low - margin, high + margin
        step = _step((high - low) / 4)
        first = floor(low / step)
        last = ceil(high / step) if top is None else floor(high / step + 1e-9)
        ticks = tuple(step * at for at in range(first, last + 1))
        return _Scale(ticks[0], max(ticks[-1], high if top is not None else -inf), percent, False, ticks)

    def y(self, value: float) -> float:
        if self.logarithmic:
            # What is zero, or smaller than what is drawn, lies on the floor.
            value = max(value, self.low)
            share = (log10(value) - log10(self.low)) / (log10(self.high) - log10(self.low))
        else:
            share = (value - self.low) / (self.high - self.low)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    def written(self, value: float) -> str:
        """A tick: a round number, without digits that are zero."""
        return f"{100 * value:g} %" if self.percent else f"{value:,g}" if value < 1e6 else f"{value:.0e}"


def _step(rough: float) -> float:
    """The round number next above: 1, 2 or 5 times a power of ten."""
    power = 10.0 ** floor(log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))


def number(value: float, *, percent: bool = False) -> str:
    """A number as people write it: three digits that count, no more.

    >>> number(0.1234), number(45.02), number(231.6), number(12345.6), number(0.1234, percent=True), number(3.2e-7)
    ('0.123', '45.0', '232', '12,346', '12.3 %', '3.2e-07')
    """
    if percent:
        share = f"{100 * value:.1f}"
        return f"{share.removesuffix('.0')} %"
    if value == 0:
        return "0"
    size = abs(value)
    if size < 1e-3:
        return f"{value:.1e}"
    return f"{value:,.{0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3}f}"


# ------------------------------------------------------------------ the axis


def _places(root: Xml.Element, axis: Axis) -> list[float]:
    """Where the points stand; names, groups and the title are written."""
    count = len(axis.names)
    gaps = max(len(axis.groups) - 1, 0)
    each = (WIDTH - LEFT - RIGHT) / max(count + gaps * 0.6, 1)
    places: list[float] = []
    x = LEFT + each / 2
    ends = []
    total = 0
    for _, size in axis.groups:
        total += size
        ends.append(total)
    for at in range(count):
        places.append(x)
        x += each * (1.6 if at + 1 in ends[:-1] else 1)
    every = max(1, ceil(LEAST_BETWEEN / each))
    for at, (name, place) in enumerate(zip(axis.names, places, strict=True)):
        if at % every == 0:
            _text(root, place, HEIGHT - BOTTOM + 16, name, "tick", "middle")
    start = 0
    for name, size in axis.groups:
        middle = (places[start] + places[start + size - 1]) / 2
        _text(root, middle, HEIGHT - 6, name, "name", "middle")
        start += size
    if axis.title:
        _text(root, (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, axis.title, "name", "middle")
    return places


# ------------------------------------------------------------------ the series


def _line(group: Xml.Element, one: Series, places: Sequence[float], scale: _Scale) -> None:
    """Points joined by a line, with a band for their spread."""
    for run in _runs(one, places):
        upper = [f"{x:.1f},{scale.y(point.value + point.spread):.1f}" for x, point in run]
        lower = [f"{x:.1f},{scale.y(point.value - point.spread):.1f}" for x, point in reversed(run)]
        if len(run) > 1 and any(point.spread for _, point in run):
            Xml.SubElement(group, "polygon", {"points": " ".join([*upper, *lower]), "class": "band"})
        way = " ".join(f"{x:.1f},{scale.y(point.value):.1f}" for x, point in run)
        Xml.SubElement(group, "polyline", {"points": way, "class": "line"})
    _dots(group, one, places, scale, whiskers=False)


def _runs(one: Series, places: Sequence[float]) -> list[list[tuple[float, Point]]]:
    """Stretches of known points."""
    runs: list[list[tuple[float, Point]]] = [[]]
    for x, point in zip(places, one.points, strict=True):
        if point is None:
            runs.append([])
        else:
            runs[-1].append((x, point))
    return [run for run in runs if run]


def _dots(
    group: Xml.Element, one: Series, places: Sequence[float], scale: _Scale, *, whiskers: bool = True
) -> None:
    for x, point in zip(places, one.points, strict=True):
        if point is None:
            continue
        y = scale.y(point.value)
        spot = _spot(group, point)
        if whiskers and point.spread:
            _whisker(spot, x, point, scale)
        Xml.SubElement(spot, "circle", _numbers(cx=x, cy=y, r=3.6 if one.faint else 4.6) | {"class": "dot"})


def _moves(group: Xml.Element, one: Series, places: Sequence[float], scale: _Scale) -> None:
    """From where each point came to where it is."""
    for x, point in zip(places, one.points, strict=True):
        if point is None:
            continue
        spot, y = _spot(group, point), scale.y(point.value)
        if point.origin is not None:
            start = scale.y(point.origin)
            Xml.SubElement(spot, "line", _numbers(x1=x, x2=x, y1=start, y2=y) | {"class": "move"})
            Xml.SubElement(spot, "circle", _numbers(cx=x, cy=start, r=4.6) | {"class": "dot origin"})
        Xml.SubElement(spot, "circle", _numbers(cx=x, cy=y, r=4.6) | {"class": "dot"})


def _bars(group: Xml.Element, one: Series, places: Sequence[float], scale: _Scale) -> None:
    width = min(0.62 * (places[1] - places[0]) if len(places) > 1 else 60, 46)
    base = scale.y(max(0.0, scale.low))
    for x, point in zip(places, one.points, strict=True):
        if point is None:
            continue
        y = scale.y(point.value)
        spot = _spot(group, point)
        sizes = _numbers(x=x - width / 2, y=min(y, base), width=width, height=max(abs(base - y), 0.8), rx=2)
        Xml.SubElement(spot, "rect", sizes | {"class": "bar"})
        if point.spread:
            _whisker(spot, x, point, scale)


def _spot(group: Xml.Element, point: Point) -> Xml.Element:
    spot = Xml.SubElement(group, "g", {"class": "spot failing" if point.failing else "spot"})
    if point.tip:
        Xml.SubElement(spot, "title").text = point.tip
    return spot


def _whisker(spot: Xml.Element, x: float, point: Point, scale: _Scale) -> None:
    y1, y2 = scale.y(point.value + point.spread), scale.y(point.value - point.spread)
    Xml.SubElement(spot, "line", _numbers(x1=x, x2=x, y1=y1, y2=y2) | {"class": "whisker"})


def _values(root: Xml.Element, one: Series, places: Sequence[float], scale: _Scale) -> None:
    """The values of the series that is spoken of, as many as there is room for; ▲ at those that fail."""
    # The axis says what is a share.
    texts = [
        "" if point is None else number(point.value, percent=scale.percent).removesuffix(" %")
        for point in one.points
    ]
    between = min((after - before for before, after in pairwise(places)), default=WIDTH)
    every = ceil((max(map(len, texts)) * LETTER + 4) / between)
    last = len(texts) - 1
    for at, (x, point, text) in enumerate(zip(places, one.points, texts, strict=True)):
        if point is None:
            continue
        style = "value failing" if point.failing else "value"
        top = scale.y(max(point.value + point.spread, point.value if point.origin is None else point.origin))
        above = max(top - 8, 12)
        if (last - at) % every == 0:
            below = point.origin is not None and point.origin > point.value
            _text(root, x, scale.y(point.value) + 17 if below else above, text, style, "middle")
            above -= 0 if below else 12
        if point.failing:
            _text(root, x, above, "▲", style, "middle")


# ------------------------------------------------------------------ parts


def _numbers(**values: float) -> dict[str, str]:
    return {name: f"{value:.1f}" for name, value in values.items()}


def _text(parent: Xml.Element, x: float, y: float, text: str, style: str, anchor: str) -> None:
    place = _numbers(x=x, y=y) | {"class": style, "text-anchor": anchor}
    Xml.SubElement(parent, "text", place).text = text
