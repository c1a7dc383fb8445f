"""The report: one page and one JSON file, which say the same."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from markupsafe import escape
from matplotlib import colormaps
from PIL import Image
from safetensors.torch import save_file

import crate_dsl
from crate_dsl.cli import main
from crate_dsl.inspection.charts import Axis, Point, Series, chart, number
from crate_dsl.inspection.completion import Completions, task
from crate_dsl.training.data import Scaling
from crate_dsl.training.run import open_run
from crate_dsl.training.supply import open_texts
from tests.export.specs import graph_of
from tests.inspection.conftest import PAIRED, SPECS, Inspected, Page, inspected
from tests.specs.test_specs import SMALLEST

#: A browser that can be told to open a page and to say what went wrong.
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def shown(measure: Any, *, percent: bool = False) -> str:
    """A measure as the page's table writes it."""
    if measure is None:
        return "–"
    mark = "▲ " if measure.get("lower") is False else ""
    return f"{mark}{number(measure['mean'], percent=percent)} ± {number(measure['std'], percent=percent)}"


def test_the_page_shows_the_numbers_of_the_json(small: Inspected) -> None:
    text = small.page.read_text("utf-8")
    page = Page(text)
    rows = {row[0].strip(): [" ".join(cell.split()) for cell in row[1:]] for row in page.rows}
    for layer in small.data["layers"]:
        assert rows[layer["name"]] == [
            shown(layer["rate"]),
            shown(layer["step_rate"]),
            shown(layer["nonzero"], percent=True),
            shown(layer["lasso"], percent=True),
            shown(layer["tokens_rate"]),
            shown(layer["reduction"]),
            *(
                number(layer[name][key])
                for name in ("subspaces", "dictionary")
                for key in ("coherence", "deviation")
            ),
        ]
    for edge in small.data["capacity"]:
        name = edge["first"] if edge["first"] == edge["last"] else f"{edge['first']} … {edge['last']}"
        assert rows[name][:2] == [edge["type"], number(edge["bits"])]
    said = [item.replace("`", "") for item in (*small.data["summary"], *small.data["missing"])]
    assert page.items == said
    # Every mark of the layers is a mark on the page.
    failing = [
        layer["name"]
        for layer in small.data["layers"]
        for key in ("rate", "nonzero", "step_rate")
        if layer[key]["lower"] is False
    ]
    assert sum(cell.startswith("▲") for row in page.rows for cell in row) == len(failing)
    tips = re.findall(r"<title>(encoder[^<]*)</title>", text)
    layer = small.data["layers"][1]
    assert any(tip.startswith(f"encoder.1: {number(layer['rate']['mean'])} ± ") for tip in tips)


def test_the_pictures_are_those_of_the_json(small: Inspected) -> None:
    """An attention map, and the colours of a picture's tokens, read back from the page."""
    pictures = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
        for data in re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", small.page.read_text("utf-8"))
    ]
    first = small.data["attention"][0]
    assert np.shape(first["maps"]) == (3, 2, 2, 2) and first["query"] == "class_token"
    heat = np.array(first["maps"][0][1])
    wanted = colormaps["magma"](heat / heat.max())[..., :3] * 255
    assert np.abs(pictures[2].astype(float) - wanted).max() <= 2, "rounded to four digits, and to 256 shades"
    features = small.data["features"]
    assert np.shape(features["components"]) == (3, 2, 2, 4) and features["layer"] == "encoder.2"
    tokens = pictures[3 * 3 * len(small.data["attention"]) :]
    wanted = np.array(features["components"][1])[..., 1:] * 255
    assert np.abs(tokens[4 + 2].astype(float) - wanted).max() <= 1
    assert [len(objects) for objects in features["objects"]] == [
        int(count) for count in re.findall(r'alt="(\d) objects"', small.page.read_text("utf-8"))
    ]


def test_the_page_loads_nothing(small: Inspected) -> None:
    text = small.page.read_text("utf-8")
    page = Page(text)
    assert all(value.startswith(("data:", "#")) for value in page.loaded), (
        "data inside the page, and links to its sections"
    )
    assert not page.tags & {"script", "iframe", "object", "embed"}
    assert not re.search(r"url\(|@import|https?://", text)


def test_a_run_brings_its_images_curve_and_accuracy(small: Inspected) -> None:
    assert [row["epoch"] for row in small.data["training"]] == [1, 2]
    assert small.data["test"]["images"] == len(open_run(small.run).data().test)
    assert small.data["network"]["weights"].startswith("the run's")
    assert small.data["data"] | {"chosen": []} == {
        "source": "digits",
        "size": [1, 8, 8],
        "images": 40,
        "chosen": [],
        "shown": 3,
    }


def test_it_is_the_same_each_time(small: Inspected, tmp_path: Path) -> None:
    """Other batches, the same numbers: up to the order of sums in float32."""
    again = inspected(small.run, tmp_path / "again.html", "--images", 40, "--shown", 3, "--batch", 7)
    for one, other in zip(small.data["layers"], again["layers"], strict=True):
        for key in ("rate", "step_rate", "nonzero", "lasso", "tokens_rate", "reduction"):
            assert one[key]["mean"] == pytest.approx(other[key]["mean"], rel=1e-4), key
    assert again["data"] == small.data["data"]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A source of some windows of 128 characters, 79 different ones."""
    path = tmp_path_factory.mktemp("texts") / "text.txt"
    letters = np.random.default_rng(0).choice([chr(code) for code in range(33, 112)], 30_000)
    path.write_text("".join(letters))
    return f"text:{path}"


@pytest.mark.parametrize("target", SMALLEST)
def test_every_shipped_spec_is_inspected(target: str, pictures: str, text: str, tmp_path: Path) -> None:
    graph = crate_dsl.load(str(SPECS / target))
    source = text if target.startswith("text.crate") else pictures
    data = inspected(SPECS / target, tmp_path / "report.html", "--data", source, "--images", 5, "--shown", 2)
    assert data["layers"] and data["capacity"] and data["network"]["parameters"] == graph.parameters
    white = any(node.word == "compress" for node in graph.nodes)
    told = {layer["rate"] is not None for layer in data["layers"]}
    assert told == {white} or target == "tost.crate@fashion", "whose last layers are those of a transformer"
    assert all(layer["tokens_rate"]["mean"] > 0 for layer in data["layers"])
    assert any(text.startswith("No Rᶜ") for text in data["missing"]) != white
    assert bool(data["pairs"]) == bool(graph.pairs)


def test_a_text_is_shown_with_what_its_tokens_attend_to(text: str, tmp_path: Path) -> None:
    """The page has the windows as they read; the maps are the network's attention between all tokens."""
    target = f"{SPECS / 'text.crate'}:crate_gpt@characters"
    page = tmp_path / "report.html"
    data = inspected(target, page, "--data", text, "--images", 5, "--layers", "encoder.2", "--seed", 3)
    assert data["data"] | {"chosen": []} == {
        "source": text,
        "size": [128],
        "windows": 5,
        "chosen": [],
        "shown": 2,
    }
    assert data["features"] is None and data["completion"] is None
    graph = crate_dsl.load(target)
    texts = open_texts(graph, text, "characters")
    ids_bn, _ = texts.windows("test").take(np.array(data["data"]["chosen"][:2]))
    name = "encoder.2.compress.attention"
    seen = crate_dsl.trace(crate_dsl.build(graph, seed=3), name, ids=torch.from_numpy(ids_bn))[name]
    (maps,) = data["attention"]
    assert (maps["layer"], maps["query"]) == ("encoder.2", "each token")
    assert np.abs(np.array(maps["maps"]) - seen.numpy()).max() < 1e-4, "four digits"
    words = page.read_text("utf-8")
    assert all(escape(texts.vocabulary.decode(window)) in words for window in ids_bn)
    assert "over the windows" in words and "images" not in words


# ------------------------------------------------------------------ pairs and completion


@pytest.fixture(scope="module")
def paired(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("paired")
    (folder / "paired.crate").write_text(PAIRED)
    page = folder / "paired.html"
    return inspected(folder / "paired.crate", page, "--data", "digits", "--images", 30, "--shown", 2), page


def test_certified_pairs_invert_as_their_certificate_says(paired: tuple[dict[str, Any], Path]) -> None:
    data, page = paired
    (promise,) = data["promises"]
    whole, *others = data["pairs"]
    assert (whole["extent"], whole["name"], whole["undone_by"]) == ("stage", "encoder", "decoder")
    assert 0 < whole["mean"] <= whole["worst"] < promise["tolerance"] * 10, (
        "of the token rather than of the largest one"
    )
    layers = [(pair["name"], pair["undone_by"]) for pair in others if pair["extent"] == "layer"]
    assert layers == [("encoder.1", "decoder.0"), ("encoder.0", "decoder.1")]
    assert sum(pair["extent"] == "step" for pair in others) == 4
    assert ["encoder", "decoder", "certified", number(whole["mean"]), number(whole["worst"])] in Page(
        page.read_text()
    ).rows
    # Codes that are never zero have no sparsity, and decoders are not asked to compress.
    assert all(layer["nonzero"] is None for layer in data["layers"])
    assert all(
        layer["step_rate"] is None and layer["rate"]["lower"] is None
        for layer in data["layers"]
        if layer["decodes"]
    )


def test_learned_pairs_are_measured_too(tmp_path: Path) -> None:
    """Of an untrained inverse nothing is to be hoped: the error is what the steps make of it, from their modules."""
    text = PAIRED.replace("certified", "learned")
    (tmp_path / "learned.crate").write_text(text)
    data = inspected(tmp_path / "learned.crate", tmp_path / "l.html", "--data", "digits", "--images", 20)
    net = crate_dsl.build(graph_of(text), seed=0).eval()
    assert data["pairs"][0]["mode"] == "learned" and data["pairs"][0]["mean"] > 1e-3
    assert data["promises"][0]["tolerance"] is None
    assert net.graph.pairs


def test_completion_is_held_against_two_guesses() -> None:
    """On hidden pixels alone, in pixels from 0 to 1, each picture counting alike."""
    found = task(graph_of(PAIRED))
    assert found is not None and not found.normalised
    generator = torch.Generator().manual_seed(0)
    scaling = Scaling((0.3,), (0.5,))
    patches, completed = torch.randn(2, 3, 4, 16, generator=generator).unbind(0)
    marks = torch.tensor([[True, False, False, False], [False, True, True, False], [True, True, True, False]])
    mean = torch.rand(1, 8, 8, generator=generator)
    completions = Completions(found, scaling, mean, shown=2)
    completions.see({"patches.patchify": patches, found.completed.node: completed, "hidden": marks})
    squares = ((completed - patches) * 0.5).square().mean(-1)
    wanted = [(squares[b] * marks[b]).sum() / marks[b].sum() for b in range(3)]
    assert completions.network.values == pytest.approx([float(value) for value in wanted], rel=1e-5)
    mean_patches = mean.reshape(1, 2, 4, 2, 4).permute(1, 3, 2, 4, 0).reshape(4, 16)
    squares = (mean_patches - (patches * 0.5 + 0.3)).square().mean(-1)
    wanted = [(squares[b] * marks[b]).sum() / marks[b].sum() for b in range(3)]
    assert completions.mean.values == pytest.approx([float(value) for value in wanted], rel=1e-5)
    (pictures,) = completions.pictures
    assert pictures.shown.shape == (2, 1, 8, 8) and pictures.hidden.shape == (2, 2, 2)
    assert torch.equal(pictures.completed[0, :, :4, 4:], pictures.shown[0, :, :4, 4:]), (
        "what is visible stays"
    )
    assert not torch.equal(pictures.completed[0, :, :4, :4], pictures.shown[0, :, :4, :4])


def test_a_completing_network_shows_its_pictures(paired: tuple[dict[str, Any], Path]) -> None:
    data, page = paired
    completion = data["completion"]
    assert completion["hidden"] == 0.5
    rows = Page(page.read_text()).rows
    for name, key in (("the network's", "network"), ("the mean training image's", "mean_image")):
        assert [name, shown(completion[key])] in [[" ".join(cell.split()) for cell in row] for row in rows]
    assert page.read_text().count('alt="completed"') == 2


# ------------------------------------------------------------------ charts


def test_charts_hold_what_they_are_given() -> None:
    points = [Point(0.5, 0.1, tip="first & <one>"), None, Point(0.25, failing=True)]
    svg = chart(Axis(["0", "1", "0"], [("a", 2), ("b", 1)]), [Series("x", "rate", points)], label="a chart")
    assert "first &amp; &lt;one&gt;" in svg and svg.count("▲") == 1 and svg.count("<circle") == 2
    for style in ("line", "bars", "dots", "moves"):
        for values in ([], [0.0], [1e-12, 5.0], [-3.0, 4e6]):
            series = [Series("x", "rate", [Point(value, tip="t") for value in values], style)]  # type: ignore[arg-type]
            for logarithmic in (False, True):
                drawn = chart(
                    Axis([str(at) for at in range(len(values))]), series, label="", logarithmic=logarithmic
                )
                assert "nan" not in drawn and "inf" not in drawn
    many = [Point(1234.5 + at) for at in range(48)]
    svg = chart(Axis([str(at) for at in range(48)]), [Series("x", "rate", many)], label="")
    assert 4 < svg.count('class="value"') < 20, "as many as there is room for"


# ------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nothing", "-o", "r.html", "--data", "digits"], 1, "error"),
        (["{spec}", "-o", "r.html"], 2, "--data is missing"),
        (["{spec}", "-o", "r.pdf", "--data", "digits"], 2, "does not end with .html"),
        (["{spec}", "-o", "no/where/r.html", "--data", "digits"], 1, "there is no folder"),
        (["{spec}", "-o", "r.html", "--data", "mnist5k"], 1, "images of mnist5k are 1 x 28 x 28"),
        (["{spec}", "-o", "r.html", "--data", "npz:{spec}"], 1, "is not a sound .npz"),
        (["{spec}", "-o", "r.html", "--data", "folder:none"], 1, "none"),
        (
            ["{spec}", "-o", "r.html", "--data", "digits", "--weights", "none.safetensors"],
            1,
            "none.safetensors",
        ),
        (["{spec}", "-o", "r.html", "--data", "digits", "--weights", "{spec}"], 1, "is cut off or damaged"),
        (
            ["{spec}", "-o", "r.html", "--data", "digits", "--weights", "other.safetensors"],
            1,
            "does not fit the network",
        ),
        (["{spec}", "-o", "r.html", "--data", "digits", "--weights", "x", "--seed", "1"], 2, "both say"),
        (
            ["{spec}", "-o", "r.html", "--data", "digits", "--layers", "decoder.*"],
            1,
            "no layer of `small` is called",
        ),
        (["{spec}", "-o", "r.html", "--data", "digits", "--images", "0"], 2, "--images"),
        (["{run}", "-o", "r.html", "--set", "dim=24"], 2, "a run's parameters and weights are fixed"),
        (["{run}", "-o", "r.html", "--data", "mnist5k"], 1, "images of mnist5k are 1 x 28 x 28"),
    ],
)
def test_mistakes_are_told_and_leave_nothing(
    arguments: list[str],
    code: int,
    message: str,
    small: Inspected,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    save_file({"a": torch.zeros(2)}, "other.safetensors")
    names = {"spec": str(small.run.parent / "small.crate"), "run": str(small.run)}
    with pytest.raises(SystemExit) as end:
        main(["inspect", *(argument.format(**names) for argument in arguments)])
    told = capsys.readouterr().err
    assert end.value.code == code and message in told and "Traceback" not in told
    assert {path.name for path in tmp_path.iterdir()} == {"other.safetensors"}


@pytest.mark.parametrize("damage", ["metrics.csv", "model.safetensors", "run.json"])
def test_a_damaged_run_is_told(
    damage: str, small: Inspected, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(small.run, tmp_path / "run")
    path = tmp_path / "run" / damage
    path.write_bytes(path.read_bytes()[: -path.stat().st_size // 2].replace(b"train_loss", b"x"))
    with pytest.raises(SystemExit) as end:
        main(["inspect", str(tmp_path / "run"), "-o", str(tmp_path / "r.html")])
    assert end.value.code == 1
    assert "error" in capsys.readouterr().err and not (tmp_path / "r.html").exists()


def test_weights_of_a_file_are_those_that_are_inspected(small: Inspected, tmp_path: Path) -> None:
    spec = small.run.parent / "small.crate"
    options = ("--data", "digits", "--images", 40, "--shown", 3, "--batch", 16)
    data = inspected(spec, tmp_path / "w.html", *options, "--weights", small.run / "model.safetensors")
    assert data["layers"] == small.data["layers"] and data["training"] == []
    untrained = inspected(spec, tmp_path / "u.html", *options)
    assert untrained["layers"] != small.data["layers"]
    assert any("training curve" in text for text in untrained["missing"])


def test_the_terminal_shows_layers_in_eighty_columns(
    small: Inspected, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    data = inspected(small.run, tmp_path / "r.html", "--images", 40, "--layers", "encoder.1")
    told = capsys.readouterr().out
    assert max(map(len, told.splitlines())) <= 80 or str(tmp_path) in max(told.splitlines(), key=len)
    assert re.search(r"^layer +Rᶜ in +after compress +non-zero +LASSO gain +R out$", told, re.MULTILINE)
    assert number(data["layers"][2]["rate"]["mean"]) in told
    assert [maps["layer"] for maps in data["attention"]] == ["encoder.1"] and data["features"][
        "layer"
    ] == "encoder.1"


#: Networks with little to see, and pictures that are neither square nor of one or three channels.
ODD = {
    "no_layers": "pool",
    "bare_steps": "compress(2, 3) -> sparsify(prox = soft) -> compress(3, 2) -> pool",
    "learned_numbers": "compress(2, 3, step = learn(0.5)) -> sparsify(penalty = learn(0.1, shape = [8])) -> pool",
    "spectral": "compress(2, 4, gradient = exact) -> unpatchify",
    "denoising": "denoise(2, 3, time = 0.5) -> pool",
    "a_part_of_the_grid": "gather(seen) -> attend(2) -> pool",
}


@pytest.mark.parametrize("name", ODD)
def test_odd_networks_and_pictures(name: str, tmp_path: Path) -> None:
    seen = "input seen : index(6)[2] = choose\n" if "seen" in ODD[name] else ""
    body = f"y = image -> patchify(2) -> linear(8) -> {ODD[name]}"
    text = f"model odd {{\ninput image : float[2, 4, 6]\n{seen}{body}\noutput y\n}}\n"
    (tmp_path / "odd.crate").write_text(text)
    np.savez(tmp_path / "odd.npz", x=np.random.default_rng(0).random((30, 2, 4, 6), np.float32))
    data = inspected(
        tmp_path / "odd.crate", tmp_path / "odd.html", "--data", f"npz:{tmp_path / 'odd.npz'}", "--images", 1
    )
    assert (data["layers"] == []) == (name == "no_layers")
    assert all(layer["tokens_rate"]["std"] == 0 for layer in data["layers"])


def test_weights_that_diverged_are_told(
    small: Inspected, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net = open_run(small.run).net()
    weights = {key: 1e30 * value for key, value in net.state_dict().items()}
    save_file(weights, tmp_path / "huge.safetensors")
    with pytest.raises(SystemExit) as end:
        main([
            "inspect", str(small.run.parent / "small.crate"), "-o", str(tmp_path / "r.html"), "--data", "digits",
            "--weights", str(tmp_path / "huge.safetensors"),
        ])  # fmt: skip
    assert end.value.code == 1 and "is not finite on these data" in capsys.readouterr().err
    assert not (tmp_path / "r.html").exists() and not (tmp_path / "r.json").exists()


# ------------------------------------------------------------------ in a browser


def opened(page: Path, profile: Path) -> tuple[str, str]:
    """The document as a browser has it, and what it says of it. No name leads anywhere."""
    assert BROWSER is not None
    options = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--host-resolver-rules=MAP * ~NOTFOUND"]
    done = subprocess.run(
        [
            BROWSER, "--headless", *options, f"--user-data-dir={profile}", "--enable-logging=stderr", "--v=0",
            "--dump-dom", page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )  # fmt: skip
    return done.stdout, done.stderr


@pytest.mark.skipif(BROWSER is None, reason="there is no chromium here, which is to open the report")
def test_a_browser_opens_it_without_a_word(small: Inspected, tmp_path: Path) -> None:
    """Every chart is there, and no message: the page's own policy forbids every load, and the browser would say so."""
    text = small.page.read_text("utf-8")
    document, said = opened(small.page, tmp_path / "profile")
    assert document.count('class="chart"') == text.count('class="chart"') >= 7
    assert "CONSOLE" not in said
    loading = tmp_path / "loading.html"
    loading.write_text(text.replace("<footer>", '<footer><img src="http://localhost/x.png">'), "utf-8")
    assert "CONSOLE" in opened(loading, tmp_path / "profile")[1], "the browser does say so"


def test_the_json_is_plain(small: Inspected) -> None:
    """Strict JSON, with the entries that the documentation names, and no number that is not finite."""
    text = small.page.with_suffix(".json").read_text("utf-8")
    json.loads(text, parse_constant=lambda name: pytest.fail(name))
    assert list(small.data) == [
        "format", "network", "data", "eps", "summary", "missing", "layers", "pairs", "promises", "attention",
        "features", "completion", "training", "test", "capacity",
    ]  # fmt: skip
