"""What holds for every command: exit codes, one clear message for every mistake, never a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import crate_dsl
from crate_dsl.cli import COMMANDS
from tests.cli.conftest import FASHION, Cli

MAIN = [sys.executable, "-c", "from crate_dsl.cli import main; main()"]


def test_version(cli: Cli) -> None:
    result = cli("--version")
    assert (result.code, result.out) == (0, f"crate-dsl {crate_dsl.__version__}\n")


def test_help_lists_every_command_in_80_columns(cli: Cli) -> None:
    result = cli("--help")
    assert result.code == 0
    assert all(f"  {command} " in result.out for command in COMMANDS)
    assert all(len(line) <= 80 for line in result.out.splitlines())


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_helps_with_a_sentence_and_an_example(cli: Cli, command: str) -> None:
    result = cli(command, "--help")
    assert result.code == 0
    assert f"  crate-dsl {command}" in result.out
    assert all(len(line) <= 80 for line in result.out.splitlines())


def test_without_a_command_the_help_is_shown(cli: Cli) -> None:
    result = cli()
    assert result.code == 2
    assert "Commands:" in result.err


def test_a_misspelt_command(cli: Cli) -> None:
    result = cli("chek")
    assert (result.code, result.err) == (
        2,
        "error: there is no command `chek`\nhelp: did you mean `check`?\n",
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("check",),
        ("check", "--nope"),
        ("show", FASHION, "--format", "yaml"),
        ("export", "x"),
        ("run", "x.onnx", "y", "--top", "0"),
    ],
)
def test_usage_exits_with_2(cli: Cli, arguments: tuple[str, ...]) -> None:
    result = cli(*arguments)
    assert result.code == 2
    assert "Usage:" in result.err


def test_interruption_is_one_line(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("crate_dsl.cli.check.check_target", interrupted)
    result = cli("check", FASHION)
    assert (result.code, result.out, result.err) == (130, "", "interrupted\n")


def test_a_mistake_of_our_own_says_how_to_see_more(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("the roof\nleaks")

    monkeypatch.setattr("crate_dsl.cli.check.check_target", broken)
    result = cli("check", FASHION)
    assert result.code == 70
    assert result.err.splitlines() == [
        "internal error: RuntimeError: the roof leaks",
        "help: this is a mistake of crate-dsl; CRATE_DSL_TRACEBACK=1 shows where it comes from",
    ]
    monkeypatch.setenv("CRATE_DSL_TRACEBACK", "1")
    with pytest.raises(RuntimeError, match="roof"):
        from crate_dsl.cli import main

        main(["check", FASHION])


def test_whoever_reads_may_stop(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*MAIN, "show", FASHION, "--format", "json", "--all"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=_environment(),
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 1


def test_a_terminal_without_unicode_is_no_reason_to_fail() -> None:
    environment = _environment() | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = subprocess.run([*MAIN, "show", FASHION], capture_output=True, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


# ------------------------------------------------------------------ hostile targets


@pytest.fixture
def hostile(tmp_path: Path) -> dict[str, Path]:
    found = {
        kind: tmp_path / f"{kind}.crate"
        for kind in ("folder", "missing", "junk", "empty", "large", "endless")
    }
    found["folder"].mkdir()
    found["junk"].write_bytes(bytes(range(256)) * 10)
    found["empty"].touch()
    with found["large"].open("wb") as file:
        file.truncate(50 * 2**20)
    found["endless"].write_text(
        "model m { input x : float[4] y = x -> repeat(1000000000) { relu } output y }"
    )
    return found


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ["folder", "missing", "junk", "empty", "large", "endless"])
def test_what_is_no_spec_is_one_clear_error(
    cli: Cli, hostile: dict[str, Path], kind: str, tmp_path: Path
) -> None:
    target = hostile[kind]
    commands: list[tuple[object, ...]] = [
        ("check", target),
        ("show", target),
        ("export", target, "--out", tmp_path / "x.onnx"),
        ("train", target, "--data", "digits", "--out", tmp_path / "run"),
    ]
    if kind not in ("empty", "endless"):
        commands += [("fmt", target), ("fmt", target, "--check"), ("show", target, "--stage", "tree")]
    for command in commands:
        result = cli(*command)
        assert result.code == 1, command
        assert result.err.startswith("error[E"), command
        assert result.err.count("error") == 1, command
        assert result.out == ""
    assert not (tmp_path / "x.onnx").exists()
    assert not (tmp_path / "run").exists()


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ["folder", "missing", "junk", "empty", "cut"])
def test_what_is_no_export_is_one_clear_error(cli: Cli, tmp_path: Path, trained: Path, kind: str) -> None:
    path = tmp_path / f"{kind}.onnx"
    if kind == "folder":
        path.mkdir()
    elif kind != "missing":
        whole = (trained / "small.onnx").read_bytes()
        path.write_bytes(
            {"junk": bytes(range(256)) * 10, "empty": b"", "cut": whole[: len(whole) // 2]}[kind]
        )
    for command in (("show", path), ("show", path, "--stage", "onnx"), ("run", path, "picture.png")):
        result = cli(*command)
        assert result.code == 1, command
        assert result.err.startswith(f"error: `{path}`"), command
        assert result.out == ""
