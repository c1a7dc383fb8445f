"""The charts of an inspection. What they show, and how it is measured, is said beside them on the page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby

from crate_dsl.inspection.charts import Axis, Point, Series, chart, number
from crate_dsl.inspection.measures import Incoherence, Measure
from crate_dsl.inspection.report import LayerReport, PairReport, Report, Trend
from crate_dsl.inspection.summary import nonzero, rate, step_rate


def figures(report: Report) -> dict[str, str]:
    """Each chart that the report has something for, by name, as SVG."""
    layers, epochs = report.layers, report.subject.epochs
    drawn = {
        "rate": _rate([layer for layer in layers if layer.rate]),
        "step_rate": _step_rate([layer for layer in layers if layer.step_rate]),
        "nonzero": _nonzero([layer for layer in layers if layer.nonzero]),
        "lasso": _lasso([layer for layer in layers if layer.lasso]),
        "tokens_rate": _tokens_rate(layers),
        "subspaces": _coherence([(layer, layer.subspaces) for layer in layers if layer.subspaces], "U"),
        "dictionary": _coherence([(layer, layer.dictionary) for layer in layers if layer.dictionary], "D"),
        "pairs": _pairs(report.pairs),
        "losses": _curves(epochs, {"validation": "val_loss", "training": "train_loss"}, "loss"),
        "accuracy": _curves(epochs, {"validation": "val_accuracy"}, "accuracy", percent=True),
    }
    return {name: svg for name, svg in drawn.items() if svg}


# ------------------------------------------------------------------ layer by layer


def _axis(layers: Sequence[LayerReport]) -> Axis:
    """Layers by their number, stage by stage."""
    names = [layer.name.removeprefix(f"{layer.stage}.") for layer in layers]
    names = [name if name.partition("@")[0].isdigit() else "" for name in names]
    return Axis(
        names, [(stage, len(list(group))) for stage, group in groupby(layer.stage for layer in layers)]
    )


def _trends(
    layers: Sequence[LayerReport], get: Callable[[LayerReport], Trend | None], *, percent: bool = False
) -> list[Point | None]:
    """A measure that should fall: where it does not, it fails."""

    def point(layer: LayerReport) -> Point | None:
        trend = get(layer)
        if trend is None:
            return None
        tip = _tip(layer.name, trend.mean, trend.std, percent)
        if trend.share is not None:
            tip += f"\nlower in {number(trend.share, percent=True)} of them"
        return Point(trend.mean, trend.std, trend.lower is False, tip)

    return [point(layer) for layer in layers]


def _measures(
    layers: Sequence[LayerReport], get: Callable[[LayerReport], Measure | None], *, gain: bool = False
) -> list[Point | None]:
    """A measure of any size; a gain fails where there is none."""

    def point(layer: LayerReport) -> Point | None:
        measure = get(layer)
        if measure is None:
            return None
        tip = _tip(layer.name, measure.mean, measure.std, gain)
        return Point(measure.mean, measure.std, gain and measure.mean <= 0, tip)

    return [point(layer) for layer in layers]


def _tip(name: str, mean: float, std: float, percent: bool) -> str:
    return f"{name}: {number(mean, percent=percent)} ± {number(std, percent=percent)}"


def _rate(layers: Sequence[LayerReport]) -> str:
    return _drawn(layers, [Series("Rᶜ", "rate", _trends(layers, rate))], "Rᶜ by layer")


def _step_rate(layers: Sequence[LayerReport]) -> str:
    moves = [
        point and replace(point, spread=0.0, origin=layer.rate.mean if layer.rate else None)
        for layer, point in zip(layers, _trends(layers, step_rate), strict=True)
    ]
    return _drawn(layers, [Series("Rᶜ", "rate", moves, "moves")], "Rᶜ before and after each compress step")


def _nonzero(layers: Sequence[LayerReport]) -> str:
    series = Series("non-zero", "code", _trends(layers, nonzero, percent=True), "bars")
    return _drawn(layers, [series], "share of codes that are not zero", zero=True, top=1.0, percent=True)


def _lasso(layers: Sequence[LayerReport]) -> str:
    series = Series("gain", "lasso", _measures(layers, lambda layer: layer.lasso, gain=True), "bars")
    return _drawn(layers, [series], "share of the LASSO objective gained", zero=True, percent=True)


def _tokens_rate(layers: Sequence[LayerReport]) -> str:
    series = [Series("R", "tokens", _measures(layers, lambda layer: layer.tokens_rate))]
    if any(layer.reduction for layer in layers):
        reduced = _measures(layers, lambda layer: layer.reduction)
        series.append(Series("R - Rᶜ", "tokens", reduced, "dots", faint=True))
    return _drawn(layers, series, "R by layer")


def _coherence(known: Sequence[tuple[LayerReport, Incoherence]], what: str) -> str:
    own: list[Point | None] = [
        Point(
            one.coherence,
            tip=f"{layer.name}: largest |cosine| {number(one.coherence)}\n‖G - I‖₂ = {number(one.deviation)}",
        )
        for layer, one in known
    ]
    chance: list[Point | None] = [
        Point(one.random, tip=f"{one.vectors} random directions: {number(one.random)}") for _, one in known
    ]
    series = [Series(what, "weights", own, "dots"), Series("random", "weights", chance, faint=True)]
    return _drawn([layer for layer, _ in known], series, f"coherence of {what} by layer", zero=True, top=1.0)


def _drawn(
    layers: Sequence[LayerReport],
    series: Sequence[Series],
    label: str,
    *,
    zero: bool = False,
    top: float | None = None,
    percent: bool = False,
) -> str:
    if not layers:
        return ""
    return chart(_axis(layers), series, label=label, zero=zero, top=top, percent=percent)


# ------------------------------------------------------------------ pairs and epochs


def _pairs(pairs: Sequence[PairReport]) -> str:
    rows = [pair for pair in pairs if pair.extent == "layer"] or [
        pair for pair in pairs if pair.extent == "step"
    ]
    if not rows:
        return ""
    mean: list[Point | None] = [
        Point(
            row.mean,
            tip=f"{row.undone_by} after {row.name}: {number(row.mean)}, at worst {number(row.worst)}",
        )
        for row in rows
    ]
    worst: list[Point | None] = [
        Point(row.worst, tip=f"{row.name}, at worst: {number(row.worst)}") for row in rows
    ]
    series = [Series("mean", "pairs", mean, "dots"), Series("worst", "pairs", worst, "dots", faint=True)]
    axis = Axis(
        [row.name.rpartition(".")[2] for row in rows],
        title=f"what is undone: {rows[0].name} … {rows[-1].name}",
    )
    return chart(axis, series, label="relative inversion error of each pair", logarithmic=True)


def _curves(
    epochs: Sequence[Mapping[str, float | None]],
    curves: Mapping[str, str],
    label: str,
    *,
    percent: bool = False,
) -> str:
    """Curves over a run's epochs; the first that is known is spoken of."""
    axis = Axis([f"{row['epoch']:g}" for row in epochs], title="epoch")
    series: list[Series] = []
    for name, column in curves.items():
        points = [
            None
            if (value := row[column]) is None
            else Point(value, tip=f"{name}, epoch {row['epoch']:g}: {number(value, percent=percent)}")
            for row in epochs
        ]
        if any(points):
            series.append(Series(name, "loss", points, faint=bool(series)))
    return chart(axis, series, label=f"{label} by epoch", percent=percent) if series else ""
