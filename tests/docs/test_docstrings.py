"""Every example in a docstring runs, in a folder that has the shipped specs and takes what is written."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

from tests.docs.pages import ROOT

#: The rooms whose docstrings have examples, and the packages they are.
ROOMS = {"crate_dsl": "crate_dsl", "compiler": "crate_dsl.compiler"}


def modules() -> list[str]:
    """The modules in whose text an example stands."""
    found = []
    for room, package in ROOMS.items():
        for file in sorted((ROOT / room).rglob("*.py")):
            if ">>> " in file.read_text(encoding="utf-8"):
                parts = file.relative_to(ROOT / room).with_suffix("").parts
                found.append(".".join([package, *(part for part in parts if part != "__init__")]))
    return found


@pytest.mark.parametrize("module", modules())
def test_examples_run(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "specs").symlink_to(ROOT / "specs")
    monkeypatch.chdir(tmp_path)
    failed, tried = doctest.testmod(importlib.import_module(module), optionflags=doctest.ELLIPSIS)
    assert tried and not failed


def test_there_are_examples() -> None:
    """The rooms are found: a renamed one would otherwise silently have none."""
    assert all(Path(ROOT, room).is_dir() for room in ROOMS)
    assert {"crate_dsl.workspace", "crate_dsl.compiler.build"} <= set(modules())
