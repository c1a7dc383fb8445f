from __future__ import annotations

import gzip
import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from crate_dsl.language.diagnostics import UserError
from crate_dsl.training.sources import open_data


def idx(array: np.ndarray) -> bytes:
    return (
        struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
        + array.astype(np.uint8).tobytes()
    )


@pytest.fixture
def idx_folder(tmp_path: Path, images: np.ndarray, labels: np.ndarray) -> Path:
    for name, keep in (("train", slice(0, 70)), ("t10k", slice(70, 90))):
        (tmp_path / f"{name}-images-idx3-ubyte").write_bytes(idx(images[keep]))
        (tmp_path / f"{name}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels[keep])))
    return tmp_path


def message(text: str) -> str:
    with pytest.raises(UserError) as caught:
        open_data(text)
    return str(caught.value)


# ------------------------------------------------------------------ the text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("mnist", "there is no data source `mnist`"),
        ("digit", "did you mean `digits`?"),
        ("", "data sources: digits, mnist5k"),
        ("idx:", "`idx` needs a path: idx:PATH"),
        ("digits:here", "`digits` takes no path, but is given `here`"),
        ("idx:/nowhere", "/nowhere is not a folder"),
        ("npz:/nowhere", "/nowhere is not a file"),
        ("folder:/nowhere", "/nowhere is not a folder"),
    ],
)
def test_what_is_no_source(text: str, said: str) -> None:
    assert said in message(text)


# ------------------------------------------------------------------ idx


def test_idx_is_read_with_its_own_split(idx_folder: Path, images: np.ndarray, labels: np.ndarray) -> None:
    data = open_data(f"idx:{idx_folder}")
    np.testing.assert_array_equal(data.test.images_nchw[:, 0], images[70:])
    np.testing.assert_array_equal(data.test.labels_n, labels[70:])
    assert len(data.train) + len(data.validation) == 70
    assert (data.shape, data.classes) == ((1, 6, 5), ("0", "1", "2"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "begins with nothing, but such a file begins with 00 00 08 03"),
        (b"\x89PNG....", "begins with 89 50 4e 47"),
        (idx(np.zeros((2, 3, 4)))[:9], "cut off inside its header"),
        (idx(np.zeros((2, 3, 4)))[:-1], "should hold 24 bytes (2 x 3 x 4), but holds 23"),
        (idx(np.zeros((2, 3, 4))) + b"0", "but holds more"),
        (
            struct.pack(">BBBB3I", 0, 0, 8, 3, 2**31, 2**31, 2**31),
            "claims 9,903,520,314,283,042,199,192,993,792 bytes",
        ),
    ],
)
def test_a_damaged_idx_file(idx_folder: Path, content: bytes, said: str) -> None:
    (idx_folder / "train-images-idx3-ubyte").write_bytes(content)
    assert said in message(f"idx:{idx_folder}")


def test_a_truncated_gzip_file(idx_folder: Path) -> None:
    path = idx_folder / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-12])
    assert "is cut off or damaged" in message(f"idx:{idx_folder}")
    path.write_bytes(b"no gzip")
    assert "is cut off or damaged" in message(f"idx:{idx_folder}")
    path.unlink()
    assert "holds no t10k-labels-idx1-ubyte (or" in message(f"idx:{idx_folder}")


# ------------------------------------------------------------------ npz


def test_npz_with_and_without_a_test_part(tmp_path: Path, images: np.ndarray, labels: np.ndarray) -> None:
    path = tmp_path / "some.npz"
    np.savez(path, x=images, y=labels)
    assert len(open_data(f"npz:{path}").test) == 18
    np.savez(path, images=images[:60], labels=labels[:60], images_test=images[60:], labels_test=labels[60:])
    np.testing.assert_array_equal(open_data(f"npz:{path}").test.images_nchw[:, 0], images[60:])
    np.savez_compressed(path, x=images, y=labels, classes=np.array(["one", "two", "three"]))
    assert open_data(f"npz:{path}").classes == ("one", "two", "three")
    np.savez(path, x=images)
    assert open_data(f"npz:{path}").classes == ()


def test_npz_channels_come_first(tmp_path: Path, images: np.ndarray, labels: np.ndarray) -> None:
    colour = np.stack([images, images // 2, images // 3], axis=-1)
    path = tmp_path / "some.npz"
    np.savez(path, x=colour, y=labels, x_test=colour, y_test=labels)
    data = open_data(f"npz:{path}")
    assert data.shape == (3, 6, 5)
    np.testing.assert_array_equal(data.test.images_nchw, colour.transpose(0, 3, 1, 2))


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"z": np.zeros(3)}, "holds z, but no array `x` or `images`"),
        ({"x": np.zeros((9, 4))}, "`x` must have shape"),
        ({"x": np.full((9, 4, 4), 300)}, "whole numbers from 0 to 255"),
        ({"x": np.zeros((9, 4, 4), bool)}, "whole numbers from 0 to 255"),
        ({"x": np.zeros((9, 4, 4)), "y": np.zeros(9)}, "a whole number for each image"),
        ({"x": np.zeros((9, 4, 4)), "y": np.full(9, 10**9)}, "labels are counted from 0"),
        ({"x": np.array([{"a": 1}], object)}, "not a sound .npz file"),
    ],
)
def test_npz_of_another_kind(tmp_path: Path, arrays: dict[str, np.ndarray], said: str) -> None:
    path = tmp_path / "some.npz"
    np.savez(path, **arrays)
    assert said in message(f"npz:{path}")


def test_a_damaged_npz_file(tmp_path: Path, images: np.ndarray) -> None:
    path = tmp_path / "some.npz"
    np.savez(path, x=images)
    path.write_bytes(path.read_bytes()[:200])
    assert "not a sound .npz file" in message(f"npz:{path}")
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": (10**12, 9, 9)}
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", header.getvalue())
    assert "cut off or damaged" in message(f"npz:{path}")


# ------------------------------------------------------------------ folder


def pictures(root: Path, images: np.ndarray, labels: np.ndarray, start: int = 0) -> None:
    for number, (image, label) in enumerate(zip(images, labels, strict=True), start):
        folder = root / "abc"[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number:03}.png")


def test_folders_with_train_and_test(tmp_path: Path, images: np.ndarray, labels: np.ndarray) -> None:
    pictures(tmp_path / "train", images[:60], labels[:60])
    pictures(tmp_path / "test", images[60:], labels[60:])
    data = open_data(f"folder:{tmp_path}")
    assert (data.classes, data.shape, len(data.test)) == (("a", "b", "c"), (1, 6, 5), 30)
    order = np.argsort(labels[60:], kind="stable")
    np.testing.assert_array_equal(data.test.images_nchw[:, 0], images[60:][order])
    pictures(tmp_path / "val", images[:9], labels[:9])
    assert len(open_data(f"folder:{tmp_path}").validation) == 9


def test_a_picture_never_changes_sides(tmp_path: Path, images: np.ndarray, labels: np.ndarray) -> None:
    pictures(tmp_path, images[:60], labels[:60])
    before = {image.tobytes() for image in open_data(f"folder:{tmp_path}").test.images_nchw}
    pictures(tmp_path, images[60:], labels[60:], start=60)
    data = open_data(f"folder:{tmp_path}")
    assert before <= {image.tobytes() for image in data.test.images_nchw}
    assert 0.1 < len(data.test) / 90 < 0.3


def test_grey_and_colour_together_are_colour(tmp_path: Path, images: np.ndarray, labels: np.ndarray) -> None:
    pictures(tmp_path / "train", images, labels)
    pictures(tmp_path / "test", np.stack([images] * 3, axis=-1), labels)
    assert open_data(f"folder:{tmp_path}").shape == (3, 6, 5)


def test_folders_that_are_wrong(tmp_path: Path, images: np.ndarray, labels: np.ndarray) -> None:
    text = f"folder:{tmp_path}"
    assert "holds no folders" in message(text)
    (tmp_path / "train").mkdir()
    assert "neither test/ nor val/" in message(text)
    pictures(tmp_path / "train", images, labels)
    (tmp_path / "test" / "d").mkdir(parents=True)
    assert "different classes: a, b, c, d" in message(text)
    (tmp_path / "test" / "d").rmdir()
    pictures(tmp_path / "test", images, labels)
    odd = tmp_path / "test" / "a" / "odd.png"
    Image.new("L", (9, 9)).save(odd)
    assert f"{odd} is 9 x 9 pixels, but" in message(text)
    Image.new("RGBA", (5, 6), (0, 0, 0, 9)).save(odd)
    assert "is partly transparent" in message(text)
    odd.write_bytes(odd.read_bytes()[:40])
    assert f"{odd} is not a picture that can be read" in message(text)
    odd.write_text("no picture")
    assert f"{odd} is not a picture that can be read" in message(text)
    Image.new("L", (2**13, 2**12)).save(odd)
    assert "is 8192 x 4096 pixels: too many" in message(text)
    odd.unlink()
    (tmp_path / "test" / "b").rename(tmp_path / "b")
    (tmp_path / "test" / "b").mkdir()
    assert "folders without pictures: b" in message(text)
