"""`crate-dsl import`, and what becomes of the weights that it writes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import crate_dsl
from tests.checkpoints.layouts import CLASSES, CRATE, WIDTH
from tests.cli.conftest import FASHION, Cli

SETTINGS = [part for name, value in CRATE.settings.items() for part in ("--set", f"{name}={value}")]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "published.pth"
    torch.save({"state_dict": CRATE.state()}, path)
    return path


def test_from_a_checkpoint_to_a_proved_file(cli: Cli, checkpoint: Path, tmp_path: Path) -> None:
    weights, exported = tmp_path / "weights.safetensors", tmp_path / "net.onnx"
    result = cli("import", checkpoint, "--as", CRATE.target, *SETTINGS, "-o", weights)
    assert (result.code, result.err) == (0, "")
    lines = [line.rstrip() for line in result.out.splitlines()]
    for line in (
        f"{checkpoint} is CRATE:",
        "  dim 40, depth 2, patch 4, channels 3, size 12, classes 7",
        "  read from `state_dict`",
        "cls_token                    class_token              mapped",
        "transformer.layers.0-1       encoder.0-1",
        "  .0.fn.qkv.weight             .compress.subspaces    mapped",
        "  .1.fn.weight                 .sparsify.dictionary   mapped",
    ):
        assert line in lines
    table = lines[lines.index("") : -2]  # before and after it, what was typed is repeated
    assert all(len(line) <= 80 for line in table)
    assert lines[-1].startswith(f"next: crate-dsl export {CRATE.target} --set dim={WIDTH}")
    assert cli("export", CRATE.target, *SETTINGS, "--weights", weights, "-o", exported).code == 0
    images = torch.randn(3, 3, 12, 12)
    state = {key: tensor.double() for key, tensor in CRATE.state().items()}
    (_, wanted) = CRATE.compute(state, images.double())
    session = crate_dsl.open_session(exported, "cpu")
    # The proof's own bound is 1e-4 of the largest output.
    found = torch.from_numpy(session(image=images.numpy())["logits"])
    assert (found - wanted).abs().max() < 1e-4 * max(1, wanted.abs().max())


def test_json_has_every_key_on_its_own(cli: Cli, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "weights.safetensors"
    found = json.loads(
        cli("import", checkpoint, "--as", CRATE.target, *SETTINGS, "-o", out, "--format", "json").out
    )
    assert (found["family"], found["target"], found["sizes"]["classes"]) == ("CRATE", "crate", CLASSES)
    assert [entry["key"] for entry in found["keys"]] == list(CRATE.shapes)
    assert found["keys"][1] == {
        "key": "cls_token",
        "shape": [1, 1, WIDTH],
        "dtype": "float32",
        "status": "mapped",
        "slot": "class_token",
        "note": "",
    }


@pytest.mark.parametrize("kind", ["folder", "missing", "junk", "empty", "cut", "nan", "keys", "size"])
def test_what_is_no_checkpoint_is_one_clear_error(
    cli: Cli, checkpoint: Path, tmp_path: Path, kind: str
) -> None:
    path, state = tmp_path / "spoiled.pth", CRATE.state()
    if kind == "folder":
        path.mkdir()
    elif kind in ("junk", "empty", "cut"):
        whole = checkpoint.read_bytes()
        path.write_bytes(
            {"junk": bytes(range(256)) * 10, "empty": b"", "cut": whole[: len(whole) // 2]}[kind]
        )
    elif kind == "nan":
        torch.save(state | {"cls_token": torch.full((1, 1, WIDTH), float("nan"))}, path)
    elif kind == "keys":
        torch.save(state | {"more": torch.zeros(3)}, path)
    elif kind == "size":
        path = checkpoint
    target = (FASHION,) if kind == "size" else (CRATE.target, *SETTINGS)
    before = sorted(tmp_path.iterdir())
    result = cli("import", path, "--as", *target, "-o", tmp_path / "weights.safetensors")
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith("error: ")
    assert result.err.count("error") == 1
    assert sorted(tmp_path.iterdir()) == before


def test_what_cannot_be_asked_for(cli: Cli, checkpoint: Path, trained: Path, tmp_path: Path) -> None:
    weights, exported = tmp_path / "weights.safetensors", tmp_path / "net.onnx"
    for code, arguments in (
        (2, ("import", checkpoint, "--as", FASHION)),
        (2, ("import", checkpoint, "--as", FASHION, "-o", tmp_path / "weights.pth")),
        (
            2,
            (
                "import",
                trained / "run" / "last.safetensors",
                "--as",
                FASHION,
                "-o",
                trained / "run" / "last.safetensors",
            ),
        ),
        (1, ("import", checkpoint, "--as", "none.crate", "-o", weights)),
        (2, ("export", trained / "run", "--weights", weights, "-o", exported)),
        (2, ("export", FASHION, "--weights", weights, "--seed", 3, "-o", exported)),
        (1, ("export", FASHION, "--weights", weights, "-o", exported)),
        (1, ("export", FASHION, "--weights", trained / "run" / "model.safetensors", "-o", exported)),
    ):
        assert cli(*arguments).code == code, arguments
    assert not weights.exists()
    assert not exported.exists()


def test_weights_of_a_run_are_weights_too(cli: Cli, trained: Path, tmp_path: Path) -> None:
    weights, exported = trained / "run" / "model.safetensors", tmp_path / "net.onnx"
    assert cli("export", trained / "small.crate", "--weights", weights, "-o", exported).code == 0
    x = torch.randn(2, 1, 8, 8).numpy()
    one, other = (crate_dsl.open_session(path, "cpu") for path in (exported, trained / "small.onnx"))
    assert (one(image=x)["logits"] == other(image=x)["logits"]).all()


#: Its patches are not normalised before anything else, so that their scale is seen.
ALPHA = FASHION.replace("crate.crate", "crate_alpha.crate")


def test_a_scaling_travels_with_the_file(cli: Cli, tmp_path: Path) -> None:
    """Given as numbers, it is what `run` does with pixels; without it, `run` says that they go in as they are."""
    picture = tmp_path / "grey.npz"
    pixels = np.arange(28 * 28, dtype=np.uint8).reshape(1, 1, 28, 28)
    np.savez(picture, image=pixels)
    files = {}
    for name, more in {"plain": [], "scaled": ["--scaling", "0.25/0.5"]}.items():
        files[name] = tmp_path / f"{name}.onnx"
        assert cli("export", ALPHA, *more, "-o", files[name]).code == 0
    plain, scaled = (cli("run", files[name], picture) for name in ("plain", "scaled"))
    assert "warning: " in plain.err and "does not say how pixels become numbers" in plain.err
    assert scaled.err == "" and scaled.out != plain.out
    ready = tmp_path / "ready.npz"
    np.savez(ready, image=((pixels / np.float32(255)) - np.float32(0.25)) / np.float32(0.5))
    assert cli("run", files["plain"], ready).out.splitlines()[1:] == scaled.out.splitlines()[1:]


@pytest.mark.parametrize("text", ["imagenet", "0.5", "a/b", "0.5/0", "0.5,0.5/1,1", "nan/1", "0.5/inf"])
def test_what_is_no_scaling(cli: Cli, text: str, tmp_path: Path) -> None:
    result = cli("export", FASHION, "--scaling", text, "-o", tmp_path / "net.onnx")
    assert result.code == 1 and text in result.err and "--scaling imagenet" in result.err
    assert list(tmp_path.iterdir()) == []
