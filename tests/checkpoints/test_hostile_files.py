"""Files that are not what they should be: one clear error each, nothing run, nothing left behind."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from crate_dsl.checkpoints import reading
from crate_dsl.checkpoints.importing import import_checkpoint
from crate_dsl.checkpoints.reading import read_checkpoint
from crate_dsl.language.diagnostics import UserError
from tests.checkpoints.layouts import CRATE


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "published.pth"
    torch.save(CRATE.state(), path)
    return path


def refused(path: Path, match: str) -> None:
    with pytest.raises(UserError, match=match):
        read_checkpoint(path)


def saved(value: Any, folder: Path) -> Path:
    path = folder / "made.pth"
    torch.save(value, path)
    return path


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("how", ["zip", "legacy", "pickle"])
def test_code_in_a_file_is_never_run(tmp_path: Path, how: str) -> None:
    mark, path = tmp_path / "was_here", tmp_path / "evil.pth"
    value = {"state_dict": {"cls_token": torch.zeros(1, 1, 4)}, "evil": Touch(mark)}
    if how == "pickle":
        path.write_bytes(pickle.dumps(value["evil"], protocol=2))
    else:
        torch.save(value, path, _use_new_zipfile_serialization=how == "zip")
    refused(path, r"`posix.mkdir` would have to be run, and was not")
    assert not mark.exists()


def test_what_is_no_file(tmp_path: Path) -> None:
    refused(tmp_path / "missing.pth", "there is no file")
    refused(tmp_path, "is a folder, not a checkpoint")


@pytest.mark.parametrize("name", ["junk.pth", "junk.safetensors"])
@pytest.mark.parametrize(
    "content",
    [b"", b"hello", b"\0" * 1000, b"\xff" * 1000, bytes(range(256)) * 40, b"PK\3\4" * 100, b"\x80\x02}"],
)
def test_junk(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    refused(path, "cut off, damaged")


def test_cut_off(file: Path) -> None:
    whole = file.read_bytes()
    for length in np.random.default_rng(0).integers(0, len(whole), size=40):
        file.write_bytes(whole[:length])
        refused(file, "cut off, damaged")


@pytest.mark.parametrize("zipped", [True, False])
def test_scrambled_files_never_crash(file: Path, zipped: bool) -> None:
    torch.save(CRATE.state(), file, _use_new_zipfile_serialization=zipped)
    rng, graph = np.random.default_rng(0), CRATE.graph()
    whole = np.frombuffer(file.read_bytes(), np.uint8)
    # What is not weights, and so is read as commands, stands at the beginning (and, in an archive, at the end too).
    places = np.concatenate([np.arange(5000), np.arange(len(whole) - 4000, len(whole))])
    for _ in range(150):
        spoiled = whole.copy()
        spoiled[rng.choice(places, size=4)] = rng.integers(256, size=4)
        file.write_bytes(spoiled.tobytes())
        with suppress(UserError):
            import_checkpoint(file, graph)


def test_too_large(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(saved({f"a{i}": torch.zeros(0) for i in range(10_001)}, tmp_path), "any checkpoint: 10,001 names")
    monkeypatch.setattr(reading, "LARGEST_BYTES", 1000)
    refused(file, "is larger than any checkpoint")


def test_a_compressed_archive_may_be_anything_inside(file: Path, tmp_path: Path) -> None:
    packed = tmp_path / "packed.pth"
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    refused(packed, "compressed archive")


def test_one_number_that_claims_to_be_a_million_million(tmp_path: Path) -> None:
    """It is refused for its shape, before it is made."""
    state = CRATE.state() | {"mlp_head.0.bias": torch.zeros(1).expand(10**12)}
    with pytest.raises(UserError, match=r"`mlp_head.0.bias` is \[1000000000000\], but must be \[40\]"):
        import_checkpoint(saved(state, tmp_path), CRATE.graph())


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (torch.zeros(3), "holds no weights by name"),
        ({}, "holds no weights by name"),
        ([{"a": torch.zeros(3)}], "holds no weights by name"),
        ({"epoch": 3}, "holds no weights by name"),
        ({"model": {"model": {"model": {"a": torch.zeros(3)}}}}, "holds no weights by name"),
        ({"a": torch.zeros(3), "b": 3}, "`b` is of type int"),
        ({"a": torch.zeros(3), "b": {}}, "`b` is of type dict"),
        ({"a": torch.zeros(3), 7: torch.zeros(3)}, "a name that is none"),
        ({"a": torch.zeros(3), "\x1b[31m": torch.zeros(3)}, "a name that is none"),
        ({"a": torch.zeros(3), "b" * 1000: torch.zeros(3)}, "a name that is none"),
        ({"a": torch.zeros(3, dtype=torch.int64)}, "`a` is of int64"),
        ({"a": torch.zeros(3, dtype=torch.complex64)}, "`a` is of complex64"),
        ({"a": torch.zeros(3).to_sparse()}, "`a` is no plain tensor"),
        ({"a": torch.zeros(3, device="meta")}, "`a` is no plain tensor"),
    ],
)
def test_what_holds_no_weights(tmp_path: Path, value: Any, match: str) -> None:
    refused(saved(value, tmp_path), match)
