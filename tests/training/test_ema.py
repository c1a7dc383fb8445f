"""Training with a slow copy: it follows after each step, is saved with the run, and a run that was cut off goes on."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import crate_dsl
from crate_dsl.compiler.network import Network
from crate_dsl.language.diagnostics import UserError
from crate_dsl.training.batches import Batches, Scores
from crate_dsl.training.plain import load_plain
from crate_dsl.training.run import LAST, Run
from crate_dsl.training.train import resume, train

SLOW = str(Path(__file__).parent / "slow.crate")
#: Rounding of float32 over some ten steps, each a product and a sum of numbers of size 1.
SINGLE = 1e-5


def small(folder: Path) -> Run:
    return train(SLOW, "digits", folder, limit=300, progress=False)


def weights(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.folder / "model.safetensors")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that was never cut off."""
    return small(tmp_path_factory.mktemp("slow") / "run")


def test_a_run_that_was_cut_off_has_the_teacher_that_it_would_have_had(
    trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Batches.__iter__

    def interrupted(self: Batches) -> Iterator[dict[str, torch.Tensor]]:
        for number, batch in enumerate(whole(self)):
            if (self.epoch, number) == (1, 2):
                raise KeyboardInterrupt
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(Batches, "__iter__", interrupted)
        with pytest.raises(UserError, match="epoch 1 is kept"):
            small(tmp_path / "run")
    ours, theirs = weights(resume(tmp_path / "run", progress=False)), weights(trained)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_teacher_follows_after_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """t_k = m t_(k-1) + (1 - m) s_k, in float64, from the students that there were."""
    students: list[dict[str, torch.Tensor]] = []
    teachers: list[dict[str, torch.Tensor]] = []
    average = Network.average_

    def watched(net: Network, momentum: float | None = None) -> None:
        average(net, momentum)
        state = {name: value.double().clone() for name, value in net.state_dict().items()}
        averages = net.graph.averages
        students.append({path: state[averages[path].source] for path in averages})
        teachers.append({path: state[path] for path in averages})

    monkeypatch.setattr(Network, "average_", watched)
    small(tmp_path / "run")
    assert len(students) > 8
    expected = students[0]  # as built
    for student, teacher in zip(students[1:], teachers[1:], strict=True):
        expected = {path: 0.9 * expected[path] + 0.1 * student[path] for path in expected}
        assert all((teacher[path] - expected[path]).abs().max() < SINGLE for path in expected)
    moved = {path: (expected[path] - students[0][path]).abs().max() for path in expected}
    assert min(moved.values()) > 100 * SINGLE, moved


def test_the_last_teacher_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss that is held against a moving teacher is no measure of an epoch: here it is made to rise."""
    losses = iter([1.0, 2.0, 3.0])
    monkeypatch.setattr("crate_dsl.training.train.measure", lambda *_: Scores(9, next(losses), None, None))
    run = small(tmp_path / "run")
    test = run.test()
    assert test is not None and test["epoch"] == 2
    last = load_plain(run.folder / LAST)["state_dict"]
    assert all(torch.equal(last[f"objective.net.{path}"], weight) for path, weight in weights(run).items())
    with pytest.raises(UserError, match="`patience` waits for a smaller loss"):
        train(SLOW, "digits", tmp_path / "other", recipe={"patience": 1}, progress=False)


def test_a_trained_teacher_is_exported_alone(trained: Run, tmp_path: Path) -> None:
    net = trained.net()
    assert crate_dsl.export(net.graph, net, tmp_path / "net.onnx").passed
    assert not torch.equal(net.teacher.norm.weight, net.student.norm.weight)


def test_an_objective_with_a_teacher_compiles_whole() -> None:
    net = crate_dsl.build(crate_dsl.load(SLOW))
    objective = crate_dsl.Objective(net)
    batch = {"image": torch.rand(5, 1, 8, 8)}
    compiled = torch.compile(copy.deepcopy(objective), backend="eager", fullgraph=True)
    torch.manual_seed(1)
    wanted = objective(batch)
    torch.manual_seed(1)
    found = compiled(batch)
    found.backward()
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)
