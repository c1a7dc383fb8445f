"""Training in fewer bits and compiled: the same weights by name, the same losses, resumed as if never cut off."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from crate_dsl.language.diagnostics import UserError
from crate_dsl.training.train import resume, train
from tests.training.test_train import TINY, rows, same_weights

#: The same sums in another order, over the steps of an epoch.
REORDERED = 1e-3


def interrupted(monkeypatch: pytest.MonkeyPatch, folder: Path, **asked: object) -> None:
    """A run that is cut off after its first epoch."""
    from crate_dsl.training.loop import Training

    whole = Training.on_train_epoch_start

    def stop(self: Training) -> None:
        if self.current_epoch == 1:
            raise RuntimeError("cut off")
        whole(self)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "on_train_epoch_start", stop)
        with pytest.raises(RuntimeError, match="cut off"):
            train(TINY, "digits", folder, progress=False, **asked)  # type: ignore[arg-type]


def test_bf16_with_a_bound_on_the_gradient_resumes_bit_for_bit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = {"precision": "bf16", "limit": 200, "recipe": {"epochs": 2, "clip": 0.5}}
    whole = train(TINY, "digits", tmp_path / "whole", progress=False, **asked)  # type: ignore[arg-type]
    interrupted(monkeypatch, tmp_path / "cut", **asked)
    cut = resume(tmp_path / "cut", progress=False)
    assert rows(cut) == rows(whole)
    assert same_weights(cut.folder / "model.safetensors", whole.folder / "model.safetensors")
    assert all(
        weight.dtype == torch.float32 for weight in load_file(cut.folder / "model.safetensors").values()
    )


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_compiled_training(precision: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # With dropout: a compiled step draws what another does.
    asked = {
        "precision": precision,
        "limit": 150,
        "recipe": {"epochs": 2, "batch": 64},
    }
    plain = train(TINY, "digits", tmp_path / "plain", progress=False, **asked)  # type: ignore[arg-type]
    interrupted(monkeypatch, tmp_path / "run", compile=True, **asked)
    run = resume(tmp_path / "run", progress=False)
    assert run.manifest.compiled
    weights, others = (load_file(r.folder / "model.safetensors") for r in (run, plain))
    assert weights.keys() == others.keys()
    tolerance = REORDERED if precision == "32" else 0.05
    for row, other in zip(rows(run), rows(plain), strict=True):
        assert float(row["train_loss"]) == pytest.approx(float(other["train_loss"]), rel=tolerance)


def test_an_objective_is_compiled_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Not for evaluation, not for a last batch, not for each epoch."""
    graphs = []

    def compile_(objective: torch.nn.Module) -> None:
        def counted(graph: torch.fx.GraphModule, example: object) -> object:
            graphs.append(graph)
            return graph

        objective.compile(dynamic=False, fullgraph=True, backend=counted)

    monkeypatch.setattr("crate_dsl.training.train.compile_", compile_)
    train(TINY, "digits", tmp_path / "run", compile=True, limit=150, recipe={"epochs": 3}, progress=False)
    assert len(graphs) == 1


def test_without_a_compiler(tmp_path: Path) -> None:
    from torch import _dynamo
    from torch._inductor import config

    _dynamo.reset()  # what was compiled before stays usable
    said = r"`--compile` cannot be used here: .*no-such-compiler"
    with config.patch({"cpp.cxx": (None, "no-such-compiler")}), pytest.raises(UserError, match=said):
        train(TINY, "digits", tmp_path / "run", compile=True, progress=False)
    assert not (tmp_path / "run").exists()
