"""An inspection in words: what holds layer by layer and what does not, whichever way it comes out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from crate_dsl.inspection.charts import number
from crate_dsl.inspection.report import LayerReport, Report, Trend
from crate_dsl.training.supply import Texts

#: Names that are listed; of more, the first are, and the rest is counted.
LISTED = 6


@dataclass(frozen=True)
class Tile:
    """A number to be seen first, what it is of, its colour on the page, and whether something fails in it."""

    value: str
    label: str
    colour: str
    failing: bool = False


def tiles(report: Report) -> list[Tile]:
    """The numbers at the top of the page."""
    found = []
    for get, label, colour in (
        (rate, "layers lower Rᶜ against the layer before", "rate"),
        (step_rate, "compress steps lower Rᶜ in their own subspaces", "rate"),
        (nonzero, "layers are sparser than the layer before", "code"),
    ):
        held, of = _counted(report.layers, get)
        if of:
            found.append(Tile(f"{held} of {of}", label, colour, held < of))
    gains = [layer.lasso.mean for layer in report.layers if layer.lasso]
    if gains:
        label = "of the LASSO objective gained by a sparsify step"
        found.append(Tile(_range(gains, percent=True), label, "lasso", min(gains) <= 0))
    whole = [pair for pair in report.pairs if pair.extent == "stage"] or list(report.pairs)
    if whole:
        worst = max(whole, key=lambda pair: pair.worst)
        found.append(
            Tile(number(worst.mean), f"relative error of {worst.undone_by} after {worst.name}", "pairs")
        )
    if report.completion:
        ratio = report.completion.network.mean / (report.completion.nearest_patch.mean or 1.0)
        label = "the squared error of copying the nearest visible patch"
        found.append(Tile(f"{ratio:.2f} ×", label, "loss", ratio >= 1))
    test = report.subject.test or {}
    if "accuracy" in test:
        found.append(Tile(f"{test['accuracy']:.1%}", f"of {test['images']:,} test images right", "loss"))
    return found


def sentences(report: Report) -> list[str]:
    """The findings, one a sentence or two."""
    found = [
        *_trend(report.layers, rate, "Rᶜ", "falls", "does not fall", percent=False),
        *_step(report.layers),
        *_trend(
            report.layers, nonzero, "The share of non-zero codes", "falls", "does not fall", percent=True
        ),
        *_lasso(report.layers),
        *_pairs(report),
        *_completion(report),
    ]
    rates = [layer.tokens_rate.mean for layer in report.layers]
    if len(rates) > 1:
        found.append(
            f"R of the tokens goes from {number(rates[0])} nats behind {report.layers[0].name} to "
            f"{number(rates[-1])} behind {report.layers[-1].name}."
        )
    return found


def missing(report: Report) -> list[str]:
    """What this network does not let one see, and why."""
    found = []
    if not any(layer.rate for layer in report.layers):
        found.append("No Rᶜ: none of its steps projects tokens onto subspaces, as `compress` does.")
    if not any(layer.nonzero for layer in report.layers):
        coded = any(layer.dictionary for layer in report.layers)
        why = (
            "`leaky` makes nothing exactly zero"
            if coded
            else "none of its steps makes a code, as `sparsify` does"
        )
        found.append(f"No sparsity: {why}.")
    if not report.pairs:
        found.append("No inversion error: nothing in it undoes anything (`inverse(stage, mode = …)`).")
    texts = isinstance(report.subject.supply, Texts)
    if not report.maps:
        where = "" if texts else " of a picture's whole grid"
        found.append(f"No attention maps: none of its steps attends from token to token{where}.")
    if texts:
        found.append("No token colours, no objects and no completion: these are of pictures.")
    elif report.features is None:
        found.append(
            "No token colours and no objects: no step has features of a picture's whole grid of patches."
        )
    if report.completion is None and not texts:
        found.append("No completion: it is not trained to fill in hidden patches (`mse(…, on = hidden)`).")
    if not report.subject.epochs:
        found.append("No training curve: only a run's folder has one.")
    return found


# ------------------------------------------------------------------ the measures that have a direction


def rate(layer: LayerReport) -> Trend | None:
    """Rᶜ of what enters."""
    return layer.rate


def step_rate(layer: LayerReport) -> Trend | None:
    """Rᶜ of the compress step's result in the same subspaces."""
    return layer.step_rate


def nonzero(layer: LayerReport) -> Trend | None:
    """The share of the code that is not zero."""
    return layer.nonzero


Get = Callable[[LayerReport], Trend | None]


def failing(layers: Sequence[LayerReport], get: Get) -> list[LayerReport]:
    """The layers in which the measure should be lower and is not."""
    return [layer for layer in layers if (trend := get(layer)) and trend.lower is False]


def _counted(layers: Sequence[LayerReport], get: Get) -> tuple[int, int]:
    told = [trend.lower for layer in layers if (trend := get(layer)) and trend.lower is not None]
    return sum(told), len(told)


# ------------------------------------------------------------------ sentences


def _trend(
    layers: Sequence[LayerReport], get: Get, what: str, falls: str, not_falls: str, *, percent: bool
) -> list[str]:
    """How a measure goes from layer to layer."""
    known = [layer for layer in layers if get(layer) and not layer.decodes]
    held, of = _counted(known, get)
    if not of:
        return []
    ends = [number(trend.mean, percent=percent) for layer in (known[0], known[-1]) if (trend := get(layer))]
    unit = "" if percent else " nats"
    text = (
        f"{what} {falls} in {held} of {of} layers against the layer before: from {ends[0]}{unit} in {known[0].name} "
        f"to {ends[1]}{unit} in {known[-1].name}."
    )
    failed = failing(known, get)
    return [text + (f" It {not_falls} in {_listed([layer.name for layer in failed])}." if failed else "")]


def _step(layers: Sequence[LayerReport]) -> list[str]:
    held, of = _counted(layers, step_rate)
    if not of:
        return []
    failed = failing(layers, step_rate)
    exception = f" It does not in {_listed([layer.name for layer in failed])}." if failed else ""
    return [f"The compress step lowers Rᶜ in the layer's own subspaces in {held} of {of} layers.{exception}"]


def _lasso(layers: Sequence[LayerReport]) -> list[str]:
    gains = [layer.lasso.mean for layer in layers if layer.lasso]
    if not gains:
        return []
    lost = [layer.name for layer in layers if layer.lasso and layer.lasso.mean <= 0]
    text = f"A sparsify step gains {_range(gains, percent=True)} of its LASSO objective."
    return [text + (f" It gains nothing in {_listed(lost)}." if lost else "")]


def _pairs(report: Report) -> list[str]:
    found = []
    for promise in report.promises:
        whole = [pair for pair in report.pairs if pair.undone_by.partition(".")[0] == promise.inverse]
        if not whole:
            continue
        pair = next((pair for pair in whole if pair.extent == "stage"), whole[0])
        text = (
            f"{pair.undone_by} undoes {pair.name} ({promise.mode}) up to a relative error of {number(pair.mean)}, "
            f"{number(pair.worst)} at worst"
        )
        if promise.tolerance is not None:
            text += f"; its certificate allows {number(promise.tolerance)} of the largest token"
        found.append(text + ".")
    return found


def _completion(report: Report) -> list[str]:
    completion = report.completion
    if completion is None:
        return []
    guesses = [number(guess.mean) for guess in (completion.mean_image, completion.nearest_patch)]
    return [
        f"On hidden patches the mean squared error is {number(completion.network.mean)}; that of the mean image is "
        f"{guesses[0]}, that of copying the nearest visible patch {guesses[1]}."
    ]


def _range(values: Sequence[float], *, percent: bool) -> str:
    low, high = (number(value, percent=percent) for value in (min(values), max(values)))
    return low if low == high else f"{low.removesuffix(' %')} to {high}"


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:LISTED])
    return shown + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")
