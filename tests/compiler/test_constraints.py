"""Weights that are kept orthonormal: where they start, who leads them back, who refuses them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import crate_dsl
from crate_dsl.compiler.constraints import deviation, orthonormal
from crate_dsl.compiler.network import Network
from crate_dsl.language.diagnostics import UserError
from tests.compiler.specs import elaborated

#: Rounding of float64 in a singular value decomposition of some ten columns; of float32, ten times its spacing.
EXACT, SINGLE = 1e-13, 1e-6

SHARED = """
model m(dim = 12) {
    input z : float[7, dim]
    target t : float[7, dim]
    learn axes : float[8, dim] = normal(0.3)

    y = z -> compress(2, rank = 4, gradient = exact, norm = none, bases = axes, constraint = orthonormal)
          -> flow(2, rank = 4, time = 0.3, solver = exact, bases = axes, constraint = orthonormal)
          -> denoise(2, rank = 4, time = 0.5, bases = axes, constraint = orthonormal)
          -> sparsify(norm = none, prox = soft, constraint = orthonormal)

    output y
    objective mse(y, t)
}
"""


def network() -> Network:
    return crate_dsl.build(elaborated(SHARED), seed=0)


@pytest.mark.parametrize("shape", [(3, 7), (7, 3), (5, 5)])
def test_the_nearest_orthonormal_matrix_is_the_polar_factor(shape: tuple[int, int]) -> None:
    """W = S V with S symmetric and positive: no orthonormal matrix is nearer."""
    torch.manual_seed(0)
    w = torch.randn(shape, dtype=torch.float64)
    v = orthonormal(w)
    assert deviation(v) < EXACT
    s = w @ v.T if shape[0] <= shape[1] else v.T @ w
    assert (s - s.T).abs().max() < 1e-12 and torch.linalg.eigvalsh(s).min() > 0
    for _ in range(20):
        other = orthonormal(v + 0.3 * torch.randn(shape, dtype=torch.float64))
        assert (w - v).norm() < (w - other).norm()


@pytest.mark.parametrize("shape", [(3, 7), (7, 3), (5, 5)])
def test_near_it_iterations_give_the_same(shape: tuple[int, int]) -> None:
    torch.manual_seed(1)
    w = orthonormal(torch.randn(shape, dtype=torch.float64)) + 0.01 * torch.randn(shape, dtype=torch.float64)
    left, _, right = torch.linalg.svd(w, full_matrices=False)
    assert (orthonormal(w) - left @ right).abs().max() < EXACT
    assert deviation(orthonormal(w.float())) < SINGLE


def test_a_learn_that_steps_share_is_held_for_all_of_them(tmp_path: Path) -> None:
    net = network()
    assert list(net.state_dict()) == ["axes", "y.sparsify.dictionary"]
    assert {name: slot.constraint for name, slot in net.graph.slots.items()} == {
        "axes": "orthonormal",
        "y.sparsify.dictionary": "orthonormal",
    }
    assert net.graph.warnings == ()
    assert deviation(net.axes) < SINGLE
    assert crate_dsl.export(net.graph, net, tmp_path / "net.onnx").passed


def test_a_training_loop_of_your_own_leads_weights_back(tmp_path: Path) -> None:
    net = network()
    objective = crate_dsl.Objective(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    torch.manual_seed(0)
    batch = {"z": torch.randn(4, 7, 12), "t": torch.randn(4, 7, 12)}
    before = net.axes.detach().clone()
    for _ in range(3):
        optimizer.zero_grad()
        objective(batch).backward()
        optimizer.step()
    assert deviation(net.axes) > 1e-4
    with pytest.raises(UserError, match=r"`axes` must be orthonormal, and is off by .*\n.*constrain_"):
        crate_dsl.export(net.graph, net, tmp_path / "net.onnx")
    assert not (tmp_path / "net.onnx").exists()
    net.constrain_()
    assert deviation(net.axes) < SINGLE and deviation(net.y.sparsify.dictionary) < SINGLE
    assert (net.axes - before).abs().max() > 1e-3, "it has learnt, all the same"
    assert crate_dsl.export(net.graph, net, tmp_path / "net.onnx").passed
