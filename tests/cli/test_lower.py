"""Lowering on the command line: chosen by `export --lower`, told by `show --stage lowered`."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from crate_dsl.cli.options import rewrites
from crate_dsl.compiler.lower import REWRITES, lower_graph
from crate_dsl.compiler.runtime import read_metadata
from crate_dsl.show.lowered import some_weights
from crate_dsl.show.steps import short
from crate_dsl.workspace import load
from tests.cli.conftest import FASHION, Cli

#: In the small network: two layers, and a mean over its tokens.
CHOSEN = {"all": ",".join(REWRITES), "none": None, "fold,parts": "parts,fold"}


@pytest.mark.parametrize("lower", CHOSEN)
def test_a_spec_and_a_run_are_exported_as_chosen(cli: Cli, trained: Path, tmp_path: Path, lower: str) -> None:
    file = tmp_path / "file.onnx"
    for target in (trained / "small.crate", trained / "run"):
        result = cli("export", target, "--out", file, "--lower", lower)
        assert result.code == 0, result.err
        assert read_metadata(file).extra.get("lowered") == CHOSEN[lower]
        assert ("FAIL" in result.out, " ok" in result.out) == (False, True)


def test_what_is_left_out_is_left_out(cli: Cli, small: Path, tmp_path: Path) -> None:
    for arguments in (("--lower", "-fold,-rows"), ("--lower=-fold,-rows",)):
        assert cli("export", small, "--out", tmp_path / "file.onnx", *arguments).code == 0
        lowered = read_metadata(tmp_path / "file.onnx").extra["lowered"].split(",")
        assert lowered == [name for name in REWRITES if name not in ("fold", "rows")]


@pytest.mark.parametrize("command", ["export", "show"])
@pytest.mark.parametrize(
    ("lower", "told"),
    [
        ("folds", "did you mean `fold`?"),
        ("", "there is no rewrite ``"),
        ("fold,-norm", "names some rewrites and leaves out others"),
    ],
)
def test_what_is_no_choice_is_told(
    cli: Cli, small: Path, tmp_path: Path, command: str, lower: str, told: str
) -> None:
    more = ["--out", tmp_path / "file.onnx"] if command == "export" else ["--stage", "lowered"]
    result = cli(command, small, *more, "--lower", lower)
    assert result.code == 2 and told in result.err
    assert not (tmp_path / "file.onnx").exists()


def test_help_names_every_rewrite_in_the_words_of_its_file(cli: Cli) -> None:
    assert rewrites().keys() == REWRITES.keys()
    text = cli("export", "--help").out
    shown = text.partition("Rewrites:")[2]
    for name, does in rewrites().items():
        assert f"\n    {name} " in shown and does in " ".join(shown.split())
    assert all(len(line) <= 80 for line in text.splitlines())


# ------------------------------------------------------------------ shown


def numbers(text: str) -> dict[str, list[str]]:
    """The rows of the first table: steps, operations, saved."""
    rows = text.partition("as written")[2].partition("\n\n")[0].splitlines()[1:]
    return {row.split()[0]: row.split()[1:] for row in rows}


def test_the_table_tells_what_each_rewrite_did(cli: Cli) -> None:
    text = cli("show", FASHION, "--stage", "lowered").out
    rows = numbers(text)
    assert list(rows) == list(REWRITES)
    # One product of two, and the sum and difference around them: (2 d² + 2 d) N L.
    assert rows["fold"][3:5] == short((2 * 128**2 + 2 * 128) * 50 * 4).split()
    lines = text.splitlines()
    layer = next(line.split() for line in lines if line.startswith("encoder.1-2.sparsify.code"))
    assert layer[1:4] == ["×2", "affine", "flat"]
    assert "operations a sample instead of 31.9 M" in lines[-1]
    assert all(len(line) <= 80 for line in lines[1:])
    assert "encoder.2.sparsify.code" in cli("show", FASHION, "--stage", "lowered", "--all").out


def test_only_what_is_chosen_is_done(cli: Cli) -> None:
    assert list(numbers(cli("show", FASHION, "--stage", "lowered", "--lower", "demand").out)) == ["demand"]
    text = cli("show", FASHION, "--stage", "lowered", "--lower", "none").out
    assert "encoder.0-3.compress" in text and text.endswith("31.9 M operations a sample instead of 31.9 M\n")


def test_json_adds_up(cli: Cli) -> None:
    data = json.loads(cli("show", FASHION, "--stage", "lowered", "--format", "json").out)
    graph = load(FASHION)
    lowered = lower_graph(graph, some_weights(graph))
    assert data["flops"] == [graph.flops, lowered.graph.flops]
    assert sum(node["flops"] for node in data["nodes"]) == data["flops"][1]
    assert [item["rewrite"] for item in data["rewrites"]] == list(REWRITES)
    counts = [item["steps"] for item in data["rewrites"]]
    assert counts[0][0] == len(graph.exported) - len(graph.export_inputs)
    assert all(before[1] == after[0] for before, after in pairwise(counts))
    assert counts[-1][1] == len(data["nodes"])
    assert data["outputs"] == {"logits": data["nodes"][-1]["name"]}


def test_runs_and_files_are_shown_too(cli: Cli, trained: Path, tmp_path: Path) -> None:
    spec, run, file = (
        cli("show", trained / name, "--stage", "lowered").out for name in ("small.crate", "run", "small.onnx")
    )
    assert numbers(spec) == numbers(run) == numbers(file) and len(numbers(spec)) == len(REWRITES)
    some = tmp_path / "some.onnx"
    assert cli("export", trained / "run", "--out", some, "--lower", "parts,fold").code == 0
    assert list(numbers(cli("show", some, "--stage", "lowered").out)) == ["parts", "fold"]
    assert list(numbers(cli("show", some, "--stage", "lowered", "--lower", "share").out)) == ["share"]


def test_the_onnx_stage_shows_what_export_writes(cli: Cli, trained: Path) -> None:
    shown = cli("show", trained / "run", "--stage", "onnx").out
    assert shown == cli("show", trained / "small.onnx", "--stage", "onnx").out
    assert "encoder.0-1.sparsify.code" in shown and "affine(" in shown
    plain = cli("show", trained / "run", "--stage", "onnx", "--lower", "none").out
    assert "encoder.0-1.sparsify" in plain and "affine(" not in plain
    refused = cli("show", trained / "small.onnx", "--stage", "onnx", "--lower", "none")
    assert refused.code == 2 and "--stage lowered --lower none" in refused.err


def test_the_torch_stage_is_lowered_on_request(cli: Cli, small: Path) -> None:
    assert "compress.projection(" not in cli("show", small, "--stage", "torch").out
    assert "compress.projection(" in cli("show", small, "--stage", "torch", "--lower", "all").out


def test_other_stages_take_no_choice(cli: Cli, small: Path) -> None:
    for stage in ("graph", "tree"):
        assert cli("show", small, "--stage", stage, "--lower", "all").code == 2
