"""Declared draws: what each word draws, and which types it has."""

from __future__ import annotations

import numpy as np
import pytest

from crate_dsl.compiler.draws import Choose, Draw, NormalDraw, Shuffle, UniformDraw, as_data, from_data
from crate_dsl.compiler.types import Dim, Symbol, TensorType, floats

N = Dim.symbolic(Symbol("n", 12))
MASK = TensorType("bool", (Dim(3), N))


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize(
    ("ratio", "places", "marked"),
    [(0.75, 196, 147), (0.75, 5, 4), (0.9, 10, 9), (5 / 6, 6, 5), (0.0, 7, 0), (1.0, 7, 7), (0.5, 1, 1)],
)
def test_masks_mark_what_the_rule_says(ratio: float, places: int, marked: int) -> None:
    """N - ⌊N (1 - r)⌋ in exact arithmetic."""
    form = Choose(ratio=ratio)
    assert form.marked(places) == marked
    drawn = form.sample(MASK, 4, {"n": places}, rng())
    assert drawn.shape == (4, 3, places) and drawn.dtype == np.bool_
    assert (drawn.sum(axis=-1) == marked).all()


def test_masks_are_drawn_for_each_sample_anew() -> None:
    drawn = Choose(ratio=0.5).sample(TensorType("bool", (Dim(64),)), 2, {}, rng())
    assert (drawn[0] != drawn[1]).any()


def test_every_place_is_marked_equally_often() -> None:
    drawn = Choose(ratio=0.25).sample(TensorType("bool", (Dim(8),)), 4000, {}, rng())
    # A share of 4,000 draws at 1/4 has a standard deviation of 0.007: four of them.
    np.testing.assert_allclose(drawn.mean(axis=0), 0.25, atol=0.028)


def test_chosen_indices_are_distinct() -> None:
    drawn = Choose().sample(TensorType("index", (Dim(2), Dim(5)), classes=9), 50, {}, rng())
    assert drawn.shape == (50, 2, 5) and drawn.dtype == np.int64
    assert set(np.unique(drawn)) == set(range(9))
    assert all(len(set(row)) == 5 for row in drawn.reshape(-1, 5))


def test_shuffles_are_permutations() -> None:
    drawn = Shuffle().sample(TensorType("index", (Dim(6),), classes=6), 50, {}, rng())
    assert (np.sort(drawn, axis=-1) == np.arange(6)).all()
    assert len({tuple(row) for row in drawn}) > 40


def test_numbers() -> None:
    normal = NormalDraw(std=3).sample(floats(5, N), 100, {"n": 12}, rng())
    assert normal.shape == (100, 5, 12) and normal.dtype == np.float32
    assert abs(normal.std() - 3) < 0.12  # 6,000 draws: a standard error of 0.027
    uniform = UniformDraw(low=-1, high=3).sample(floats(5, N), 100, {"n": 12}, rng())
    assert uniform.dtype == np.float32 and -1 <= uniform.min() < -0.9 and 2.9 < uniform.max() < 3


@pytest.mark.parametrize(
    ("form", "wanted", "problem"),
    [
        (NormalDraw(), MASK, "`normal` draws float numbers, but this input is bool[3, n]"),
        (UniformDraw(), MASK, "`uniform` draws float numbers, but this input is bool[3, n]"),
        (
            UniformDraw(low=1, high=1),
            floats(),
            "`uniform` goes from a lower number up to a higher one, not from 1 to 1",
        ),
        (Choose(ratio=0.5), floats(4), "`choose(0.5)` marks places of bool[…], but this input is float[4]"),
        (Choose(), floats(4), "`choose` draws index(places)[…], but this input is float[4]"),
        (Choose(), TensorType("index", (N,), 8), "there are no 12 distinct indices below 8"),
        (
            Shuffle(),
            TensorType("index", (N,), 12),
            "`shuffle` draws every index once, index(n)[n], but this input is index(12)[n]",
        ),
        (NormalDraw(), floats(3), None),
        (UniformDraw(), floats(), None),
        (Choose(ratio=0.5), MASK, None),
        (Choose(), TensorType("index", (N,), 12), None),
        (Shuffle(), TensorType("index", (Dim(4),), 4), None),
    ],
)
def test_which_types_are_drawn(form: Draw, wanted: TensorType, problem: str | None) -> None:
    assert form.check(wanted) == problem


@pytest.mark.parametrize(
    "form", [NormalDraw(std=0.5), UniformDraw(), Choose(), Choose(ratio=0.75), Shuffle()]
)
def test_plain_data_and_back(form: Draw) -> None:
    assert from_data(as_data(form)) == form


@pytest.mark.parametrize(
    "data", [{}, {"word": "dream"}, {"word": "normal", "std": -1}, {"word": "shuffle", "ratio": 1}]
)
def test_data_that_are_no_draw(data: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        from_data(data)
