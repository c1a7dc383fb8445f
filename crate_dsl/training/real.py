"""Images or texts as what a file in fewer bits is made with and judged by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crate_dsl.compiler.draws import DrawForm
from crate_dsl.compiler.graph import ModelGraph
from crate_dsl.compiler.judge import AGREEMENT, Samples
from crate_dsl.compiler.lower.precision import Precision
from crate_dsl.training.data import SPLIT_SEED, Data, Part, Scaling
from crate_dsl.training.feed import Feed, Reading
from crate_dsl.training.supply import Images, Supply, Texts
from crate_dsl.training.text import Windows

#: Training images that tell between what numbers lie; and tokens, where there is text.
CALIBRATION_IMAGES, CALIBRATION_TOKENS = 500, 2**14
#: Logits that are compared, where a network has as many as its vocabulary for each token: a quarter of a gigabyte.
JUDGED_LOGITS = 2**26


@dataclass(frozen=True, slots=True)
class Reduction:
    """The precision that is asked for; and in fewer bits: whose test part it is judged by (None: the run's own), how
    many images or windows of it, and the least agreement.
    """

    precision: Precision = "float32"
    data: Data | str | None = None
    images: int | None = None
    agreement: float = AGREEMENT


FLOAT32 = Reduction()


def samples_of(graph: ModelGraph, supply: Supply, count: int | None = None) -> Samples:
    """Training samples to calibrate on, and test samples to judge by: all of them, or some that are drawn.

    Of text, these are windows, and no more than memory takes; the next token that is likeliest must be the same.
    """
    match supply:
        case Images(data=data, feed=feed, scaling=scaling):
            test = some(data.test, count)
            labels = {} if test.labels_n is None else dict.fromkeys(feed.labels, test.labels_n)
            return Samples(
                calibration=_inputs(graph, feed, some(data.train, CALIBRATION_IMAGES), scaling),
                test=_inputs(graph, feed, test, scaling),
                targets={name: array for name, array in labels.items() if name not in graph.export_inputs},
                scores=feed.scores,
                labels=test.labels_n if feed.scores is not None else None,
                source=supply.text,
            )
        case Texts(reading=reading):
            most = max(1, JUDGED_LOGITS // (reading.length * reading.vocabulary))
            calibrated = max(1, CALIBRATION_TOKENS // reading.length)
            return Samples(
                calibration=_tokens(graph, supply.windows("train"), reading, calibrated),
                test=_tokens(graph, supply.windows("test"), reading, min(count or most, most)),
                scores=reading.scores,
                source=supply.text,
            )
    raise AssertionError(f"{supply} is neither images nor texts")


def _inputs(graph: ModelGraph, feed: Feed, part: Part, scaling: Scaling) -> dict[str, NDArray[Any]]:
    """What the exported network takes, for each image of a part; draws are always the same."""
    given: dict[str, NDArray[Any]] = {feed.image: scaling.apply(part.images_nchw)}
    if part.labels_n is not None:
        given |= {name: part.labels_n for name in feed.labels if name in graph.export_inputs}
    return _with_draws(graph, given, feed.image)


def _tokens(graph: ModelGraph, windows: Windows, reading: Reading, count: int) -> dict[str, NDArray[Any]]:
    """What the exported network takes, for some windows of a part; only whole ones, where there are such."""
    whole = max(1, len(windows.ids_t) // windows.length)
    ids_bn, kept_bn = windows.take(np.sort(_lots(whole)[:count]))
    given: dict[str, NDArray[Any]] = {reading.ids: ids_bn}
    if reading.kept in graph.export_inputs:
        given[reading.kept] = kept_bn
    return _with_draws(graph, given, reading.ids)


def _with_draws(graph: ModelGraph, given: dict[str, NDArray[Any]], main: str) -> dict[str, NDArray[Any]]:
    """The same inputs, and those that the spec draws; `main` tells how many samples there are, and lengths."""
    array = given[main]
    lengths = {
        dim.symbol.name: size
        for dim, size in zip(graph.inputs[main].type.shape, array.shape[1:], strict=True)
        if dim.symbol is not None
    }
    generator = np.random.default_rng(SPLIT_SEED)
    for name, entry in graph.export_inputs.items():
        if isinstance(entry.source, DrawForm):
            given[name] = entry.source.sample(entry.type, len(array), lengths, generator)
    return given


def some(part: Part, images: int | None) -> Part:
    """So many images of a part, by the same lot each time; all of them where it has no more."""
    if images is None or images >= len(part):
        return part
    return part.take(np.sort(_lots(len(part))[:images]))


def _lots(count: int) -> NDArray[np.int64]:
    return np.random.RandomState(SPLIT_SEED).permutation(count)
