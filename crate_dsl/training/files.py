"""Writing so that a file is there whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crate_dsl.language.diagnostics import UserError

if TYPE_CHECKING:
    from torch import Tensor


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to, renamed over it when the body ends well and removed when it does not.

    Raises:
        UserError: the system does not let the file be written.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        aside.touch()
        mode = aside.stat().st_mode  # what the user's umask says; safetensors makes its files private
        yield aside
        aside.chmod(mode)
        os.replace(aside, path)
    except OSError as problem:
        raise UserError(f"{path} could not be written: {problem.strerror or problem}") from problem
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def folder_written_aside(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` to write to, renamed to it when the body ends well and removed when it does not.

    Raises:
        UserError: the system does not let it be written.
    """
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        aside.mkdir(parents=True)
        yield aside
        os.replace(aside, folder)
    except OSError as problem:
        raise UserError(f"{folder} could not be written: {problem.strerror or problem}") from problem
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a whole text file. Raises `UserError` as `written_aside` does."""
    with written_aside(path) as aside:
        aside.write_bytes(text.encode("utf-8"))


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a whole safetensors file. Raises `UserError` as `written_aside` does."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with written_aside(path) as aside:
        try:
            save_file(dict(tensors), aside, metadata=dict(metadata))
        except SafetensorError as problem:  # a full disk, say
            raise UserError(f"{path} could not be written: {problem}") from problem


def write_json(path: Path, value: Any) -> None:
    """Write plain data as indented JSON. Raises `UserError` as `written_aside` does."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
