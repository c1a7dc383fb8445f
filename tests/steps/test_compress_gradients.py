"""The derivation that `compress` comes from: gradients of the rate, steps on it, spectral norms."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from crate_dsl.compiler.steps.compress.operator import Compress, Relative
from crate_dsl.compiler.steps.norm.operator import NoNorm
from crate_dsl.compiler.types import floats
from tests.steps.compress_formulas import (
    EXACT,
    SINGLE,
    TOKENS,
    VARIANTS,
    D,
    N,
    P,
    branch,
    orthonormal_rows,
    rate,
    raw,
)
from tests.steps.harness import step

SIZES = [(6, 2, 3, 9), (11, 3, 5, 7), (8, 1, 2, 3), (5, 2, 4, 1)]


@pytest.mark.parametrize(("width", "subspaces", "rank", "tokens"), SIZES)
@pytest.mark.parametrize("size", [0.01, 1.0, 3.0])
def test_the_exact_step_is_the_gradient_of_the_rate(
    width: int, subspaces: int, rank: int, tokens: int, size: float
) -> None:
    torch.manual_seed(tokens)
    u = torch.randn(subspaces * rank, width, dtype=torch.double)
    item = raw(width, subspaces, rank, tokens, u, gradient="exact", step=0.3, eps=0.6)
    z = (size * torch.randn(2, tokens, width, dtype=torch.double)).requires_grad_()
    (wanted,) = torch.autograd.grad(rate(z, u, rank, 0.6).sum(), z)
    assert ((z - item.module(z)) / 0.3 - wanted).abs().max() < 10 * EXACT
    assert (item.module.explain(z)["gradient"] - wanted).abs().max() < 10 * EXACT


@pytest.mark.parametrize(("width", "subspaces", "rank", "tokens"), SIZES)
@pytest.mark.parametrize("fraction", [0.5, 1.0, 1.9])
@pytest.mark.parametrize("size", [0.01, 1.0, 30.0])
def test_the_exact_step_decreases_the_rate_of_every_input(
    width: int, subspaces: int, rank: int, tokens: int, fraction: float, size: float
) -> None:
    torch.manual_seed(tokens)
    u = torch.randn(subspaces * rank, width, dtype=torch.double)
    item = raw(width, subspaces, rank, tokens, u, gradient="exact", step=Relative(fraction=fraction))
    z = size * torch.randn(20, tokens, width, dtype=torch.double)
    assert (rate(item.module(z), u, rank, 0.5) < rate(z, u, rank, 0.5)).all()


def test_a_step_of_twice_the_bound_increases_the_rate_of_small_tokens() -> None:
    """What W0811 warns of."""
    torch.manual_seed(0)
    u = orthonormal_rows(6, 6)
    item = raw(6, 2, 3, 9, u, gradient="exact", step=Relative(fraction=2.1))
    z = 0.01 * torch.randn(20, 9, 6, dtype=torch.double)
    assert (rate(item.module(z), u, 3, 0.5) > rate(z, u, 3, 0.5)).all()


def test_a_step_above_the_bound_takes_two_inputs_to_one_result() -> None:
    """What W0810 warns of: in one dimension s -> s (1 - κα / (1 + α s²)) is zero at s = 0 and at s = √((κα - 1)/α)."""
    u = torch.ones(1, 1, dtype=torch.double)
    item = raw(1, 1, 1, 1, u, gradient="exact", step=Relative(fraction=1.5))
    same = ((1.5 - 1) / item.operator.alpha(1)) ** 0.5
    assert item.module(torch.full((1, 1, 1), same, dtype=torch.double)).abs().max() < EXACT


def test_neumann_is_the_exact_gradient_to_first_order() -> None:
    """The series leaves out (α s²)² and more: its relative error falls with the fourth power of the size."""
    torch.manual_seed(3)
    u = orthonormal_rows(10, D)
    exact, series = (raw(D, 2, P, N, u, gradient=gradient, step=0.3) for gradient in ("exact", "neumann"))
    unit = torch.nn.functional.normalize(torch.randn(2, N, D, dtype=torch.double), dim=-1)
    errors = []
    for size in (0.04, 0.02, 0.01):
        z = size * unit
        wanted = exact.module.explain(z)["gradient"].detach()
        found = series.module.explain(z)["gradient"].detach()
        errors.append(float((found - wanted).norm() / wanted.norm()))
    for before, after in pairwise(errors):
        assert 15 < before / after < 17
    assert errors[0] < 1e-4


def test_neumann_fails_outside_of_its_radius() -> None:
    """Unit tokens at the sizes that the warning's numbers were first found with: the step increases the rate."""
    torch.manual_seed(0)
    tokens, width, rank = 24, 32, 8
    u = orthonormal_rows(width, width)
    z = torch.nn.functional.normalize(torch.randn(20, tokens, width, dtype=torch.double), dim=-1)
    exact, series = (
        raw(width, 4, rank, tokens, u, gradient=gradient, step=Relative(fraction=0.5))
        for gradient in ("exact", "neumann")
    )
    alpha = exact.operator.alpha(tokens)
    assert all(alpha * torch.linalg.matrix_norm(z @ basis.T, 2).min() ** 2 > 1 for basis in u.split(rank))
    before = rate(z, u, rank, 0.5)
    assert (rate(exact.module(z), u, rank, 0.5) < before).all()
    wanted = exact.module.explain(z)["gradient"]
    assert (series.module.explain(z)["gradient"] - wanted).norm() > wanted.norm()
    # The published sizes of layer-normalised tokens are √d times these.
    normalised_tokens = width**0.5 * z
    assert (
        rate(series.module(normalised_tokens), u, rank, 0.5) > rate(normalised_tokens, u, rank, 0.5)
    ).all()


def test_gradients_are_those_of_finite_differences() -> None:
    item = step(Compress(subspaces=2, rank=3, gradient="exact"), floats(4, 5))
    module = item.module.double()
    z = torch.randn(2, 4, 5, dtype=torch.double, requires_grad=True)
    # The step follows ‖U‖ and is not learned through it: only the tokens are checked here.
    assert torch.autograd.gradcheck(module, (z,))
    fixed = step(Compress(subspaces=2, rank=3, gradient="exact", step=0.1), floats(4, 5)).module.double()
    weights = {name: value.detach().clone().requires_grad_() for name, value in fixed.named_parameters()}

    def run(z: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(fixed, dict(zip(weights, values, strict=True)), (z,))

    assert torch.autograd.gradcheck(run, (z, *weights.values()))


def test_the_relative_step_follows_the_weights_and_is_not_learned_through() -> None:
    item = step(VARIANTS["exact_raw"], TOKENS)
    z = torch.randn(2, N, D)
    with torch.no_grad():
        before = branch(item, z)
        item.module.subspaces.mul_(3)
        assert (item.module(z) - z - branch(item, z)).abs().max() < SINGLE
        assert (branch(item, z) - before).abs().max() > SINGLE
    assert not item.module._rate(z, {}).requires_grad


@pytest.mark.parametrize("shape", [(12, 5), (5, 12), (8, 8)])
@pytest.mark.parametrize("kind", ["random", "orthonormal", "one direction", "nearly equal"])
def test_the_spectral_norm_is_exact_in_both_faces(shape: tuple[int, int], kind: str) -> None:
    """In ONNX it is found by squaring: also where the largest singular values agree, or all but."""
    torch.manual_seed(1)
    rows, width = shape
    left, values, right = torch.linalg.svd(torch.randn(rows, width), full_matrices=False)
    if kind == "orthonormal":
        values = torch.ones_like(values)
    if kind == "one direction":
        values = torch.zeros_like(values).index_fill(0, torch.tensor([0]), 7.0)
    if kind == "nearly equal":
        values = 1 - 1e-5 * torch.arange(len(values))
    operator = Compress(subspaces=rows, rank=1, gradient="exact", norm=NoNorm(), step=Relative(fraction=1.0))
    item = step(operator, floats(N, width))
    with torch.no_grad():
        item.module.subspaces.copy_(left @ torch.diag(values) @ right)
    # Near zero the step is Z - UᵀU Z / ‖U‖².
    z = 1e-4 * torch.randn(2, N, width)
    u = item.module.subspaces.detach().double()
    wanted = z.double() - z.double() @ (u.T @ u) / values[0].double() ** 2
    (exported,) = item.onnx(z)
    for found in (exported, item.module(z).detach().numpy()):
        assert np.abs(found - wanted.numpy()).max() < 2e-6 * float(z.abs().max())
