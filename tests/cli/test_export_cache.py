"""`export --cache`: the network for the next tokens, from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from crate_dsl.compiler.runtime import read_metadata
from tests.cli.conftest import Cli

SMALL = ("specs/text.crate:crate_gpt@characters", "--set", "depth=1", "--set", "context=16")


def test_a_file_says_what_it_is_given_and_gives(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "file.onnx"
    result = cli("export", *SMALL, "--cache", "--out", file)
    assert result.code == 0, result.err
    assert "7 + 1 + 1" in result.out or "8 + 1 + 1" in result.out, "the proof tells the portions"
    assert json.loads(read_metadata(file).extra["cache"]) == {
        "tokens": "ids",
        "past": "past",
        "scores": "logits",
        "states": [["state_1", "next_1"]],
    }


@pytest.mark.parametrize(
    ("target", "more", "code", "message"),
    [
        ("specs/text.crate:crate_bert@characters", (), 1, "lets tokens attend to later ones"),
        (SMALL[0], ("--precision", "int8"), 2, "a network with a cache is exported in float32 alone"),
    ],
)
def test_what_cannot_be_is_refused(
    cli: Cli, tmp_path: Path, target: str, more: tuple[str, ...], code: int, message: str
) -> None:
    result = cli("export", target, "--cache", *more, "--out", tmp_path / "file.onnx")
    assert result.code == code and message in result.err
    assert "Traceback" not in result.err and not (tmp_path / "file.onnx").exists()
