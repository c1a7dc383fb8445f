"""Fixed tables of `position`, in float64: sines and cosines, and the matrices that resize a learned table."""

from __future__ import annotations

import numpy as np

from crate_dsl.compiler.steps.position.operator import Positions


def sines(places_n: np.ndarray, width: int, temperature: float) -> np.ndarray:
    """Places on a line -> (n, width): sines, then cosines, of the place times width / 2 falling frequencies.

    Vaswani et al. 2017, section 3.5, laid out as in He et al. 2022 (MAE).
    """
    half = width // 2
    frequencies = temperature ** -(np.arange(half) / half)
    angles = np.outer(places_n, frequencies)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def sincos_table(facts: Positions, width: int, temperature: float) -> np.ndarray:
    """The fixed positions of one use: (rows, width)."""
    if not facts.patches:
        return sines(np.arange(facts.rows), width, temperature)
    table = np.zeros((facts.rows, width))
    for patches in facts.patches:
        row, column = np.divmod(np.arange(patches.count), patches.columns)
        # Columns first: the published code calls this half rows, but computes it from the x coordinate.
        halves = [sines(place, width // 2, temperature) for place in (column, row)]
        table[patches.start : patches.start + patches.count] = np.concatenate(halves, axis=1)
    return table


def cubic(old: int, new: int) -> np.ndarray:
    """The matrix, (new, old), of cubic interpolation between `old` samples: pixel centres, borders repeated.

    Keys 1981 with a = -0.75: one axis of torch's `interpolate(mode="bicubic", align_corners=False)`.
    """
    a = -0.75
    places = (np.arange(new) + 0.5) * old / new - 0.5
    first = np.floor(places).astype(int)
    matrix = np.zeros((new, old))
    for tap in (-1, 0, 1, 2):
        x = np.abs(places - (first + tap))
        near = ((a + 2) * x - (a + 3)) * x**2 + 1
        far = a * (((x - 5) * x + 8) * x - 4)
        weights = np.where(x <= 1, near, far)
        np.add.at(matrix, (np.arange(new), np.clip(first + tap, 0, old - 1)), weights)
    return matrix
