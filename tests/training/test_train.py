from __future__ import annotations

import csv
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

import crate_dsl
from crate_dsl.language.diagnostics import UserError
from crate_dsl.training.batches import Batches, Held
from crate_dsl.training.data import Part, Scaling
from crate_dsl.training.feed import Feed, check_fits
from crate_dsl.training.journal import Journal, Row
from crate_dsl.training.plain import load_plain, save_plain
from crate_dsl.training.progress import Display
from crate_dsl.training.run import Run, evaluate, export_run, open_run
from crate_dsl.training.sources import open_data
from crate_dsl.training.train import resume, train

HERE = Path(__file__).parent
TINY, AUTOENCODER = str(HERE / "tiny.crate"), str(HERE / "autoencoder.crate")
#: A test accuracy that chance (10 %) does not reach, and this network does in three epochs.
LEARNED = 0.6


def rows(run: Run) -> list[dict[str, str]]:
    """The metrics without what a clock says."""
    with (run.folder / "metrics.csv").open() as file:
        return [
            {k: v for k, v in row.items() if not k.startswith(("seconds", "steps_per"))}
            for row in csv.DictReader(file)
        ]


def same_weights(one: Path, other: Path) -> bool:
    a, b = load_file(one), load_file(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# ------------------------------------------------------------------ a run


def test_a_run_learns_and_says_so(finished: Run) -> None:
    test = finished.test()
    assert test is not None
    assert (test["images"], test["epoch"]) == (359, 3)
    assert test["accuracy"] > LEARNED
    assert evaluate(finished).accuracy == test["accuracy"]
    assert [row["epoch"] for row in rows(finished)] == ["1", "2", "3"]
    assert [float(row["lr"]) for row in rows(finished)][-1] < 1e-4
    files = {path.name for path in finished.folder.iterdir()}
    assert files == {"spec", "run.json", "metrics.csv", "model.safetensors", "last.safetensors", "test.json"}


def test_a_run_needs_no_file_from_elsewhere(finished: Run, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(finished.folder, moved)
    run = open_run(moved)
    assert (moved / "spec" / "tiny.crate").read_text() == Path(TINY).read_text()
    assert run.graph().parameters == run.manifest.parameters
    net, original = run.net(), finished.net()
    x_bchw = torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(net(x_bchw), original(x_bchw), rtol=0, atol=0)


def test_the_same_seed_gives_the_same_run_and_another_seed_another(finished: Run, tmp_path: Path) -> None:
    again = train(TINY, "digits", tmp_path / "again", progress=False)
    other = train(TINY, "digits", tmp_path / "other", seed=1, progress=False)
    assert rows(again) == rows(finished)
    assert same_weights(again.folder / "model.safetensors", finished.folder / "model.safetensors")
    assert rows(other) != rows(finished)


def test_settings_and_overrides_are_in_force_and_recorded(tmp_path: Path) -> None:
    overrides = {"epochs": "1", "optimizer": "lion(lr = 1e-3)", "schedule": "constant", "clip": "1"}
    settings = {"dim": 32, "dropped": 0.25}
    run = train(
        f"{TINY}@wide", "digits", tmp_path / "run", set=settings, recipe=overrides, limit=128, progress=False
    )
    graph = open_run(run.folder).graph()
    assert (graph.settings["dim"], float(graph.settings["dropped"]), graph.variant) == (32, 0.25, "wide")
    recipe = run.manifest.recipe_in_force()
    assert (recipe.optimizer.word, recipe.optimizer.lr, recipe.clip, recipe.batch) == ("lion", 1e-3, 1.0, 64)
    assert [row["steps"] for row in rows(run)] == ["2"]


def test_without_labels_the_images_alone_are_fed(tmp_path: Path) -> None:
    run = train(AUTOENCODER, "digits", tmp_path / "run", progress=False)
    assert evaluate(run).accuracy is None
    assert [row["val_accuracy"] for row in rows(run)] == ["", ""]
    first, second = (float(row["val_loss"]) for row in rows(run))
    assert second < first
    assert "accuracy" not in json.loads((run.folder / "test.json").read_text())


def test_without_validation_images_the_last_epoch_is_kept(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (30, 8, 8), np.uint8)
    path = tmp_path / "few.npz"
    np.savez(
        path, x=x, y=np.arange(30) % 10, x_test=x, y_test=np.arange(30) % 10
    )  # three of a class: none is held back
    run = train(TINY, f"npz:{path}", tmp_path / "run", progress=False)
    assert [row["val_loss"] for row in rows(run)] == ["", "", ""]
    assert run.test()["epoch"] == 3  # type: ignore[index]
    with pytest.raises(UserError, match="`patience` needs validation images"):
        train(TINY, f"npz:{path}", tmp_path / "other", recipe={"patience": 1}, progress=False)


def test_early_stopping_keeps_the_best(tmp_path: Path) -> None:
    recipe = {"epochs": 40, "patience": 2, "lr": 1e-8}  # too small to change a prediction for long
    run = train(TINY, "digits", tmp_path / "run", recipe=recipe, progress=False)
    found = rows(run)
    assert len(found) < 40
    best = max(found, key=lambda row: (float(row["val_accuracy"]), -float(row["val_loss"])))
    assert int(found[-1]["epoch"]) - int(best["epoch"]) == 2
    assert run.test()["epoch"] == int(best["epoch"])  # type: ignore[index]


# ------------------------------------------------------------------ cut off and resumed

KILLED = """
import os, signal, sys
import torch
torch.set_num_threads(1)
from crate_dsl.training.batches import Batches
from crate_dsl.training.train import train

whole = Batches.__iter__
def cut_off(self):
    for number, batch in enumerate(whole(self)):
        if self.epoch == 2 and number == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        yield batch
Batches.__iter__ = cut_off
train(sys.argv[1], "digits", sys.argv[2], progress=False)
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed in its third epoch."""
    out = tmp_path_factory.mktemp("runs") / "killed"
    done = subprocess.run([sys.executable, "-c", KILLED, TINY, str(out)], check=False)
    assert done.returncode == -signal.SIGKILL
    return out


def test_a_killed_run_goes_on_as_if_nothing_had_happened(finished: Run, killed: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    shutil.copytree(killed, out)
    assert len(rows(open_run(out))) == 2
    run = train(TINY, "digits", out, resume=True, progress=False)
    assert rows(run) == rows(finished)
    for name in ("model.safetensors", "last.safetensors"):
        assert same_weights(out / name, finished.folder / name)
    assert run.test() == finished.test()


def test_a_run_goes_on_from_its_folder_alone(finished: Run, killed: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    shutil.copytree(killed, out)
    assert rows(resume(out, progress=False)) == rows(finished)
    assert rows(resume(out, progress=False)) == rows(finished)  # a second time, there is nothing left to do


def test_a_run_killed_before_its_first_epoch_ended_begins_anew(finished: Run, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished.folder, out)
    for name in ("last.safetensors", "model.safetensors", "metrics.csv", "test.json"):
        (out / name).unlink()
    assert rows(resume(out, progress=False)) == rows(finished)


def test_an_interrupted_run_says_what_is_kept(
    finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Batches.__iter__

    def interrupted(self: Batches) -> Iterator[dict[str, torch.Tensor]]:
        for batch in whole(self):
            if self.epoch == 1:
                raise KeyboardInterrupt
            yield batch

    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(Batches, "__iter__", interrupted)
        with pytest.raises(UserError, match="interrupted; epoch 1 is kept") as caught:
            train(TINY, "digits", tmp_path / "run", progress=False)
    assert (caught.value.exit_code, signal.getsignal(signal.SIGINT)) == (130, handler)
    assert rows(resume(tmp_path / "run", progress=False)) == rows(finished)


def test_a_resumed_run_must_be_the_same_run(killed: Path, tmp_path: Path) -> None:
    for said, other in {
        "seed was 0, now it is 1": {"seed": 1},
        "limit was None, now it is 100": {"limit": 100},
        "epochs of the recipe was 3, now it is 4": {"recipe": {"epochs": "4"}},
        "dim was 16, now it is 24": {"set": {"dim": 24}},
    }.items():
        with pytest.raises(UserError, match=said):
            train(TINY, "digits", killed, resume=True, progress=False, **other)
    edited = tmp_path / "tiny.crate"
    edited.write_text(Path(TINY).read_text() + "# edited\n")
    with pytest.raises(UserError, match=r"tiny.crate was edited"):
        train(str(edited), "digits", killed, resume=True, progress=False)


def test_nothing_is_overwritten(killed: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in killed.rglob("*") if path.is_file()}
    with pytest.raises(
        UserError, match=r"holds a run, and nothing is overwritten\nhelp: go on with that run: --resume"
    ):
        train(TINY, "digits", killed, progress=False)
    assert before == {path: path.read_bytes() for path in killed.rglob("*") if path.is_file()}
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty, and nothing is overwritten"):
        train(TINY, "digits", tmp_path, progress=False)
    with pytest.raises(UserError, match="there is no run at"):
        train(TINY, "digits", tmp_path / "none", resume=True, progress=False)


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path) -> None:
    out = tmp_path / "run"
    recipe = {"optimizer": "sgd(lr = 1e25)", "warmup": 0}
    with pytest.raises(
        UserError, match=r"the loss became (nan|inf) in epoch 1, step \d+ of 20; no epoch was completed"
    ):
        train(TINY, "digits", out, recipe=recipe, progress=False)
    assert not (out / "model.safetensors").exists()


def test_an_epoch_may_end_where_its_losses_were_just_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crate_dsl.training.loop.LOOKED_AT", 2)
    run = train(AUTOENCODER, "digits", tmp_path / "run", limit=128, progress=False)  # four steps an epoch
    assert [row["steps"] for row in rows(run)] == ["4", "8"]


def test_what_cannot_be_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for said, asked in {
        "torch finds no GPU": {"device": "cuda"},
        "there is no device `tpu`": {"device": "tpu"},
        "there is no precision `64`": {"precision": "64"},
        "precision 16 needs a GPU": {"precision": "16"},
        "a seed is a whole number": {"seed": -1},
        "at least one image": {"limit": 0},
    }.items():
        with pytest.raises(UserError, match=said):
            train(TINY, "digits", tmp_path / said, progress=False, **asked)


# ------------------------------------------------------------------ what lies in a folder may be anything


@pytest.fixture
def copied(finished: Run, tmp_path: Path) -> Path:
    shutil.copytree(finished.folder, tmp_path / "copied")
    return tmp_path / "copied"


def refused(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        open_run(folder).net()
    return str(caught.value)


def test_weights_of_another_network_are_named(copied: Path) -> None:
    path = copied / "model.safetensors"
    weights = load_file(path)
    name = next(name for name, tensor in weights.items() if tensor.dim() == 2)
    save_file({**weights, name: weights[name][:, :1].contiguous(), "more": torch.zeros(1)}, path)
    said = refused(copied)
    assert "`more` is not known" in said
    assert f"`{name}` is [" in said
    del weights[name]
    save_file(weights, path)
    assert f"`{name}` is missing" in refused(copied)
    weights[name] = torch.full_like(
        load_file(copied / "last.safetensors")[f"state_dict.objective.net.{name}"], torch.nan
    )
    save_file(weights, path)
    assert f"holds NaN or infinity in `{name}`" in refused(copied)


@pytest.mark.parametrize("keep", [0, 4, 100, 5000])
def test_weights_that_are_cut_off(copied: Path, keep: int) -> None:
    path = copied / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    assert "is cut off or damaged" in refused(copied)


@pytest.mark.parametrize("keep", [0, 4, 1000])
def test_a_checkpoint_that_is_cut_off(killed: Path, tmp_path: Path, keep: int) -> None:
    out = tmp_path / "killed"
    shutil.copytree(killed, out)
    (out / "last.safetensors").write_bytes((killed / "last.safetensors").read_bytes()[:keep])
    with pytest.raises(UserError, match="is cut off or damaged"):
        resume(out, progress=False)
    save_file({"a": torch.zeros(1)}, out / "last.safetensors")
    with pytest.raises(UserError, match="is no checkpoint of a run"):
        resume(out, progress=False)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"spec": "../../tiny.crate"}, "`spec`: value error, it must be a .crate file inside spec/"),
        ({"spec": "/etc/tiny.crate"}, "it must be a .crate file inside spec/"),
        ({"format": 2}, "`format`"),
        ({"scaling": {"input": "image", "mean": [0.1], "std": [0]}}, "`scaling.std.0`"),
        ({"surprise": 1}, "`surprise`"),
    ],
)
def test_a_manifest_that_was_tampered_with(copied: Path, change: dict[str, object], said: str) -> None:
    path = copied / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert said in refused(copied)


def test_a_manifest_that_is_cut_off_or_missing(copied: Path, tmp_path: Path) -> None:
    path = copied / "run.json"
    path.write_bytes(path.read_bytes()[:99])
    assert "run.json is damaged" in refused(copied)
    path.unlink()
    assert "holds no run" in refused(copied)
    assert "there is no run at" in refused(tmp_path / "nowhere")


def test_nothing_in_a_run_is_a_pickle(finished: Run) -> None:
    for path in finished.folder.rglob("*"):
        if path.is_file():
            start = path.read_bytes()[:64]
            assert not start.startswith((b"\x80", b"PK"))


# ------------------------------------------------------------------ export


def test_scaling_and_classes_travel_with_the_file(finished: Run, tmp_path: Path) -> None:
    import onnx

    path = tmp_path / "tiny.onnx"
    assert export_run(finished.folder, path).passed
    found = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    scaling = json.loads(found["crate_dsl.scaling"])
    data = open_data("digits")
    assert scaling == {"input": "image", "mean": list(data.scaling.mean), "std": list(data.scaling.std)}
    assert json.loads(found["crate_dsl.classes"]) == [str(digit) for digit in range(10)]
    scores = crate_dsl.open_session(str(path))(image=data.scaling.apply(data.test.images_nchw))["logits"]
    accuracy = float((scores.argmax(-1) == data.test.labels_n).mean())
    assert accuracy == pytest.approx(finished.test()["accuracy"])  # type: ignore[index]


# ------------------------------------------------------------------ the parts


def test_a_spec_that_does_not_fit_its_images() -> None:
    digits = open_data("digits")
    for settings, said in (
        ({"size": 16}, r"takes `image` : float\[1, 16, 16\], but the images of digits are 1 x 8 x 8"),
        ({"classes": 9}, r"has 9 classes \(`label` : index\(9\)\), but digits has 10"),
    ):
        with pytest.raises(UserError, match=said):
            check_fits(crate_dsl.load(TINY, set=settings), digits)
    assert check_fits(crate_dsl.load(TINY), digits) == Feed("image", ("label",), "logits")
    assert check_fits(crate_dsl.load(AUTOENCODER), digits) == Feed("image", (), None)


def test_batches_are_a_shuffle_that_epoch_and_seed_decide() -> None:
    part = Part(np.arange(10, dtype=np.uint8).reshape(10, 1, 1, 1), np.arange(10))
    scaling = Scaling((0.1,), (0.5,))
    held = Held(part, scaling, Feed("picture", ("kind",), None), torch.device("cpu"))

    def order(seed: int, epoch: int) -> list[list[int]]:
        batches = Batches(held, 4, seed)
        batches.epoch = epoch
        return [batch["kind"].tolist() for batch in batches]

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1) != order(1, 1)
    seen = [label for batch in order(0, 0) for label in batch]
    assert len(seen) == len(set(seen)) == 8  # what does not fill a batch is left out
    batch = held.batch(torch.tensor([3, 7]))
    # float32 has seven digits.
    np.testing.assert_allclose(
        batch["picture"].numpy(), scaling.apply(part.images_nchw[[3, 7]]), rtol=1e-6, atol=1e-7
    )
    assert len(Batches(held, 64, 0)) == 1


def test_plain_data_comes_back_as_it_was(tmp_path: Path) -> None:
    value = {
        "numbers": [1, 0.1, True, None, "text", float("inf")],
        "betas": (0.9, 0.99),
        "state": {0: {"step": torch.tensor(3.0), "m": torch.arange(6.0).reshape(2, 3).T}, 1: {}},
        "$odd": {"": []},
    }
    save_plain(value, tmp_path / "file")
    found = load_plain(tmp_path / "file")
    assert torch.equal(found["state"][0].pop("m"), value["state"][0].pop("m"))  # type: ignore[index]
    assert torch.equal(found["state"][0].pop("step"), value["state"][0].pop("step"))  # type: ignore[index]
    assert found == value
    with pytest.raises(TypeError, match=r"a\.0 is a object, which is no plain data"):
        save_plain({"a": [object()]}, tmp_path / "other")
    assert not (tmp_path / "other").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_best_epoch_is_the_first_of_the_best() -> None:
    def row(epoch: int, loss: float | None, accuracy: float | None) -> Row:
        return Row(epoch, epoch, 0.5, loss, accuracy, 0.1, 1.0, 1.0)

    journal = Journal(
        [row(1, 0.9, 0.7), row(2, 0.5, 0.8), row(3, 0.4, 0.8), row(4, 0.4, 0.8), row(5, 0.1, 0.75)]
    )
    assert journal.best is journal.rows[2]
    assert journal.stale == 2
    assert Journal.of(journal.state()) == journal
    assert Journal([row(1, None, None), row(2, None, None)]).best == row(2, None, None)


def test_progress_fits_eighty_columns_and_is_plain_elsewhere() -> None:
    row = Row(100, 10**6, 12.3456, 11.2345, 0.98765, 1e-3, 1234.5, 99.9)
    for terminal in (False, True):
        console = Console(
            width=80, force_terminal=terminal, color_system=None, record=True, quiet=False, file=None
        )
        with console.capture() as captured, Display(console, 100, 453) as display:
            display.begin(100)
            if display.due():
                display.step(7, 12.3)
            display.end(row, best=True)
        lines = captured.get().splitlines()
        assert any("epoch 100/100  loss 12.3456  validation 11.2345  98.77% right" in line for line in lines)
        assert terminal or len(lines) == 1
        assert terminal or max(map(len, lines)) <= 80
