"""`crate-dsl generate`, and the files that it is given."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

import crate_dsl
from crate_dsl.generation import in_onnxruntime
from crate_dsl.generation.source import open_source
from crate_dsl.language.diagnostics import UserError
from crate_dsl.training.run import Run, export_run
from tests.cli.conftest import Cli
from tests.generation.conftest import LETTERS, exported, perturbed
from tests.generation.spec import CONTEXT, TEXT

# ------------------------------------------------------------------ the command line


@pytest.fixture(scope="module")
def file(run: Run) -> Path:
    path = run.folder.parent / "whole.onnx"
    export_run(run.folder, path)
    return path


def test_the_command_writes_the_same_from_a_run_and_from_its_file(cli: Cli, run: Run, file: Path) -> None:
    arguments = ("--prompt", "the", "--tokens", 30, "--seed", 2, "--provider", "cpu", "--no-cache")
    results = [cli("generate", model, *arguments) for model in (run.folder, file)]
    assert [result.code for result in results] == [0, 0]
    assert results[0].out == results[1].out
    assert results[0].out.startswith("the") and len(results[0].out) == 3 + 30 + 1
    assert f"the network reads {CONTEXT} tokens" in results[0].err
    assert "30 tokens in" in results[0].err and "onnxruntime, without a cache" in results[1].err


def test_as_json(cli: Cli, file: Path) -> None:
    result = cli("generate", file, "--prompt", "the", "--tokens", 12, "--format", "json", "--temperature", 0)
    facts = json.loads(result.out)
    assert facts["prompt"] == "the" and facts["text"] == LETTERS.decode(facts["ids"])
    assert len(facts["ids"]) == len(facts["margins"]) == 12
    assert facts["undecided"] == sum(margin < facts["proved_error"] for margin in facts["margins"])
    assert facts["tokens_per_second"] == pytest.approx(12 / facts["seconds"])
    assert result.err == ""


def test_tokens_that_were_hardly_decided_are_told(
    cli: Cli, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crate_dsl.generation.in_onnxruntime.proved_error", lambda proof, scores: 1e3)
    result = cli("generate", file, "--prompt", "the", "--tokens", 12)
    assert "12 of 12 tokens were decided by less than the proved error 1e+03" in result.err


def test_a_file_needs_no_torch(file: Path) -> None:
    code = (
        "import sys\nfrom crate_dsl.cli import main\n"
        f"try: main(['generate', {str(file)!r}, '--prompt', 'the', '--tokens', '3'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "print({'torch', 'lightning'} & set(sys.modules))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.endswith("set()\n")


def test_what_the_command_refuses(cli: Cli, file: Path, tmp_path: Path) -> None:
    bare, net = tmp_path / "bare.onnx", perturbed("gpt")
    crate_dsl.export(net.graph, net, bare)
    no_file = tmp_path / "note.txt"
    no_file.write_text(TEXT)
    for model, more, message in (
        (tmp_path / "none", (), "there is no run at"),
        (tmp_path / "none.onnx", (), "cannot be read"),
        (no_file, (), "is neither a run's folder nor an .onnx file"),
        (bare, (), "does not say what its tokens stand for"),
        (file, ("--prompt", ""), "the prompt is empty"),
        (file, ("--prompt", "THE"), "is none of the 29 characters"),
        (file, ("--top-p", "0"), "top_p is 0.0"),
    ):
        result = cli("generate", model, "--prompt", "the", *more)
        assert result.code == 1, result
        assert message in result.err and result.out == ""
    assert cli("generate", file).code == 2


# ------------------------------------------------------------------ files that are damaged


@pytest.fixture(scope="module")
def cached_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(perturbed("gpt"), tmp_path_factory.mktemp("files") / "cache.onnx")


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("cache", "{", "what it says of its cache cannot be read"),
        ("cache", '{"tokens": "ids", "past": "past", "scores": "logits", "states": 3}', "cannot be read"),
        (
            "cache",
            '{"tokens": "ids", "past": "past", "scores": "logits", "states": []}',
            "is not what it takes",
        ),
        ("vocabulary", "{}", "the vocabulary of `.*` is damaged"),
        ("vocabulary", '{"kind": "bytes"}', "its vocabulary has 256 tokens, and its network knows 31"),
    ],
)
def test_damaged_files(cached_file: Path, tmp_path: Path, key: str, text: str, message: str) -> None:
    model = onnx.load(cached_file)
    (entry,) = [entry for entry in model.metadata_props if entry.key == f"crate_dsl.{key}"]
    entry.value = text
    onnx.save(model, tmp_path / "damaged.onnx")
    with pytest.raises(UserError, match=message):
        open_source(str(tmp_path / "damaged.onnx"), provider="cpu")


def test_a_state_that_no_memory_holds(cached_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_onnxruntime, "MOST_HELD", 11)  # less than the width of keys and values
    with pytest.raises(UserError, match="would hold more of a text"):
        open_source(str(cached_file), provider="cpu")
