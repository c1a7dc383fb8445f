"""Training on images alone, with a drawn mask: no labels, a run that was cut off, its export on a picture."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

import crate_dsl
from crate_dsl.cli import app
from crate_dsl.language.diagnostics import UserError
from crate_dsl.training.batches import Batches
from crate_dsl.training.run import Run, evaluate, export_run
from crate_dsl.training.train import resume, train

COMPLETION = str(Path(__file__).parent / "completion.crate")


@pytest.fixture(scope="module")
def completed(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that was never cut off. Tests must leave it as it is."""
    return train(COMPLETION, "digits", tmp_path_factory.mktemp("runs") / "completion", progress=False)


def rows(run: Run) -> list[dict[str, str]]:
    """The metrics without what a clock says."""
    with (run.folder / "metrics.csv").open() as file:
        return [
            {k: v for k, v in row.items() if not k.startswith(("seconds", "steps_per"))}
            for row in csv.DictReader(file)
        ]


def test_it_trains_without_labels(completed: Run) -> None:
    first, *_, last = (float(row["val_loss"]) for row in rows(completed))
    assert last < first
    assert {row["val_accuracy"] for row in rows(completed)} == {""}
    test = json.loads((completed.folder / "test.json").read_text())
    assert "accuracy" not in test and test["images"] == 359
    # Draws of a measurement come from one seed: it gives the same number twice.
    assert evaluate(completed).loss == evaluate(completed).loss == test["loss"]


def test_a_run_that_was_cut_off_draws_what_it_would_have_drawn(
    completed: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Batches.__iter__

    def interrupted(self: Batches) -> Iterator[dict[str, torch.Tensor]]:
        for number, batch in enumerate(whole(self)):
            if (self.epoch, number) == (1, 3):
                raise KeyboardInterrupt
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(Batches, "__iter__", interrupted)
        with pytest.raises(UserError, match="interrupted; epoch 1 is kept"):
            train(COMPLETION, "digits", tmp_path / "run", progress=False)
    run = resume(tmp_path / "run", progress=False)
    assert rows(run) == rows(completed)
    ours, theirs = (load_file(r.folder / "model.safetensors") for r in (run, completed))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_its_export_takes_a_picture_and_draws_by_seed(completed: Run, tmp_path: Path) -> None:
    file, picture, arrays = tmp_path / "c.onnx", tmp_path / "picture.png", tmp_path / "given.npz"
    assert export_run(completed.folder, file).passed
    image = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
    Image.fromarray(image).save(picture)

    def outputs(*arguments: str) -> np.ndarray:
        out = tmp_path / "out.npz"
        result = CliRunner().invoke(app, ["run", str(file), *arguments, "--out", str(out)])
        assert result.exit_code == 0, result.output
        with np.load(out) as found:
            completion: np.ndarray = found["completed"]
            return completion

    assert outputs(str(picture)).shape == (1, 16, 4)
    assert np.array_equal(outputs(str(picture), "--seed", "1"), outputs(str(picture), "--seed", "1"))
    assert not np.array_equal(outputs(str(picture), "--seed", "1"), outputs(str(picture), "--seed", "2"))
    hidden = np.arange(16)[None] >= 4
    np.savez(arrays, image=image[None, None], hidden=hidden)
    given = outputs(str(arrays))
    image[2:] = 0  # the first row of patches alone is seen
    np.savez(arrays, image=image[None, None], hidden=hidden)
    assert np.array_equal(outputs(str(arrays)), given)


def test_a_draw_of_a_length_that_no_image_tells_is_refused_before_the_run(tmp_path: Path) -> None:
    spec = tmp_path / "open.crate"
    spec.write_text(
        "model open { input image : float[1, 8, 8]  input visible : index(16)[k <= 4] = choose\n"
        "  patches = image -> patchify(2)\n"
        "  y = patches -> gather(visible) -> scatter(visible) -> linear(4)\n"
        "  output y  objective mse(y, patches, except = visible)  train { epochs = 1 } }\n"
    )
    assert crate_dsl.load(str(spec)).parameters == 20
    with pytest.raises(UserError, match=r"`visible` : index\(16\)\[k\] cannot be drawn in training"):
        train(str(spec), "digits", tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
