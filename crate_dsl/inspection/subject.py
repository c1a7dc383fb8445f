"""What is inspected: a network with its weights, and the test images, or windows of text, that it looks at."""

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
from crate_dsl.training.batches import Held, HeldTexts
from crate_dsl.training.data import SPLIT_SEED, Data
from crate_dsl.training.data import Images as Pixels
from crate_dsl.training.feed import Feed, check_fits
from crate_dsl.training.run import METRICS, open_run
from crate_dsl.training.sources import open_data
from crate_dsl.training.supply import CHARACTERS, Images, Supply, Texts, is_text, open_texts

#: The columns of metrics.csv that are drawn.
CURVES = ("epoch", "train_loss", "val_loss", "val_accuracy")


@dataclass(frozen=True, eq=False)
class Subject:
    """A network in evaluation mode, and what it looks at: images, or windows of text.

    `target` is what was asked for and `weights` says where the weights are from. `supply` is the data, `held` their
    test part on its way into the network, `chosen_n` are the numbers in it of what is measured. `epochs` are the rows
    of a run's metrics.csv, `test` is its test.json.
    """

    target: str
    weights: str
    net: Network
    supply: Images | Texts
    held: Held | HeldTexts
    chosen_n: np.ndarray[Any, np.dtype[np.int64]]
    epochs: tuple[Mapping[str, float | None], ...] = ()
    test: Mapping[str, Any] | None = None

    @property
    def graph(self) -> ModelGraph:
        return self.net.graph

    @property
    def count(self) -> int:
        """How many images or windows are measured."""
        return len(self.chosen_n)

    @property
    def size(self) -> tuple[int, ...]:
        """Channels, height and width of an image; tokens of a window."""
        if isinstance(self.supply, Texts):
            return (self.supply.reading.length,)
        return self.supply.data.shape

    def batch(self, start: int, stop: int) -> dict[str, Tensor]:
        """Some of the measured ones, by the names of the network's inputs."""
        return self.held.batch(torch.from_numpy(self.chosen_n[start:stop]).to(self.held.lies))

    def batches(self, size: int) -> Iterator[dict[str, Tensor]]:
        """All of the measured ones, so many at a time."""
        for start in range(0, self.count, size):
            yield self.batch(start, start + size)

    def images_nchw(self, count: int) -> Pixels:
        """The first of the measured images, as they look."""
        assert isinstance(self.supply, Images)
        return self.supply.data.test.take(self.chosen_n[:count]).images_nchw

    def texts(self, count: int) -> list[str]:
        """The first of the measured windows, as they read."""
        assert isinstance(self.supply, Texts)
        ids_bn, _ = self.supply.windows("test").take(self.chosen_n[:count])
        return [self.supply.vocabulary.decode(ids_n) for ids_n in ids_bn]


def run_subject(folder: Path, source: str | None, images: int, device: torch.device) -> Subject:
    """A run's network, on the test part of its own source or of another.

    Raises:
        UserError: there is no run, its files are damaged, or the data do not fit.
    """
    run = open_run(folder)
    net = run.net()
    supply: Supply
    if run.manifest.vocabulary is not None:
        supply = run.supply(source)
    else:
        data = run.data() if source is None else open_data(source)
        supply = Images(data, _check(net.graph, data), run.manifest.pixels())
    row = _epochs(folder / METRICS)
    made = _subject(str(folder), "the run's, of its best epoch", net, supply, images, device)
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
    """A spec's network, untrained or with the weights of a file.

    Pixels are scaled by the source's own mean and spread, text is read by its characters.

    Raises:
        UserError: the data do not fit, or the weights are damaged or another network's.
    """
    supply: Supply
    if is_text(source):
        supply = open_texts(graph, source, CHARACTERS)
    else:
        data = open_data(source)
        supply = Images(data, _check(graph, data), data.scaling)
    net = crate_dsl.build(graph, seed=seed)
    if weights is not None:
        load_weights(net, weights)
    said = f"untrained, from seed {seed}" if weights is None else f"those of {weights}"
    return _subject(target, said, net, supply, images, device)


def _subject(
    target: str, weights: str, net: Network, supply: Supply, most: int, device: torch.device
) -> Subject:
    assert isinstance(supply, Images | Texts)
    held = supply.held("test", device)
    # A last window that is filled up would have tokens that are none.
    whole = len(supply.tokens["test"]) // supply.reading.length if isinstance(supply, Texts) else len(held)
    # The same ones each time, mixed: test parts are often sorted by class, and the first are shown.
    chosen_n = np.random.RandomState(SPLIT_SEED).permutation(whole)[:most]
    return Subject(target, weights, net.to(device).eval(), supply, held, chosen_n)


def _check(graph: ModelGraph, data: Data) -> Feed:
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
