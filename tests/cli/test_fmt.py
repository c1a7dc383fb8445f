from __future__ import annotations

import os
from pathlib import Path

from tests.cli.conftest import SMALL, Cli

UGLY = "model m{input x:float[4] # four\ny=x->relu output y}"


def test_a_file_is_written_in_the_canonical_style_once(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "ugly.crate"
    path.write_text(UGLY)
    path.chmod(0o640)
    assert cli("fmt", path).out == f"{path} is written anew\n"
    text = path.read_text()
    assert "    y = x -> relu\n" in text
    assert "# four" in text
    assert os.stat(path).st_mode & 0o777 == 0o640
    assert cli("fmt", path).out == ""
    assert path.read_text() == text
    assert list(tmp_path.iterdir()) == [path]


def test_check_writes_nothing(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "ugly.crate"
    path.write_text(UGLY)
    result = cli("fmt", "--check", path)
    assert (result.code, result.out) == (1, f"{path} would change\n")
    assert path.read_text() == UGLY


def test_a_broken_file_is_left_alone_and_the_others_are_done(cli: Cli, tmp_path: Path) -> None:
    broken, ugly = tmp_path / "broken.crate", tmp_path / "ugly.crate"
    broken.write_text(SMALL.replace("repeat(depth) {", "repeat(depth) ("))
    ugly.write_text(UGLY)
    result = cli("fmt", broken, ugly)
    assert result.code == 1
    assert result.err.startswith("error[E")
    assert broken.read_text() == SMALL.replace("repeat(depth) {", "repeat(depth) (")
    assert ugly.read_text() != UGLY


def test_a_link_stays_a_link(cli: Cli, tmp_path: Path) -> None:
    path, link = tmp_path / "ugly.crate", tmp_path / "link.crate"
    path.write_text(UGLY)
    link.symlink_to(path)
    assert cli("fmt", link).code == 0
    assert link.is_symlink()
    assert path.read_text() != UGLY


def test_line_ends_are_style(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "windows.crate"
    path.write_text(UGLY)
    cli("fmt", path)
    text = path.read_bytes()
    path.write_bytes(b"\xef\xbb\xbf" + text.replace(b"\n", b"\r\n"))
    assert cli("fmt", path).code == 0
    assert path.read_bytes() == text
