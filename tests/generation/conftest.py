"""Small networks that go on with texts, at weights that are not the initial ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import crate_dsl
from crate_dsl.compiler.network import Network
from crate_dsl.compiler.prove import perturb
from crate_dsl.training.run import Run, save_weights
from crate_dsl.training.train import train
from crate_dsl.training.vocabulary import Characters
from tests.cli.conftest import Cli, call
from tests.generation.spec import SIZES, TARGETS, TEXT, spec

LETTERS = Characters(characters="".join(sorted(set(TEXT))))


def perturbed(name: str, **sizes: Any) -> Network:
    """A small network of this name, its weights moved."""
    net = crate_dsl.build(crate_dsl.load(spec(name), set={**SIZES[name], **sizes}), seed=1)
    perturb(net, net.graph.slots, seed=2)
    return net.eval()


def exported(net: Network, path: Path) -> Path:
    entries = {"vocabulary": LETTERS.to_json()}
    crate_dsl.export(net.graph, net, path, metadata=entries, cache=path.name == "cache.onnx")
    return path


@pytest.fixture(scope="module", params=TARGETS)
def net(request: pytest.FixtureRequest) -> Network:
    """Each of the networks that tell the next token. Tests leave it as it is."""
    return perturbed(request.param)


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run on a text, its weights moved: they would say little after a few steps. Tests leave it as it is."""
    folder = tmp_path_factory.mktemp("generation")
    (folder / "text.txt").write_text(TEXT * 30)
    run = train(
        spec("crate_gpt"),
        f"text:{folder / 'text.txt'}",
        folder / "run",
        set=SIZES["crate_gpt"],
        recipe={"epochs": 1},
        progress=False,
        device="cpu",
    )
    net = run.net()
    perturb(net, net.graph.slots, seed=2)
    save_weights(net, Path(run.folder) / "model.safetensors")
    return run


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """The command line, called in this process."""
    return lambda *arguments: call(capsys, *arguments)
