"""Labelled images in memory: what a source must come to, however its files look, before anything is trained on it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from crate_dsl.language.diagnostics import UserError

#: All images of a source are held in memory: more bytes than this are refused before they are read.
MAXIMUM_BYTES = 8 * 2**30
#: The shares that are cut off where a source does not cut them itself.
TEST_SHARE = 0.2
VALIDATION_SHARE = 0.1
#: More would only be missing from training: with this number an accuracy of 90 % is known to within 0.7 %.
MOST_VALIDATION_IMAGES = 2000
#: Splits belong to the data, not to a run: the same for every seed, so that runs can be compared.
SPLIT_SEED = 0

Images = NDArray[np.uint8] | NDArray[np.float32]
Labels = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Part:
    """Images, (N, C, H, W), uint8 or float32 on a 0..1 scale; and their labels, (N,), where the source has any."""

    images_nchw: Images
    labels_n: Labels | None

    def __len__(self) -> int:
        return len(self.images_nchw)

    def take(self, chosen: NDArray[np.int64]) -> Part:
        """The part that consists of these images, in this order."""
        return Part(self.images_nchw[chosen], None if self.labels_n is None else self.labels_n[chosen])


@dataclass(frozen=True)
class Scaling:
    """What becomes of pixels before a network sees them: (pixel on a 0..1 scale - mean) / std, for each channel.

    It belongs to the network's meaning and travels with its weights.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @staticmethod
    def of(images_nchw: Images) -> Scaling:
        """The mean and spread of images, channel by channel; the spread of a channel that never changes counts as 1."""
        means: list[float] = []
        spreads: list[float] = []
        for channel in range(images_nchw.shape[1]):
            pixels = images_nchw[:, channel]
            if pixels.dtype == np.uint8:
                # Exact whatever the number of images: from how often each of the 256 values occurs.
                counts = np.bincount(pixels.reshape(-1), minlength=256)
                values = np.arange(256) / 255
                mean = float(counts @ values / counts.sum())
                spread = float(np.sqrt(counts @ (values - mean) ** 2 / counts.sum()))
            else:
                mean = float(pixels.mean(dtype=np.float64))
                spread = float(pixels.std(dtype=np.float64))
            means.append(mean)
            spreads.append(spread or 1.0)
        return Scaling(tuple(means), tuple(spreads))

    def apply(self, images_nchw: Images) -> NDArray[np.float32]:
        """Scaled float32 images of the same shape."""
        mean_c11, std_c11 = (
            np.asarray(values, np.float32)[:, None, None] for values in (self.mean, self.std)
        )
        return (on_unit_scale(images_nchw) - mean_c11) / std_c11


def on_unit_scale(images: Images) -> NDArray[np.float32]:
    """Pixels as float32 from 0 to 1."""
    scaled: NDArray[np.float32] = images.astype(np.float32)
    return scaled / np.float32(255) if images.dtype == np.uint8 else scaled


@dataclass(frozen=True, eq=False)
class Data:
    """A source, read and checked. `text` is how it was asked for; `classes` are the labels' names (empty: no labels).

    The test images serve the final count alone: nothing is trained on them and nothing is chosen by them. Validation
    images are cut from the training images.
    """

    text: str
    classes: tuple[str, ...]
    train: Part
    validation: Part
    test: Part

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width of every image."""
        _, channels, height, width = self.train.images_nchw.shape
        return channels, height, width

    @cached_property
    def scaling(self) -> Scaling:
        """Mean and spread of the training images."""
        return Scaling.of(self.train.images_nchw)

    @cached_property
    def fingerprint(self) -> str:
        """Says whether two readings of a source gave the same images and labels in the same order."""
        digest = blake2b(digest_size=16)
        for part in (self.train, self.validation, self.test):
            for array in (part.images_nchw, part.labels_n):
                digest.update(repr(None if array is None else (array.shape, array.dtype.str)).encode())
                if array is not None:
                    digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def limited(self, images: int) -> Data:
        """The same data with at most this many training images, of all classes in proportion."""
        if images >= len(self.train):
            return self
        _, chosen = stratified(self.train.labels_n, len(self.train), images / len(self.train))
        return replace(self, train=self.train.take(chosen))

    def __repr__(self) -> str:
        sizes = f"{len(self.train)} + {len(self.validation)} training, {len(self.test)} test"
        return (
            f"Data({self.text!r}: {sizes}, {len(self.classes)} classes, {' x '.join(map(str, self.shape))})"
        )


def stratified(
    labels_n: Labels | None, count: int, share: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The indices that remain and those cut off: of every class the same share, by the same lot each time."""
    # The legacy generator on purpose: its stream is frozen for ever, so splits do not move with numpy's versions.
    lots_n = np.random.RandomState(SPLIT_SEED).permutation(count)
    labels_n = np.zeros(count, np.int64) if labels_n is None else labels_n
    off = [
        members[np.argsort(lots_n[members])][: round(share * len(members))]
        for label in np.unique(labels_n)
        if len(members := np.flatnonzero(labels_n == label))
    ]
    cut = np.sort(np.concatenate(off)) if off else np.zeros(0, np.int64)
    return np.setdiff1d(np.arange(count), cut), cut


def assembled(
    text: str,
    train: Part,
    test: Part | None,
    classes: tuple[str, ...] | None = None,
    validation: Part | None = None,
) -> Data:
    """Check a source's images and labels, cut what is still to be cut, and name the classes.

    Without `classes` the names are the numbers up to the largest training label; without `test` a stratified fifth of
    the images becomes the test part; without `validation` a tenth of the training images, or 2,000, is held back.

    Raises:
        UserError: no images, pixels that are no numbers or off the scale, labels that do not match images or classes.
    """
    given = {"training": train, "validation": validation, "test": test}
    for name, part in given.items():
        if part is not None:
            _check(text, name, part)
            _check_alike(text, train, name, part)
    if classes is None:
        classes = () if train.labels_n is None else tuple(map(str, range(int(train.labels_n.max()) + 1)))
    for name, part in given.items():
        if part is not None and part.labels_n is not None and part.labels_n.max() >= len(classes):
            raise UserError(
                f"{text}: a {name} label is {part.labels_n.max()}, but there are {len(classes)} classes",
                f"labels are whole numbers from 0 to {len(classes) - 1}",
            )
    if test is None:
        remaining, cut = stratified(train.labels_n, len(train), TEST_SHARE)
        if not len(cut) or not len(remaining):
            raise UserError(f"{text}: {len(train)} images are too few to keep some of them for the test")
        train, test = train.take(remaining), train.take(cut)
    if validation is None:
        share = min(VALIDATION_SHARE, MOST_VALIDATION_IMAGES / len(train))
        remaining, cut = stratified(train.labels_n, len(train), share)
        train, validation = train.take(remaining), train.take(cut)
    return Data(text, classes, train, validation, test)


def _check_alike(text: str, train: Part, name: str, part: Part) -> None:
    """Every part must look like the training part."""
    described = [
        f"{' x '.join(map(str, p.images_nchw.shape[1:]))} {p.images_nchw.dtype}" for p in (train, part)
    ]
    if described[0] != described[1]:
        raise UserError(f"{text}: training images are {described[0]}, but {name} images are {described[1]}")
    if (train.labels_n is None) != (part.labels_n is None):
        raise UserError(f"{text}: training and {name} images need labels both, or neither")


def _check(text: str, name: str, part: Part) -> None:
    images, labels = part.images_nchw, part.labels_n
    if images.ndim != 4 or 0 in images.shape:
        raise UserError(f"{text}: the {name} images have shape {images.shape}: there is nothing to see")
    if images.dtype == np.float32:
        wrong = np.flatnonzero(~np.isfinite(images).all(axis=(1, 2, 3)))
        if len(wrong):
            raise UserError(
                f"{text}: {len(wrong)} {name} images hold NaN or infinity, the first is number {wrong[0]}"
            )
        low, high = float(images.min()), float(images.max())
        if low < 0 or high > 1:
            raise UserError(
                f"{text}: {name} images are float and reach from {low:g} to {high:g}, but must lie between 0 and 1",
                "store them as uint8 (0 to 255), or divide them: mean and spread are taken care of when training",
            )
    if labels is not None:
        if len(labels) != len(images):
            raise UserError(f"{text}: {len(images)} {name} images have {len(labels)} labels")
        if labels.min() < 0:
            raise UserError(f"{text}: a {name} label is {labels.min()}; labels are whole numbers from 0")
