"""Images of a source as what a file in fewer bits is made with and judged by."""

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
from crate_dsl.training.feed import Feed, check_fits

#: Training images that tell between what numbers lie.
CALIBRATION_IMAGES = 500


@dataclass(frozen=True, slots=True)
class Reduction:
    """The precision that is asked for; and in fewer bits: whose test images it is judged by (None: the run's own), how
    many of them, and the least agreement.
    """

    precision: Precision = "float32"
    data: Data | None = None
    images: int | None = None
    agreement: float = AGREEMENT


FLOAT32 = Reduction()


def samples_of(graph: ModelGraph, data: Data, scaling: Scaling, images: int | None = None) -> Samples:
    """Training images to calibrate on, and test images to judge by: all of them, or some that are drawn.

    Raises:
        UserError: the images do not fit the network.
    """
    feed = check_fits(graph, data)
    test = some(data.test, images)
    labels = {} if test.labels_n is None else dict.fromkeys(feed.labels, test.labels_n)
    return Samples(
        calibration=_inputs(graph, feed, some(data.train, CALIBRATION_IMAGES), scaling),
        test=_inputs(graph, feed, test, scaling),
        targets={name: array for name, array in labels.items() if name not in graph.export_inputs},
        scores=feed.scores,
        labels=test.labels_n if feed.scores is not None else None,
        source=data.text,
    )


def _inputs(graph: ModelGraph, feed: Feed, part: Part, scaling: Scaling) -> dict[str, NDArray[Any]]:
    """What the exported network takes, for each image of a part; draws are always the same."""
    given: dict[str, NDArray[Any]] = {feed.image: scaling.apply(part.images_nchw)}
    if part.labels_n is not None:
        given |= {name: part.labels_n for name in feed.labels if name in graph.export_inputs}
    image = graph.inputs[feed.image].type
    lengths = {
        dim.symbol.name: size
        for dim, size in zip(image.shape, given[feed.image].shape[1:], strict=True)
        if dim.symbol is not None
    }
    generator = np.random.default_rng(SPLIT_SEED)
    for name, entry in graph.export_inputs.items():
        if isinstance(entry.source, DrawForm):
            given[name] = entry.source.sample(entry.type, len(part), lengths, generator)
    return given


def some(part: Part, images: int | None) -> Part:
    """So many images of a part, by the same lot each time; all of them where it has no more."""
    if images is None or images >= len(part):
        return part
    lots = np.random.RandomState(SPLIT_SEED).permutation(len(part))
    return part.take(np.sort(lots[:images]))
