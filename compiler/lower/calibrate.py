"""Calibration: between what the numbers lie that an affine map is given, as real data have them.

A range is chosen, and not read off: of those that share the observed range's middle of zero, the one whose rounding and
clipping together cost the least squared error. A single far number would else make every step coarse.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from crate_dsl.compiler.lower import Lowered, built
from crate_dsl.compiler.lower.precision import Range, worthwhile

#: Bins of the histograms that stand for a tensor's numbers.
BINS = 4096
#: The shares of the observed range that are tried.
SHARES = np.linspace(1.0, 0.2, 81)


def calibrate(lowered: Lowered, batches: Iterable[Mapping[str, Tensor]]) -> dict[str, Range]:
    """The range of the input of every map that int8 pays for, by path.

    Args:
        lowered: The network, in float32.
        batches: Inputs by name, as the network takes them: real ones, of the training data. Gone through twice.
    """
    net = built(lowered.graph, lowered.weights)
    batches = list(batches)
    paths = list(worthwhile(lowered.graph))
    ends = {path: (0.0, 0.0) for path in paths}

    def widen(path: str, z: Tensor) -> None:
        low, high = ends[path]
        ends[path] = min(low, float(z.min())), max(high, float(z.max()))

    _observe(net, paths, batches, widen)
    counts = {path: np.zeros(BINS) for path in paths}

    def count(path: str, z: Tensor) -> None:
        low, high = ends[path]
        counts[path] += torch.histc(z.float(), BINS, low, high or 1.0).numpy()

    _observe(net, paths, batches, count)
    return {path: least_error(counts[path], *ends[path]) for path in paths}


def least_error(counts: NDArray[np.float64], low: float, high: float) -> Range:
    """The range of least squared error for numbers with this histogram between `low` and `high`.

    >>> least_error(np.ones(64), -1.0, 1.0)  # evenly spread: all of it
    Range(low=-1.0, high=1.0)
    """
    edges = np.linspace(low, high, len(counts) + 1)
    centres = (edges[1:] + edges[:-1]) / 2
    tried = [Range(float(low * share), float(high * share)) for share in SHARES]
    errors = []
    for between in tried:
        whole = np.clip(np.round(centres / between.step) + between.origin, 0, 255)
        errors.append(float(counts @ ((whole - between.origin) * between.step - centres) ** 2))
    return tried[int(np.argmin(errors))]


def _observe(
    net: nn.Module,
    paths: Sequence[str],
    batches: Iterable[Mapping[str, Tensor]],
    see: Callable[[str, Tensor], None],
) -> None:
    """Run all batches, and show the input of the module at each path."""
    with ExitStack() as hooks, torch.inference_mode():
        for path in paths:
            hooked = net.get_submodule(path).register_forward_pre_hook(
                lambda _, given, path=path: see(path, given[0])
            )
            hooks.callback(hooked.remove)
        for batch in batches:
            net(**batch)
