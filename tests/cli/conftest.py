"""The command line, called in this process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import pytest

from crate_dsl.cli import main

FASHION = f"{files('crate_dsl.specs') / 'crate.crate'}@fashion"


@dataclass(frozen=True)
class Result:
    code: object
    out: str
    err: str


Cli = Callable[..., Result]


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> Result:
    """A command's exit code and what it printed. Nothing but an exit may come out of it."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return Result(end.value.code, out, err)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("CRATE_DSL_TRACEBACK", raising=False)
    return lambda *arguments: call(capsys, *arguments)


#: A network of 8 x 8 grey images that is built, trained and exported in a moment.
SMALL = """
model small(dim = 16, depth = 2) {
    variant wide { dim = 32 }
    input  image : float[1, 8, 8]
    target label : index(10)
    stage encoder = repeat(depth) {
        compress(2, rank = dim / 2)
        sparsify(step = 0.1, penalty = 0.1)
    }
    logits = image -> patchify(4) -> linear(dim) -> encoder -> pool -> linear(10)
    output logits
    objective cross_entropy(logits, label)
    train {
        optimizer = adamw(lr = 2e-3)
        epochs = 1
    }
}
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """The spec of a small network."""
    path = tmp_path / "small.crate"
    path.write_text(SMALL)
    return path


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `small.crate`, its run `run` on a few digits, and the run's export `small.onnx`."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "small.crate").write_text(SMALL)
    for arguments in (
        (
            "train",
            folder / "small.crate",
            "--data",
            "digits",
            "--out",
            folder / "run",
            "--limit",
            "200",
            "--device",
            "cpu",
        ),
        ("export", folder / "run", "--out", folder / "small.onnx"),
    ):
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        assert end.value.code == 0
    return folder
