"""Timing without fooling oneself: variants in turns, rest before each, medians, and ratios within one process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from time import perf_counter, sleep
from typing import Any

import numpy as np

#: Seconds of rest before each variant: idle threads of the one before go on spinning for a while.
REST = 0.025
#: How many rounds one process measures, whatever they take, and how many are enough.
LEAST, MOST = 4, 40


@dataclass(frozen=True, slots=True)
class Effort:
    """How long one process measures: until `seconds` are over, but between `least` and `most` rounds.

    `warm` says whether each runs once untimed before it is timed; what takes many seconds does not need it.
    """

    seconds: float = 10.0
    least: int = LEAST
    most: int = MOST
    warm: bool = True


def interleaved(variants: Mapping[str, Callable[[], object]], effort: Effort) -> dict[str, list[float]]:
    """Seconds of every variant, round by round.

    In each round every variant rests, runs once untimed, and runs once timed. The first is another one each round, so
    that none has always the same neighbour before it.
    """
    names = list(variants)
    if effort.warm:
        for run in variants.values():
            run()
    times: dict[str, list[float]] = {name: [] for name in names}
    began = perf_counter()
    for turn in range(effort.most):
        if turn >= effort.least and perf_counter() - began > effort.seconds:
            break
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            run = variants[name]
            sleep(REST)
            if effort.warm:
                run()
            started = perf_counter()
            run()
            times[name].append(perf_counter() - started)
    return times


def spread(samples: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    if len(samples) == 1:
        return dict.fromkeys(("median", "low", "high"), samples[0])
    low, middle, high = quantiles(samples, n=4, method="inclusive")
    return {"median": middle, "low": low, "high": high}


def rows(times: Mapping[str, Sequence[float]], reference: str) -> dict[str, dict[str, Any]]:
    """Every variant's median and quartiles in seconds, and `ratio`: how many times as fast as the reference it is."""
    base = median(times[reference])
    return {
        name: {**spread(samples), "rounds": len(samples), "ratio": base / median(samples)}
        for name, samples in times.items()
    }


def over_processes(found: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Rows of several processes as one: of each number the median, and all ratios, in order, as `ratios`.

    A ratio is that within one process; numbers of different processes are never divided.
    """
    joined: dict[str, dict[str, Any]] = {}
    for name, row in found[0].items():
        joined[name] = {key: median(part[name][key] for part in found) for key in row}
        joined[name]["ratios"] = sorted(part[name]["ratio"] for part in found)
    return joined


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """P where cost ~ size^p, by least squares of the logarithms."""
    slope, _ = np.polyfit(np.log(sizes), np.log(costs), 1)
    return float(slope)


def local_exponents(sizes: Sequence[float], costs: Sequence[float]) -> Iterator[float]:
    """The exponent between each size and the next."""
    for index in range(1, len(sizes)):
        yield exponent(sizes[index - 1 : index + 1], costs[index - 1 : index + 1])


def error(found: Any, wanted: Any) -> float:
    """The largest difference, in parts of the largest number wanted."""
    found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())
