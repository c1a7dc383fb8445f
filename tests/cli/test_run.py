"""Training, exporting and running from the command line, on a few digits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import crate_dsl
from crate_dsl.compiler.recipe import entries
from tests.cli.conftest import Cli

TRAINING = Path(__file__).parents[1] / "training"


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A grey picture of 8 x 8 pixels."""
    path = tmp_path / "seven.png"
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 4).save(path)
    return path


# ------------------------------------------------------------------ train


def test_every_entry_of_a_recipe_is_an_option(cli: Cli) -> None:
    words = cli("train", "--help").out.split()
    assert not [name for name in entries() if "--" + name.replace("_", "-") not in words]


def test_what_is_missing_to_train(cli: Cli, small: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for arguments, message in (
        (("train", small, "--out", run), "error: --data is missing"),
        (("train", "--data", "digits", "--out", run), "error: TARGET is missing"),
        (("train", "--resume", "--seed", "3", "--out", run), "error: a run goes on as it began"),
    ):
        result = cli(*arguments)
        assert result.code == 2
        assert result.err.startswith(message)
    assert cli("train", "--resume", "--out", run).code == 1
    assert not run.exists()


def test_a_recipe_that_is_none(cli: Cli, small: Path, tmp_path: Path) -> None:
    result = cli("train", small, "--data", "digits", "--out", tmp_path / "run", "--epochs", "many")
    assert result.code == 1
    assert result.err.startswith("error: ")
    assert not (tmp_path / "run").exists()


def test_a_finished_run_is_only_told_again(cli: Cli, trained: Path) -> None:
    result = cli("train", "--resume", "--out", trained / "run", "--device", "cpu")
    assert result.code == 0
    assert "test images right (weights of epoch 1)" in result.out
    taken = cli("train", trained / "small.crate", "--data", "digits", "--out", trained / "run")
    assert taken.code == 1
    assert "holds a run" in taken.err


# ------------------------------------------------------------------ export


def test_a_spec_is_exported_untrained_with_its_proof(cli: Cli, small: Path, tmp_path: Path) -> None:
    out = tmp_path / "wide.onnx"
    result = cli("export", f"{small}@wide", "--out", out, "--seed", 3)
    assert result.code == 0
    assert "perturbed" in result.out
    assert f"{out} is written" in result.out
    net = crate_dsl.build(crate_dsl.load(f"{small}@wide"), seed=3)
    weights = crate_dsl.open_session(out, "cpu").metadata.target
    assert weights.variant == "wide"
    assert sum(weight.numel() for weight in net.parameters()) == 7_338


def test_a_proof_that_fails_exits_with_3(
    cli: Cli, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crate_dsl.compiler.prove.RELATIVE_TOLERANCE", 0.0)
    monkeypatch.setattr("crate_dsl.compiler.prove.ABSOLUTE_TOLERANCE", 0.0)
    monkeypatch.setattr("crate_dsl.compiler.prove.OWN_ROUNDING", 0)
    result = cli("export", small, "--out", tmp_path / "x.onnx")
    assert result.code == 3
    assert "FAIL" in result.err
    assert not (tmp_path / "x.onnx").exists()


def test_what_cannot_be_exported(cli: Cli, trained: Path, tmp_path: Path) -> None:
    assert cli("export", trained / "run", "--out", tmp_path / "x.pt").code == 2
    assert cli("export", trained / "run", "--out", tmp_path / "x.onnx", "--seed", 1).code == 2
    assert cli("export", trained / "run", "--out", tmp_path / "none" / "x.onnx").code == 1
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------ run


def test_a_picture_and_its_array_get_the_same_answer(
    cli: Cli, trained: Path, picture: Path, tmp_path: Path
) -> None:
    pixels = np.asarray(Image.open(picture))
    np.save(tmp_path / "pixels.npy", pixels[None, None])
    session = crate_dsl.open_session(trained / "small.onnx", "cpu")
    scaling = json.loads(session.metadata.extra["scaling"])
    scaled = ((pixels / np.float32(255) - scaling["mean"][0]) / scaling["std"][0]).astype(np.float32)
    np.savez(tmp_path / "scaled.npz", image=scaled[None])
    colour = tmp_path / "colour.bmp"
    Image.open(picture).convert("RGB").save(colour)
    expected = session(image=scaled[None, None])["logits"][0]
    result = cli(
        "run",
        trained / "small.onnx",
        picture,
        tmp_path / "pixels.npy",
        tmp_path / "scaled.npz",
        colour,
        "--format",
        "json",
        "--top",
        10,
    )
    assert (result.code, result.err) == (0, "")
    found = json.loads(result.out)
    assert sorted(sample["input"] for sample in found) == sorted(
        [str(picture), f"{tmp_path / 'pixels.npy'}[0]", f"{tmp_path / 'scaled.npz'}[0]", str(colour)]
    )
    for sample in found:
        classes = sample["outputs"]["logits"]
        scores = {answer["class"]: answer["score"] for answer in classes}
        np.testing.assert_allclose([scores[at] for at in range(10)], expected, rtol=1e-4, atol=1e-5)
        assert [answer["class"] for answer in classes] == list(np.argsort(-expected))
        assert sum(answer["probability"] for answer in classes) == pytest.approx(1)


def test_text_has_the_best_classes(cli: Cli, trained: Path, picture: Path) -> None:
    lines = cli("run", trained / "small.onnx", picture, "--top", 3).out.splitlines()
    assert lines[0] == str(picture)
    shares = [float(line.split()[0].rstrip("%")) for line in lines[1:]]
    assert len(shares) == 3
    assert shares == sorted(shares, reverse=True)


def test_a_folder_of_pictures(cli: Cli, trained: Path, picture: Path) -> None:
    (picture.parent / "notes.txt").write_text("not a picture")
    Image.open(picture).save(picture.with_name("again.png"))
    found = json.loads(cli("run", trained / "small.onnx", picture.parent, "--format", "json").out)
    assert [Path(sample["input"]).name for sample in found] == ["again.png", "seven.png"]


def test_a_picture_of_another_size(cli: Cli, trained: Path, tmp_path: Path) -> None:
    path = tmp_path / "wide.png"
    Image.new("L", (12, 9)).save(path)
    result = cli("run", trained / "small.onnx", path)
    assert result.code == 1
    assert result.err == (
        f"error: {path}: 12 x 9 pixels, but `image` wants 8 x 8\nhelp: --resize scales and crops pictures\n"
    )
    assert cli("run", trained / "small.onnx", path, "--resize").code == 0


@pytest.mark.parametrize(
    "name",
    ["cut.png", "junk.npy", "junk.npz", "large.npy", "objects.npy", "missing.png", "nan.npy", "shape.npy"],
)
def test_inputs_that_are_none(cli: Cli, trained: Path, picture: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "cut.png":
        path.write_bytes(picture.read_bytes()[:45])
    elif name.startswith("junk"):
        path.write_bytes(bytes(range(256)))
    elif name == "large.npy":
        with path.open("wb") as file:
            np.lib.format.write_array_header_1_0(
                file, {"descr": "<f4", "fortran_order": False, "shape": (2**40, 8, 8)}
            )  # type: ignore[arg-type]
    elif name == "objects.npy":
        np.save(path, np.array([{}]), allow_pickle=True)
    elif name == "nan.npy":
        np.save(path, np.full((1, 1, 8, 8), np.nan, np.float32))
    elif name == "shape.npy":
        np.save(path, np.zeros((1, 1, 8, 9), np.float32))
    result = cli("run", trained / "small.onnx", path)
    assert result.code == 1
    assert result.err.startswith("error: ")
    assert result.out == ""


def test_answers_are_saved_as_arrays(cli: Cli, trained: Path, picture: Path, tmp_path: Path) -> None:
    out = tmp_path / "answers.npz"
    assert cli("run", trained / "small.onnx", picture, picture, "--out", out).code == 0
    with np.load(out) as arrays:
        assert arrays["logits"].shape == (2, 10)
        assert list(arrays["input.names"]) == [str(picture)] * 2
    assert cli("run", trained / "small.onnx", picture, "--out", tmp_path / "answers.txt").code == 2


def test_right_answers_are_counted_on_test_images(cli: Cli, trained: Path) -> None:
    found = json.loads(cli("run", trained / "small.onnx", "--data", "digits", "--format", "json").out)
    scores = json.loads((trained / "run" / "test.json").read_text())
    assert found["images"] == scores["images"]
    assert found["accuracy"] == pytest.approx(scores["accuracy"])


#: Networks without classes: one copies pictures, one completes them, with what is hidden drawn.
WITHOUT_CLASSES = {
    "autoencoder": "mse(copied, image)",
    "completion": "mse(completed, patches, on = hidden)",
}
#: How far the loss may be from training's own, relatively: of the same numbers in another order of summation; and of
#: other masks, 48 of some 17,000 patches' errors at a time.
SAME, OTHER_MASKS = 1e-4, 0.05


@pytest.mark.parametrize("name", WITHOUT_CLASSES)
def test_where_there_are_no_classes_the_loss_is_told(cli: Cli, tmp_path: Path, name: str) -> None:
    spec, run, onnx = TRAINING / f"{name}.crate", tmp_path / "run", tmp_path / "net.onnx"
    trained = cli("train", spec, "--data", "digits", "--out", run, "--device", "cpu")
    assert trained.out.startswith("loss ")
    assert cli("export", run, "--out", onnx).code == 0
    found = json.loads(cli("run", onnx, "--data", "digits", "--seed", 1, "--format", "json").out)
    scores = json.loads((run / "test.json").read_text())
    assert (found["images"], found["objective"]) == (scores["images"], WITHOUT_CLASSES[name])
    tolerance = SAME if name == "autoencoder" else OTHER_MASKS
    assert found["loss"] == pytest.approx(scores["loss"], rel=tolerance)
    said = cli("run", onnx, "--data", "digits", "--seed", 1).out
    assert said == f"loss {found['loss']:.4f} on 359 test images of digits: {WITHOUT_CLASSES[name]}\n"


def test_neither_classes_nor_a_loss_that_can_be_told(cli: Cli, tmp_path: Path) -> None:
    spec, onnx = tmp_path / "own.crate", tmp_path / "own.onnx"
    spec.write_text(
        """
        model own {
            input image : float[1, 8, 8]
            made = image -> patchify(4) -> linear(5)
            goal = image -> patchify(4) -> linear(5)
            output made
            objective mse(made, goal)
        }
        """
    )
    assert cli("export", spec, "--out", onnx).code == 0
    result = cli("run", onnx, "--data", "digits")
    assert result.code == 1
    assert result.err.endswith("\nerror: `made` is no score for each class, but has the shape [4, 5]\n")


def test_a_network_that_takes_no_pictures(cli: Cli, tmp_path: Path, picture: Path) -> None:
    spec = tmp_path / "sum.crate"
    spec.write_text("model sum { input x : float[5] input y : float[5] z = x + y output z }")
    assert cli("export", spec, "--out", tmp_path / "sum.onnx").code == 0
    refused = cli("run", tmp_path / "sum.onnx", picture)
    assert refused.code == 1
    assert "does not take one picture" in refused.err
    x, y = np.ones((70, 5), np.float32), np.full((70, 5), 2, np.float32)
    np.savez(tmp_path / "both.npz", x=x, y=y)
    found = json.loads(cli("run", tmp_path / "sum.onnx", tmp_path / "both.npz", "--format", "json").out)
    assert len(found) == 70
    assert found[69] == {
        "input": f"{tmp_path / 'both.npz'}[69]",
        "outputs": {"z": {"shape": [5], "mean": 3.0, "least": 3.0, "largest": 3.0}},
    }


def test_nothing_or_too_much_to_run_on(cli: Cli, trained: Path, picture: Path) -> None:
    assert cli("run", trained / "small.onnx").code == 2
    assert cli("run", trained / "small.onnx", picture, "--data", "digits").code == 2


def test_cuda_is_never_replaced_silently(cli: Cli, trained: Path, picture: Path) -> None:
    if crate_dsl.compiler.runtime.cuda_problem() is None:
        pytest.skip("there is a GPU")
    result = cli("run", trained / "small.onnx", picture, "--provider", "cuda")
    assert result.code == 1
    assert "CUDA cannot be used here" in result.err
