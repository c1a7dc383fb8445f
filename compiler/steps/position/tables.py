"""Fixed tables of `position`, in float64: sines and cosines, and the matrices that resize a learned table."""

from __future__ import annotations

import numpy as np

from crate_dsl.compiler.steps.position.operator import FOURIER_FEATURES, Positions


def sines(places_n: np.ndarray, width: int, temperature: float) -> np.ndarray:
    """Places on a line -> (n, width): sines, then cosines, of the place times width / 2 falling frequencies.

    Vaswani et al. 2017, section 3.5, laid out as in He et al. 2022 (MAE).
    """
    angles = np.outer(places_n, frequencies(width, temperature))
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def frequencies(width: int, temperature: float) -> np.ndarray:
    """The width / 2 falling frequencies of an embedding: 1, …, near 1 / temperature."""
    half = width // 2
    falling: np.ndarray = temperature ** -(np.arange(half) / half)
    return falling


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


def fourier_features(facts: Positions, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """The fixed features of `position(fourier)`, (rows, 64), zero beside the grids; and what lies in one, (rows, 1).

    El-Nouby et al. 2021 (XCiT): rows first, counted from 1 and up to 2π; sines and cosines in turn.
    """
    features, inside = np.zeros((facts.rows, FOURIER_FEATURES)), np.zeros((facts.rows, 1))
    half = FOURIER_FEATURES // 2
    for patches in facts.patches:
        places = np.divmod(np.arange(patches.count), patches.columns)
        halves = []
        for place, count in zip(places, (patches.rows, patches.columns), strict=True):
            table = sines(2 * np.pi * (place + 1) / count, half, temperature)
            # (sines, cosines) -> (sine, cosine, sine, …)
            halves.append(table.reshape(-1, 2, half // 2).transpose(0, 2, 1).reshape(-1, half))
        these = slice(patches.start, patches.start + patches.count)
        features[these], inside[these] = np.concatenate(halves, axis=1), 1.0
    return features, inside


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
