"""Data on their way into a network, batch by batch.

Images: the whole part in memory, on the GPU where it fits, scaled as they go in. Texts: windows of tokens, read from a
file as they are asked for.

Axes: n images of a part, b of a batch, c channels, h rows, w columns; of texts n is the tokens of a window.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import exp, log
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from crate_dsl.compiler.graph import ModelGraph
from crate_dsl.training.data import Part, Scaling
from crate_dsl.training.feed import Feed, Reading
from crate_dsl.training.text import Windows

#: Images in a batch where nothing is trained.
MEASURING_BATCH = 500
#: Tokens in such a batch, and logits: a batch of tokens has as many as its network's vocabulary for each.
MEASURING_TOKENS, MEASURING_LOGITS = 2**14, 2**25
#: A perplexity is said up to e to this power, which is no number any more in floating point soon after.
MOST_NATS = 700.0
#: The share of a GPU's free memory that images may take; the rest is the network's.
SHARE = 0.25
#: Declared draws of a measurement come from this seed, so that epochs can be compared.
MEASURING_SEED = 0


def stream(seed: int, epoch: int, use: int) -> int:
    """The seed of one independent stream of random numbers; a run's streams are those of its epochs and uses."""
    return int(np.random.SeedSequence((seed, epoch, use)).generate_state(1, np.uint64)[0])


def fits(bytes: int, device: torch.device) -> bool:
    """Whether images of that size may lie on the device all the time."""
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return bytes <= SHARE * free


class Fed(Protocol):
    """A part of some data, as training and measuring take it, whatever it is.

    `lies` is where numbers of samples must be to be chosen by, `device` is where batches go; `portion` samples are
    measured at once. `scores` is the output that scores `labels_n`, where there are labels.
    """

    lies: torch.device
    device: torch.device
    portion: int
    scores: str | None
    labels_n: Tensor | None

    def __len__(self) -> int: ...

    def batch(self, chosen_b: Tensor | slice) -> dict[str, Tensor]:
        """Some samples, by the names of the spec's inputs and targets."""
        ...

    def weight(self, batch: Mapping[str, Tensor]) -> int:
        """How many the mean loss of a batch counts for."""
        ...

    def likelihood(self, loss: float) -> Likelihood | None:
        """What a loss says of text; None where it says nothing of it."""
        ...


@dataclass(frozen=True)
class Likelihood:
    """What a mean loss in nats per token comes to: e to its power, and bits per character where every token is told."""

    perplexity: float
    bits_per_character: float | None


class Held:
    """A part as tensors, and its batches on a device.

    The part lies on the device itself, or in the host's memory where it would leave a GPU too little for the network.
    """

    def __init__(self, part: Part, scaling: Scaling, feed: Feed, device: torch.device) -> None:
        self.feed, self.scores, self.portion = feed, feed.scores, MEASURING_BATCH
        lies = device if fits(part.images_nchw.nbytes, device) else torch.device("cpu")
        self.images_nchw = torch.from_numpy(part.images_nchw).to(lies)
        self.labels_n = None if part.labels_n is None else torch.from_numpy(part.labels_n).to(lies)
        self.lies = self.images_nchw.device
        # (pixel / 255 - mean) / std as one multiplication and one addition.
        mean_c11, std_c11 = (
            torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (scaling.mean, scaling.std)
        )
        white = 255.0 if self.images_nchw.dtype == torch.uint8 else 1.0
        self._factor_c11 = (1 / (white * std_c11)).float().to(device)
        self._offset_c11 = (-mean_c11 / std_c11).float().to(device)
        self.device = self._offset_c11.device

    def __len__(self) -> int:
        return len(self.images_nchw)

    def batch(self, chosen_b: Tensor | slice) -> dict[str, Tensor]:
        """Scaled images and their labels, by the names of the spec's inputs and targets."""
        image_bchw = torch.addcmul(
            self._offset_c11, self._taken(self.images_nchw, chosen_b).float(), self._factor_c11
        )
        found = {self.feed.image: image_bchw}
        for name in self.feed.labels:
            assert self.labels_n is not None  # check_fits saw to it
            found[name] = self._taken(self.labels_n, chosen_b)
        return found

    def weight(self, batch: Mapping[str, Tensor]) -> int:
        """How many images a batch has."""
        return len(batch[self.feed.image])

    def likelihood(self, loss: float) -> Likelihood | None:
        """Pictures have no tokens."""
        return None

    def _taken(self, whole_n: Tensor, chosen_b: Tensor | slice) -> Tensor:
        """Some of what is held, on the device, as it is held: pixels travel as bytes."""
        if whole_n.device == self.device:
            return whole_n[chosen_b]
        # From pinned memory the GPU fetches a batch by itself, and the next one is put together meanwhile. torch keeps
        # pinned memory from being used again before it has been fetched.
        return whole_n[chosen_b].pin_memory().to(self.device, non_blocking=True)


class HeldTexts:
    """Windows of tokens, and their batches on a device; `share` is how many tokens there are for each character."""

    scores: str | None = None
    labels_n: Tensor | None = None

    def __init__(self, windows: Windows, share: float, reading: Reading, device: torch.device) -> None:
        self.windows, self.share, self.reading, self.device = windows, share, reading, device
        self.lies = torch.device("cpu")
        tokens = min(MEASURING_TOKENS, MEASURING_LOGITS // reading.vocabulary)
        self.portion = max(1, tokens // reading.length)

    def __len__(self) -> int:
        return len(self.windows)

    def batch(self, chosen_b: Tensor | slice) -> dict[str, Tensor]:
        """The tokens of some windows, int64, and which of them are real where the spec asks for that."""
        numbers_b = (
            np.arange(*chosen_b.indices(len(self))) if isinstance(chosen_b, slice) else chosen_b.numpy()
        )
        ids_bn, kept_bn = self.windows.take(numbers_b)
        found = {self.reading.ids: self._on_device(torch.from_numpy(ids_bn))}
        if self.reading.kept is not None:
            found[self.reading.kept] = self._on_device(torch.from_numpy(kept_bn))
        return found

    def _on_device(self, tensor: Tensor) -> Tensor:
        if self.device.type == "cpu":
            return tensor
        return tensor.pin_memory().to(self.device, non_blocking=True)  # see Held

    def weight(self, batch: Mapping[str, Tensor]) -> int:
        """How many tokens a batch has to tell."""
        first = 1 if self.reading.predicts == "next" else 0
        if self.reading.kept is None:
            return batch[self.reading.ids][:, first:].numel()
        return int(batch[self.reading.kept][:, first:].sum())

    def likelihood(self, loss: float) -> Likelihood | None:
        """Perplexity, and bits per character of what tells every token; None where a loss is more than that."""
        if self.reading.predicts is None:
            return None
        bits = loss * self.share / log(2) if self.reading.predicts == "next" else None
        return Likelihood(exp(min(loss, MOST_NATS)), bits)


class Batches:
    """The batches of an epoch, shuffled anew in each by (seed, epoch) alone.

    What does not fill a batch is left out, someone else in each epoch; a part smaller than a batch is one batch.
    """

    def __init__(self, held: Fed, size: int, seed: int) -> None:
        self.held = held
        self.size = min(size, len(held))
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.held) // self.size

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        lots = torch.Generator().manual_seed(stream(self.seed, self.epoch, 0))
        order_n = torch.randperm(len(self.held), generator=lots).to(self.held.lies)
        for start in range(0, len(self) * self.size, self.size):
            yield self.held.batch(order_n[start : start + self.size])


@dataclass(frozen=True)
class Scores:
    """How a network does on a part of so many `samples`: images, or windows of text.

    `predictions_n` are the classes with the largest score, where there are classes; `likelihood` is there for text.
    """

    samples: int
    loss: float | None
    accuracy: float | None
    predictions_n: np.ndarray[Any, np.dtype[np.int64]] | None
    likelihood: Likelihood | None = None


def measure(graph: ModelGraph, net: nn.Module, objective: nn.Module | None, held: Fed) -> Scores:
    """Mean loss and accuracy over a part, in float32, with everything random switched off or drawn from one seed."""
    was_training = net.training
    losses: list[tuple[float, int]] = []
    predictions: list[Tensor] = []
    for module in filter(None, (net, objective)):
        module.eval()
    device = held.device
    with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(MEASURING_SEED)
        for start in range(0, len(held), held.portion):
            batch = held.batch(slice(start, start + held.portion))
            if objective is not None:
                losses.append((float(objective(batch)), held.weight(batch)))
            if held.scores is not None:
                predictions.append(_scores(graph, net, batch, held.scores).argmax(dim=-1))
    for module in filter(None, (net, objective)):
        module.train(was_training)
    chosen_n = torch.cat(predictions) if predictions else None
    accuracy = None
    if chosen_n is not None and held.labels_n is not None:
        accuracy = float((chosen_n == held.labels_n.to(device)).double().mean())
    whole = sum(count for _, count in losses)
    loss = sum(loss * count for loss, count in losses) / whole if whole else None
    return Scores(
        len(held),
        loss,
        accuracy,
        None if chosen_n is None else chosen_n.cpu().numpy(),
        None if loss is None else held.likelihood(loss),
    )


def _scores(graph: ModelGraph, net: nn.Module, batch: Mapping[str, Tensor], output: str) -> Tensor:
    """The output that scores the classes, (B, classes)."""
    result = net(**{name: batch[name] for name in graph.export_inputs if name in batch})
    scores_bk: Tensor = result[output] if isinstance(result, Mapping) else result
    return scores_bk
