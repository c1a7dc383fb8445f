"""Training on a GPU; and what of it can be held to account without one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from crate_dsl.compiler.recipe import Lion, Recipe
from crate_dsl.training import batches
from crate_dsl.training.batches import Batches, Held
from crate_dsl.training.data import Part, Scaling
from crate_dsl.training.feed import Feed
from crate_dsl.training.plain import load_plain, save_plain
from crate_dsl.training.run import Run, export_run
from crate_dsl.training.schedules import optimizer_of
from crate_dsl.training.train import resume, train
from tests.training.test_faster import interrupted
from tests.training.test_train import TINY, rows

CUDA = torch.device("cuda")
#: A test accuracy that chance (10 %) does not reach, and this network does in three epochs.
LEARNED = 0.6
#: A GPU adds in no fixed order, and two epochs of steps go on from what came out.
UNORDERED = 0.05


def on_gpu(test: object) -> object:
    absent = not torch.cuda.is_available()
    return pytest.mark.gpu(pytest.mark.skipif(absent, reason="torch finds no GPU here")(test))


def part(count: int = 40) -> Part:
    rng = np.random.default_rng(0)
    return Part(rng.integers(0, 256, (count, 3, 5, 4), np.uint8), rng.integers(0, 10, count))


def held(device: torch.device) -> Held:
    return Held(part(), Scaling((0.1, 0.2, 0.3), (0.5, 0.4, 0.3)), Feed("x", ("y",), None), device)


# ------------------------------------------------------------------ anywhere


def test_images_lie_on_the_gpu_where_they_leave_room_for_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 4000))
    assert batches.fits(250, CUDA)
    assert not batches.fits(251, CUDA)
    assert batches.fits(10**15, torch.device("cpu"))


def test_a_checkpoint_carries_the_scale_of_gradients(tmp_path: Path) -> None:
    """Precision 16 scales the loss by what it has found to work: a resumed run goes on with that."""
    scaler = torch.amp.GradScaler("cpu", init_scale=3.0, growth_interval=7)
    scaler.scale(torch.ones(()))  # makes its state
    save_plain({"MixedPrecision": scaler.state_dict()}, tmp_path / "last.safetensors")
    again = torch.amp.GradScaler("cpu")
    again.load_state_dict(load_plain(tmp_path / "last.safetensors")["MixedPrecision"])
    assert again.state_dict() == scaler.state_dict()
    assert again.get_scale() == 3.0


# ------------------------------------------------------------------ where there is one


@on_gpu
def test_batches_from_the_host_are_those_from_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    there = held(CUDA)
    monkeypatch.setattr(batches, "SHARE", 0.0)
    here = held(CUDA)
    assert there.images_nchw.is_cuda and not here.images_nchw.is_cuda
    pairs = list(zip(Batches(there, 16, 0), Batches(here, 16, 0), strict=True))
    assert len(pairs) == 2
    for one, other in pairs:
        assert one.keys() == other.keys() == {"x", "y"}
        for name, tensor in one.items():
            assert other[name].is_cuda
            assert torch.equal(tensor, other[name])


@on_gpu
@pytest.mark.parametrize("lies", ["device", "host"])
@pytest.mark.parametrize("precision", ["32", "bf16", "16"])
def test_a_run_on_a_gpu(
    precision: str, lies: str, finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if lies == "host":
        monkeypatch.setattr(batches, "SHARE", 0.0)
    run = train(TINY, "digits", tmp_path / "run", device="cuda", precision=precision, progress=False)
    test = run.test()
    assert test is not None and test["accuracy"] > LEARNED
    weights, others = (load_file(r.folder / "model.safetensors") for r in (run, finished))
    assert {name: (w.shape, w.dtype) for name, w in weights.items()} == {
        name: (w.shape, w.dtype) for name, w in others.items()
    }
    assert export_run(run.folder, tmp_path / "run.onnx").passed


@on_gpu
@pytest.mark.parametrize("asked", [{"precision": "16"}, {"precision": "bf16", "compile": True}])
def test_a_run_on_a_gpu_that_is_cut_off_goes_on(
    asked: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(TINY, "digits", tmp_path / "whole", device="cuda", progress=False, **asked)  # type: ignore[arg-type]
    interrupted(monkeypatch, tmp_path / "cut", device="cuda", **asked)
    if asked["precision"] == "16":
        assert "scale" in load_plain(tmp_path / "cut" / "last.safetensors")["MixedPrecision"]
    cut = resume(tmp_path / "cut", device="cuda", progress=False)
    for row, other in zip(rows(cut), rows(whole), strict=True):
        assert float(row["train_loss"]) == pytest.approx(float(other["train_loss"]), rel=UNORDERED)


@on_gpu
def test_lion_takes_the_same_steps_on_a_gpu() -> None:
    torch.manual_seed(0)
    one = torch.nn.Linear(7, 5)
    other = torch.nn.Linear(7, 5).to(CUDA)
    other.load_state_dict(one.state_dict())
    recipe = Recipe(optimizer=Lion(lr=1e-2, weight_decay=0.1), epochs=6)
    optimizers = [optimizer_of(recipe, module) for module in (one, other)]
    for _ in range(5):
        gradients = {name: torch.randn_like(p) for name, p in one.named_parameters()}
        for module, optimizer in zip((one, other), optimizers, strict=True):
            for name, parameter in module.named_parameters():
                parameter.grad = gradients[name].to(parameter.device)
            optimizer.step()
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q.cpu())
