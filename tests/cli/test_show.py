"""`show`: what it says of a graph, in every form."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from crate_dsl.show.columns import columns, reflowed
from crate_dsl.show.drawing import drawing
from crate_dsl.show.folding import folded
from crate_dsl.show.steps import short, steps_of
from crate_dsl.workspace import load
from tests.cli.conftest import FASHION, SMALL, Cli

TABLE = """\
crate@fashion of {file}
  dim = 128, depth = 4, subspaces = 4, patch = 4, size = 28, channels = 1,
  classes = 10

input   image  float[1, 28, 28]
target  label  index(10)

step                         type            parameters    flop  line
tokens.patchify              float[49, 16]            0       0{tokens:>6}
    tokens: patches:49(7x7)
tokens.norm                  float[49, 16]           32  3.92 k{tokens:>6}
tokens.linear                float[49, 128]       2,176   201 k{tokens:>6}
tokens.norm_2                float[49, 128]         256  31.4 k{tokens:>6}
tokens.prepend               float[50, 128]         128       0{tokens:>6}
    tokens: class_token:1 patches:49(7x7)
tokens.position              float[50, 128]       6,400  6.40 k{more:>6}
encoder.0-3.compress     ×4  float[50, 128]     132,608  18.4 M{compress:>6}
encoder.0-3.sparsify     ×4  float[50, 128]      66,560  13.3 M{sparsify:>6}
logits.select                float[128]               0       0{logits:>6}
logits.norm                  float[128]             256     640{logits:>6}
logits.linear                float[10]            1,290  2.56 k{logits:>6}
objective.cross_entropy      float                    0       –{objective:>6}

output  logits  float[10]  logits.linear

209,706 parameters, 31.9 M operations a sample
"""

#: A stage used twice, layers that differ, a drawn input, two outputs, something frozen.
EVERYTHING = """
model everything {
    input x : float[6, 8]
    input noise : float[6, 8] = normal
    learn gate : float[8] = ones
    stage twice = linear(8) -> relu
    stage fixed = linear(8)
    stage tail = repeat(3) { residual { linear(layer + 1) -> linear(8) } }
    h = x -> twice -> twice
    y = (gate * (h + noise)) -> frozen(fixed) -> tail
    output y, h
}
"""


@pytest.fixture
def everything(tmp_path: Path) -> Path:
    path = tmp_path / "everything.crate"
    path.write_text(EVERYTHING)
    return path


# ------------------------------------------------------------------ the table


def test_the_table_of_a_shipped_spec(cli: Cli) -> None:
    result = cli("show", FASHION)
    file = FASHION.partition("@")[0]
    lines = {
        word: number
        for number, line in enumerate(Path(file).read_text().splitlines(), 1)
        for word in _words(line)
    }
    assert (result.code, result.err) == (0, "")
    assert result.out == TABLE.format(file=file, **lines)


def _words(line: str) -> list[str]:
    """The place holders of `TABLE` that stand for this line."""
    starts = {
        "tokens = image": "tokens", "-> position(": "more", "compress(": "compress", "sparsify(": "sparsify",
        "logits = tokens": "logits", "objective ": "objective",
    }  # fmt: skip
    return [word for start, word in starts.items() if line.strip().startswith(start)]


def test_all_unfolds(cli: Cli) -> None:
    lines = cli("show", FASHION, "--all").out.splitlines()
    assert sum(line.startswith("encoder.") for line in lines) == 8
    assert lines[-1] == TABLE.splitlines()[-1]


@pytest.mark.parametrize("variant", ["tiny", "large"])
def test_80_columns(cli: Cli, variant: str) -> None:
    target = FASHION.replace("@fashion", f"@{variant}")
    for more in ([], ["--all"], ["--formulas"]):
        lines = cli("show", target, *more).out.splitlines()[1:]  # the first has the file's path
        assert all(len(line) <= 80 for line in lines)


def test_formulas_come_once_with_their_source_and_inverse(cli: Cli) -> None:
    text = cli("show", FASHION, "--formulas").out
    assert text.count("\nsparsify\n") == 1
    after = text.partition("\nsparsify\n")[2].partition("\n\n")[0]
    assert "formula: A_{t+1}" in after
    assert "arXiv 2306.01129" in after
    assert "inverse:" in after
    assert cli("show", FASHION, "--formulas", "--format", "json").code == 2


def test_layers_that_differ_are_not_folded(cli: Cli, everything: Path) -> None:
    text = cli("show", everything).out
    assert [line.split()[0] for line in text.splitlines() if line.startswith("tail.")] == [
        f"tail.{layer}.{step}" for layer in range(3) for step in ("linear", "linear_2", "residual")
    ]
    assert "input  noise  float[6, 8]  drawn" in text
    assert "72 frozen" in text


# ------------------------------------------------------------------ pairs

PAIRED = """
model paired(dim = 12) {
    input image : float[1, 8, 8]

    stage encoder = patchify(2) -> repeat(3) { scale(0.5) } -> position(sincos)
    stage decoder = inverse(encoder, mode = certified)

    y = image -> encoder -> decoder

    output y
}
"""


@pytest.fixture
def paired(tmp_path: Path) -> str:
    path = tmp_path / "paired.crate"
    path.write_text(PAIRED)
    return str(path)


def test_pairs_are_told_with_what_they_promise(cli: Cli, paired: str) -> None:
    text = cli("show", paired).out
    assert "decoder undoes encoder, certified: a bijection for every input" in text
    # Three halvings are undone by doublings: float32's epsilon, eight times over.
    assert f"{8 * 2**-23:.1e} of the largest in float32" in " ".join(text.split())
    line = next(line for line in text.splitlines() if line.startswith("  decoder.0-2.scale"))
    assert line.split() == ["decoder.0-2.scale", "×3", "undoes", "encoder.0-2.scale", "last", "first"]
    (told,) = json.loads(cli("show", paired, "--format", "json").out)["pairs"]
    assert (told["inverse"], told["stage"], told["mode"]) == ("decoder", "encoder", "certified")
    assert told["steps"][1] == ["decoder.0.scale", "encoder.2.scale"]
    assert told["tolerance"] == {"float32": 8 * 2**-23, "float64": 8 * 2**-52}


def test_pairs_are_drawn(cli: Cli, paired: str) -> None:
    mermaid = cli("show", paired, "--format", "mermaid").out
    assert mermaid.count("-. undone by .->") == 3
    drawn = ElementTree.fromstring(cli("show", paired, "--format", "svg").out)
    assert len([path for path in drawn.iter() if path.get("class") == "pair"]) == 3


# ------------------------------------------------------------------ JSON


@pytest.mark.parametrize("spec", ["fashion", "everything"])
def test_json_has_the_documented_form_and_adds_up(cli: Cli, everything: Path, spec: str) -> None:
    target = FASHION if spec == "fashion" else str(everything)
    graph = load(target)
    data = json.loads(cli("show", target, "--format", "json").out)
    names = ["model", "variant", "parameters", "flops", "nodes", "pairs", "edges", "inputs", "outputs"]
    assert list(data) == names
    assert (data["model"], data["variant"]) == (graph.model, graph.variant)
    kinds = {
        "name": str,
        "step": str,
        "type": str,
        "parameters": int,
        "flops": int,
        "inverse": str,
        "line": int,
    }
    for node in data["nodes"]:
        assert {name: type(value) for name, value in node.items()} == kinds
    assert sum(node["parameters"] for node in data["nodes"]) == data["parameters"] == graph.parameters
    assert sum(node["flops"] for node in data["nodes"]) == data["flops"] == graph.flops
    names = [node["name"] for node in data["nodes"]]
    assert len(set(names)) == len(names)
    assert {source for source, _ in data["edges"]} <= {*names, *data["inputs"]}
    assert {target for _, target in data["edges"]} <= {*names, *data["outputs"]}
    assert {name for name, _ in data["edges"] if name in data["inputs"]} == set(data["inputs"])
    assert {name for _, name in data["edges"] if name in data["outputs"]} == set(data["outputs"])


def test_weights_count_where_they_are_read_first(everything: Path) -> None:
    counts = {step.name: step.parameters for step in steps_of(load(str(everything)))}
    assert counts["twice.linear"] == 72
    assert counts["twice.linear@2"] == 0
    assert counts["fixed.linear"] == 0  # frozen
    assert sum(count == 8 for count in counts.values()) == 1  # the gate, at the product that reads it


# ------------------------------------------------------------------ drawings


@pytest.mark.parametrize("spec", ["fashion", "everything"])
@pytest.mark.parametrize("fold", [True, False])
def test_drawings_have_every_step_once_and_every_arrow_forward(
    everything: Path, spec: str, fold: bool
) -> None:
    graph = load(FASHION if spec == "fashion" else str(everything))
    drawn = drawing(graph, fold=fold)
    assert [box.place for box in drawn.boxes] == list(range(len(drawn.boxes)))
    steps = [step.name for box in drawn.boxes if box.row for step in box.row.steps]
    assert sorted(steps) == sorted(node.name for node in graph.nodes)
    assert all(source < target for source, target in drawn.arrows)
    reached = {place for arrow in drawn.arrows for place in arrow}
    assert reached == set(range(len(drawn.boxes)))
    if not fold:
        assert len(drawn.arrows) == len({(a, b) for a, b in graph.graph.edges()}) + len(graph.outputs)


def test_mermaid(cli: Cli) -> None:
    lines = cli("show", FASHION, "--format", "mermaid").out.splitlines()
    assert lines[3] == "flowchart TD"
    assert '  subgraph g1["encoder.0-3 × 4"]' in lines
    assert '    n7["compress<br/>float[50, 128]<br/>132,608 parameters"]' in lines
    assert "  n7 --> n8" in lines
    assert sum(line.strip() == "end" for line in lines) == sum("subgraph" in line for line in lines)


@pytest.mark.parametrize("options", [[], ["--all"]])
def test_svg_is_sound_and_no_two_boxes_overlap(
    cli: Cli, tmp_path: Path, options: list[str], everything: Path
) -> None:
    for target in (FASHION, everything):
        file = tmp_path / "picture.svg"
        assert cli("show", target, "--format", "svg", "--out", file, *options).out == ""
        root = ElementTree.parse(file).getroot()
        space = {"svg": "http://www.w3.org/2000/svg"}
        boxes = root.findall("svg:g/svg:rect", space)
        assert len(boxes) == len(drawing(load(str(target)), fold=not options).boxes)
        tops = [float(box.attrib["y"]) for box in boxes]
        assert all(b - a > float(boxes[0].attrib["height"]) for a, b in itertools.pairwise(tops))
        _, _, width, height = map(float, root.attrib["viewBox"].split())
        assert tops[-1] + float(boxes[0].attrib["height"]) < height
        assert all(float(box.attrib["x"]) + float(box.attrib["width"]) < width for box in boxes)


# ------------------------------------------------------------------ stages


def test_the_tree_as_an_outline_and_as_data(cli: Cli, small: Path) -> None:
    lines = cli("show", small, "--stage", "tree").out.splitlines()
    assert lines[0] == "File  1:1"
    assert "  Model small  2:1" in lines
    assert "      Chain  6:21" in lines
    data = json.loads(cli("show", small, "--stage", "tree", "--format", "json").out)
    (model,) = data["items"]
    assert (model["node"], model["name"], model["line"]) == ("Model", "small", 2)


def test_the_torch_text_reads_like_the_spec(cli: Cli, small: Path) -> None:
    text = cli("show", small, "--stage", "torch").out
    assert text.startswith("class Small(Network):\n")
    assert "        for layer in self.layers:  # 2 layers\n" in text
    compile(text, "shown", "exec")


def test_the_onnx_of_an_untrained_network(cli: Cli, small: Path) -> None:
    text = cli("show", small, "--stage", "onnx", "--lower", "none").out
    assert "input   image   float[batch, 1, 8, 8]" in text
    assert "encoder.0-1.compress  ×2  compress" in text
    assert all(len(line) <= 80 for line in text.splitlines())


def test_forms_that_do_not_go_together(cli: Cli) -> None:
    result = cli("show", FASHION, "--stage", "torch", "--format", "svg")
    assert (result.code, result.err) == (
        2,
        "error: `--stage torch` has no `--format svg`\nhelp: formats: table\n",
    )


# ------------------------------------------------------------------ runs and exported files


def test_a_run_is_shown_from_its_own_texts(cli: Cli, trained: Path) -> None:
    result = cli("show", trained / "run")
    assert result.code == 0
    assert "2,138 parameters" in result.out
    assert cli("show", trained / "run", "--set", "dim=32").code == 2


def test_an_exported_file_gives_its_spec_back(cli: Cli, trained: Path) -> None:
    result = cli("show", trained / "small.onnx")
    assert result.code == 0
    assert result.out.strip() == SMALL.strip()
    assert result.err.startswith(f"{trained / 'small.onnx'} is small, exported by crate-dsl ")


def test_an_exported_file_is_shown_like_a_spec(cli: Cli, trained: Path) -> None:
    of_file = json.loads(cli("show", trained / "small.onnx", "--format", "json").out)
    of_spec = json.loads(cli("show", trained / "small.crate", "--format", "json").out)
    assert of_file == of_spec
    assert "encoder.0-1.compress" in cli("show", trained / "small.onnx", "--stage", "onnx").out
    assert "formula: " in cli("show", trained / "small.onnx", "--formulas").out
    assert cli("show", trained / "small.onnx", "--stage", "tree").code == 2


# ------------------------------------------------------------------ pieces


@pytest.mark.parametrize(
    ("names", "keys", "found"),
    [
        (["a", "b"], "xx", ["a", "b"]),
        (["f.0.a", "f.1.a", "f.3.a"], "xxx", ["f.0-1.a", "f.3.a"]),
        (["f.0.a", "f.1.a", "f.2.a"], "xyy", ["f.0.a", "f.1-2.a"]),
        (["f.0.a", "f.0.b", "f.1.a"], "xxx", ["f.0.a", "f.0.b", "f.1.a"]),
        ([f"f.{i}.g.{j}.a" for i in range(3) for j in range(2)], "x" * 6, ["f.0-2.g.0-1.a"]),
        (["f.0.a", "f.1.a", "f.0.a@2", "f.1.a@2"], "xxxx", ["f.0-1.a", "f.0-1.a@2"]),
        (["f.0.a", "f.1.a", "g.0.a", "g.1.a"], "xxxx", ["f.0-1.a", "g.0-1.a"]),
    ],
)
def test_folding(names: list[str], keys: str, found: list[str]) -> None:
    folds = folded(names, keys)
    assert [fold.name for fold in folds] == found
    assert sorted(index for fold in folds for index in fold.members) == list(range(len(names)))


def test_short_numbers() -> None:
    numbers = {
        0: "0",
        999: "999",
        1000: "1.00 k",
        999_499: "999 k",
        999_500: "1.00 M",
        12_345_678: "12.3 M",
        4 * 10**15: "4.00 P",
    }
    assert {number: short(number) for number in numbers} == numbers


def test_a_cell_that_is_too_wide_goes_on_below() -> None:
    assert columns([("long name", "1"), ("a", "2")], "lr", (4, 3)) == ["long name\n      1", "a     2"]


def test_pages_are_reflowed() -> None:
    text = "One line\nand more.\n\n- an item\n  that goes on\n- another"
    assert reflowed(text) == "One line and more.\n\n- an item that goes on\n- another"
