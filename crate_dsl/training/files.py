"""Writing so that a file is there whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from crate_dsl.language.diagnostics import UserError


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


def write_text(path: Path, text: str) -> None:
    """Write a whole text file. Raises `UserError` as `written_aside` does."""
    with written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write plain data as indented JSON. Raises `UserError` as `written_aside` does."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
