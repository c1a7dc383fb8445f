"""What is inspected: a network with its weights, and the test images that it looks at."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import crate_dsl
from crate_dsl.compiler.graph import ModelGraph
from crate_dsl.compiler.network import Network
from crate_dsl.compiler.weights import load_weights
from crate_dsl.language.diagnostics import UserError
from crate_dsl.training.batches import Held
from crate_dsl.training.data import SPLIT_SEED, Data, Images, Scaling
from crate_dsl.training.feed import check_fits
from crate_dsl.training.run import METRICS, open_run
from crate_dsl.training.sources import open_data

#: The columns of metrics.csv that are drawn.
CURVES = ("epoch", "train_loss", "val_loss", "val_accuracy")


@dataclass(frozen=True, eq=False)
class Subject:
    """A network in evaluation mode, and images on their way into it.

    `target` is what was asked for and `weights` says where the weights are from. `images_nchw` are the measured ones as
    they look, `chosen_n` their numbers in the test part, `held` the same ready for the network. `epochs` are the rows
    of a run's metrics.csv, `test` is its test.json.
    """

    target: str
    weights: str
    net: Network
    data: Data
    scaling: Scaling
    held: Held
    images_nchw: Images
    chosen_n: np.ndarray[Any, np.dtype[np.int64]]
    epochs: tuple[Mapping[str, float | None], ...] = ()
    test: Mapping[str, Any] | None = None

    @property
    def graph(self) -> ModelGraph:
        return self.net.graph

    def batches(self, size: int) -> Iterator[dict[str, Tensor]]:
        """The measured images, so many at a time, by the names of the network's inputs."""
        for start in range(0, len(self.held), size):
            yield self.held.batch(slice(start, start + size))


def run_subject(folder: Path, source: str | None, images: int, device: torch.device) -> Subject:
    """A run's network, on test images of its own source or of another.

    Raises:
        UserError: there is no run, its files are damaged, or the images do not fit.
    """
    run = open_run(folder)
    net = run.net()
    data = run.data() if source is None else open_data(source)
    row = _epochs(folder / METRICS)
    made = _subject(
        str(folder), "the run's, of its best epoch", net, data, run.manifest.pixels(), images, device
    )
    return replace(made, epochs=row, test=run.test())


def target_subject(
    target: str,
    graph: ModelGraph,
    weights: Path | None,
    source: str,
    images: int,
    seed: int,
    device: torch.device,
) -> Subject:
    """A spec's network, untrained or with the weights of a file; pixels are scaled by the source's own mean and spread.

    Raises:
        UserError: the images do not fit, or the weights are damaged or another network's.
    """
    data = open_data(source)
    _check(graph, data)  # before the network is built
    net = crate_dsl.build(graph, seed=seed)
    if weights is not None:
        load_weights(net, weights)
    said = f"untrained, from seed {seed}" if weights is None else f"those of {weights}"
    return _subject(target, said, net, data, data.scaling, images, device)


def _subject(
    target: str,
    weights: str,
    net: Network,
    data: Data,
    scaling: Scaling,
    images: int,
    device: torch.device,
) -> Subject:
    feed = _check(net.graph, data)
    # The same images each time, mixed: test parts are often sorted by class, and the first are shown.
    chosen_n = np.random.RandomState(SPLIT_SEED).permutation(len(data.test))[:images]
    part = data.test.take(chosen_n)
    held = Held(part, scaling, feed, device)
    return Subject(target, weights, net.to(device).eval(), data, scaling, held, part.images_nchw, chosen_n)


def _check(graph: ModelGraph, data: Data) -> Any:
    """How the images go in. Nothing is trained, so that labels are asked for only where the network reads them."""
    return check_fits(replace(graph, targets={}, inputs=graph.export_inputs), data)


def _epochs(path: Path) -> tuple[Mapping[str, float | None], ...]:
    """The rows of a run's metrics.csv; none where it is not there.

    Raises:
        UserError: it is damaged.
    """
    if not path.is_file():
        return ()
    try:
        rows = list(csv.DictReader(path.read_text("utf-8").splitlines()))
        return tuple({name: float(row[name]) if row[name] else None for name in CURVES} for row in rows)
    except (KeyError, TypeError, ValueError) as problem:
        raise UserError(f"{path} is damaged: {problem}") from problem
