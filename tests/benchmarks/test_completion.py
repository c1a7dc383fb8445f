"""The benchmark of masked completion: its guesses on cases made by hand, and all of it, small."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import completion
from crate_dsl.training.data import Scaling

COMPLETION = Path(__file__).parents[1] / "training" / "completion.crate"
#: Rounding of float64 over a few terms.
EXACT = 1e-12


def test_patches_and_back() -> None:
    images_nchw = np.arange(2 * 3 * 4 * 6).reshape(2, 3, 4, 6)
    patches_ntm = completion.in_patches(images_nchw, 2)
    assert patches_ntm.shape == (2, 6, 12)
    # The second patch of the first row, by row, column, channel.
    wanted = [images_nchw[0, c, h, w] for h in (0, 1) for w in (2, 3) for c in (0, 1, 2)]
    assert patches_ntm[0, 1].tolist() == wanted
    assert (completion.in_pictures(patches_ntm, 2, columns=3) == images_nchw).all()


def test_the_nearest_visible_patch() -> None:
    patches_ntm = np.arange(9.0).reshape(1, 9, 1)  # a grid of 3 x 3, each patch its own number
    hidden_nt = np.ones((1, 9), bool)
    hidden_nt[0, [1, 5, 6]] = False
    # .  1  .      Patch 4 is as far from 1 as from 5: the first is taken. So it is with 3 (1 is farther than 6)
    # .  .  5      and with 7 (6 is nearest), 8 (5), 2 (1 and 5 are as far), 0 (1).
    # 6  .  .
    found = completion.nearest_visible(patches_ntm, hidden_nt, columns=3)
    assert found[0, :, 0].tolist() == [1, 1, 1, 6, 1, 5, 6, 6, 5]


def test_between_visible_pixels() -> None:
    pixels_nk = np.array([[1.0, 7.0, 7.0, 4.0]])
    hidden_nk = np.array([[False, True, True, False]])
    at_k2 = np.array([[0, 0], [0, 1], [0, 2], [0, 3]])
    found = completion.between_pixels(pixels_nk, hidden_nk, at_k2, power=2)
    assert np.abs(found - [[1, (1 + 4 / 4) / (1 + 1 / 4), (1 / 4 + 4) / (1 / 4 + 1), 4]]).max() < EXACT


def test_the_best_linear_guess() -> None:
    # Two pixels with mean 0, 1, variances 1 and 4, covariance 1: E[second | first = 2] = 1 + 1 / 1 * 2.
    covariance_kk = np.array([[1.0, 1.0], [1.0, 4.0]])
    hidden_nk = np.array([[False, True]])
    found = completion.gaussian(
        np.array([[2.0, 9.0]]), hidden_nk, np.array([0.0, 1.0]), covariance_kk, ridge=0
    )
    assert np.abs(found - [[2, 3]]).max() < EXACT


def test_guesses_see_nothing_that_is_hidden() -> None:
    lots = np.random.default_rng(0)
    train_nk, pixels_ntm = lots.random((40, 36)), lots.random((5, 9, 4))
    hidden_nt = lots.random((5, 9)).argsort(1) < 6
    changed_ntm = np.where(hidden_nt[..., None], 1 - pixels_ntm, pixels_ntm)
    found = completion.guesses(train_nk, pixels_ntm, hidden_nt, patch=2, columns=3)
    again = completion.guesses(train_nk, changed_ntm, hidden_nt, patch=2, columns=3)
    assert (found["mean image"][0].reshape(-1) == train_nk.mean(0)).all()
    for name, guess in found.items():
        assert (guess[hidden_nt] == again[name][hidden_nt]).all(), name


def test_errors_are_those_of_hidden_patches() -> None:
    pixels_ntm = np.zeros((1, 2, 4))
    hidden_nt = np.array([[True, False]])
    found = completion.errors(
        np.array([[[1.0, 0, 0, 1], [5, 5, 5, 5]]]), pixels_ntm, hidden_nt, Scaling((0.3,), (0.5,))
    )
    assert found == {"pixels": 0.5, "scaled": 2.0}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what a small run writes."""
    folder = tmp_path_factory.mktemp("completion")
    arguments = {
        "--target": COMPLETION,
        "--data": "digits",
        "--limit": 256,
        "--epochs": 2,
        "--out": folder / "runs",
        "--numbers": folder / "numbers.json",
        "--picture": folder / "picture.png",
    }
    completion.main([str(word) for pair in arguments.items() for word in pair])
    return folder


def test_all_of_it(done: Path) -> None:
    results = json.loads((done / "numbers.json").read_text())
    (run,) = results["runs"]
    assert run["proof"]["passed"] and len(run["validation_loss"]) == 2
    test = json.loads((done / "runs" / "crate-mae-0" / "test.json").read_text())
    # Other masks than those of the run's own test, and 359 pictures: a tenth.
    assert run["errors"]["CRATE-MAE"]["scaled"] == pytest.approx(test["loss"], rel=0.1)
    assert set(results["mean_errors"]) == {
        "CRATE-MAE",
        "mean image",
        "nearest visible patch",
        "between visible pixels",
        "best linear guess",
    }
    with Image.open(done / "picture.png") as picture:
        assert picture.width > 500
