from __future__ import annotations

import json
from pathlib import Path

from tests.cli.conftest import Cli


def test_a_sound_file_says_how_large_its_networks_are(cli: Cli, small: Path) -> None:
    result = cli("check", small)
    assert (result.code, result.err) == (0, "")
    words = " ".join(result.out.split())
    assert words == f"{small} is sound: small 2,138 parameters, @wide 7,338"


def test_one_variant(cli: Cli, small: Path) -> None:
    result = cli("check", f"{small}@wide")
    assert result.code == 0
    assert "small@wide 7,338 parameters" in " ".join(result.out.split())


def test_every_mistake_of_every_file(cli: Cli, small: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.crate"
    broken.write_text(small.read_text().replace("pool", "poll").replace("depth) {", "depht) {"))
    result = cli("check", broken, small, tmp_path / "missing.crate")
    assert result.code == 1
    assert result.err.count("error[") == 3
    assert "is sound" in result.out


def test_json_is_a_list_of_diagnostics(cli: Cli, small: Path, tmp_path: Path) -> None:
    assert json.loads(cli("check", small, "--format", "json").out) == []
    broken = tmp_path / "broken.crate"
    broken.write_text(small.read_text().replace("pool", "poll"))
    result = cli("check", broken, "--format", "json")
    assert (result.code, result.err) == (1, "")
    (found,) = json.loads(result.out)
    assert found["severity"] == "error"
    assert found["where"]["line"] == 10
    assert found["where"]["end_column"] - found["where"]["column"] == len("poll")
    assert found["where"]["file"] == str(broken)


def test_warnings_fail_only_where_that_is_asked_for(cli: Cli, small: Path) -> None:
    small.write_text(small.read_text().replace("    output", "    spare = image -> relu\n    output"))
    fine = cli("check", small)
    assert fine.code == 0
    assert fine.err.startswith("warning[W")
    assert "is sound" in fine.out
    strict = cli("check", small, "--strict")
    assert strict.code == 1
    assert strict.err == fine.err
    assert strict.out == ""


def test_blocks_alone_are_sound(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "blocks.crate"
    path.write_text("block twice(dim) { linear(dim) linear(dim) }\n")
    result = cli("check", path)
    assert result.code == 0
    assert "blocks alone" in result.out
