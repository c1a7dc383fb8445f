from __future__ import annotations

import numpy as np
import pytest

from crate_dsl.language.diagnostics import UserError
from crate_dsl.training.data import MOST_VALIDATION_IMAGES, Data, Part, Scaling, assembled, stratified
from crate_dsl.training.sources import open_data


def rows(part: Part) -> set[bytes]:
    return {image.tobytes() for image in part.images_nchw}


@pytest.fixture(scope="module")
def digits() -> Data:
    return open_data("digits")


def test_parts_are_disjoint_and_complete(digits: Data) -> None:
    parts = (digits.train, digits.validation, digits.test)
    assert sum(map(len, parts)) == 1797
    for one in range(3):
        for other in range(one):
            assert not rows(parts[one]) & rows(parts[other])


def test_every_class_has_its_share(digits: Data) -> None:
    for part, share in ((digits.train, 0.72), (digits.validation, 0.08), (digits.test, 0.2)):
        counts = np.bincount(part.labels_n, minlength=10)
        np.testing.assert_allclose(counts / len(part), 0.1, atol=0.012)
        assert len(part) == pytest.approx(share * 1797, abs=6)


def test_reading_again_gives_the_same(digits: Data) -> None:
    assert open_data("digits").fingerprint == digits.fingerprint
    assert digits.limited(100).fingerprint != digits.fingerprint


def test_mnist5k_has_its_shape() -> None:
    data = open_data("mnist5k")
    assert (data.shape, len(data.train), len(data.validation), len(data.test)) == (
        (1, 28, 28),
        3600,
        400,
        1000,
    )
    assert data.scaling.mean == pytest.approx((0.131,), abs=0.005)


def test_limiting_leaves_the_test_alone(digits: Data) -> None:
    limited = digits.limited(100)
    assert abs(len(limited.train) - 100) <= 5
    assert limited.test is digits.test
    assert rows(limited.train) <= rows(digits.train)


def test_validation_is_bounded(
    monkeypatch: pytest.MonkeyPatch, images: np.ndarray, labels: np.ndarray
) -> None:
    assert MOST_VALIDATION_IMAGES == 2000
    monkeypatch.setattr("crate_dsl.training.data.MOST_VALIDATION_IMAGES", 3)
    part = Part(images[:, None], labels)
    assert len(assembled("some", part, part).validation) == 3


def test_stratified_is_a_partition() -> None:
    labels = np.repeat([0, 1, 2], [50, 7, 3])
    remaining, cut = stratified(labels, 60, 0.2)
    assert sorted([*remaining, *cut]) == list(range(60))
    assert np.bincount(labels[cut], minlength=3).tolist() == [10, 1, 1]


def test_scaling_against_its_formula(images: np.ndarray) -> None:
    colour = np.stack([images, 255 - images, images // 2], axis=1)
    for pictures in (colour, (colour / 255).astype(np.float32)):
        unit = colour.astype(np.float64) / 255
        scaling = Scaling.of(pictures)
        # Nine digits: float32 images are rounded before anything is computed.
        np.testing.assert_allclose(scaling.mean, unit.mean(axis=(0, 2, 3)), rtol=1e-7)
        np.testing.assert_allclose(scaling.std, unit.std(axis=(0, 2, 3)), rtol=1e-7)
        scaled = scaling.apply(pictures)
        # float32 has seven digits.
        np.testing.assert_allclose(scaled.mean(axis=(0, 2, 3)), 0, atol=1e-5)
        np.testing.assert_allclose(scaled.std(axis=(0, 2, 3)), 1, rtol=1e-5)


def test_a_constant_channel_has_spread_one() -> None:
    assert Scaling.of(np.zeros((4, 1, 3, 2), np.uint8)) == Scaling((0.0,), (1.0,))


def part(images: np.ndarray, labels: np.ndarray | None) -> Part:
    return Part(images, labels)


def test_bad_images_and_labels_are_named(images: np.ndarray, labels: np.ndarray) -> None:
    floats = (images[:, None] / 255).astype(np.float32)
    broken = floats.copy()
    broken[7, 0, 2, 3] = np.nan
    cases = {
        "hold NaN or infinity, the first is number 7": Part(broken, labels),
        "reach from 0 to 255": Part(images[:, None].astype(np.float32), labels),
        "there is nothing to see": Part(floats[:0], labels[:0]),
        "90 training images have 80 labels": Part(floats, labels[:80]),
        "a training label is -1": Part(floats, labels - 1),
    }
    for message, wrong in cases.items():
        with pytest.raises(UserError, match=message):
            assembled("some", wrong, None)


def test_parts_that_disagree_are_named(images: np.ndarray, labels: np.ndarray) -> None:
    sound = Part(images[:, None], labels)
    for message, other in {
        "1 x 6 x 5 uint8, but test images are 1 x 6 x 4 uint8": Part(images[:, None, :, :4], labels),
        "need labels both, or neither": Part(images[:, None], None),
        "a test label is 3, but there are 3 classes": Part(images[:, None], labels + 1),
    }.items():
        with pytest.raises(UserError, match=message):
            assembled("some", sound, other)
