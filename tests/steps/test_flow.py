"""`flow` against its closed form (Lambert W of every singular value), against `compress`, and against ONNX."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.special import wrightomega
from torch import Tensor

from crate_dsl.compiler.operators import (
    Certificate,
    CertifiedInverse,
    FixedPoint,
    Inverse,
    LearnedInverse,
    Mistake,
    NoInverse,
    TiedInverse,
    Weight,
)
from crate_dsl.compiler.steps.compress.operator import Compress
from crate_dsl.compiler.steps.flow.operator import Flow
from crate_dsl.compiler.steps.norm.operator import NoNorm
from crate_dsl.compiler.types import floats
from tests.steps.harness import Step, step

#: Rounding of float64 over some dozens of steps.
EXACT = 1e-11
#: Rounding of float32 over some dozens of steps.
SINGLE = 2e-5

N, D, K, P = 7, 12, 2, 5
TOKENS = floats(N, D)
ORDERS = {"euler": 1, "heun": 2, "rk4": 4}


def orthonormal_flow(double: bool = True, **arguments: object) -> Step:
    """A flow against orthonormal bases that do not span, in float64."""
    item = step(Flow(subspaces=K, rank=P, constraint="orthonormal", **arguments), TOKENS)
    torch.manual_seed(0)
    if double:
        item.module.double()
    with torch.no_grad():
        item.module.subspaces.copy_(torch.linalg.qr(torch.randn(D, K * P, dtype=torch.double)).Q.T)
    return item


def solution(z: Tensor, u: Tensor, time: float, rank: int = P) -> Tensor:
    """Z(t) where the bases are orthonormal: each singular value s of U_kᵀ Z moves by itself, and y = α s² obeys
    y e^y = y₀ e^(y₀ - 2αt), so y = ω(y₀ + log y₀ - 2αt) with Wright's ω(c) = W(e^c). The complement rests.
    """
    alpha, out = rank / (N * 0.5**2), z.clone()
    for basis in u.split(rank):
        left, s, right = torch.linalg.svd(z @ basis.T, full_matrices=False)
        y = alpha * s**2
        moved = torch.from_numpy(wrightomega((y + y.log() - 2 * alpha * time).numpy()))
        out = out + (left * ((moved / alpha).sqrt() - s)[..., None, :]) @ right @ basis
    return out


def off(item: Step, z: Tensor) -> float:
    wanted = solution(z, item.module.subspaces.detach(), item.operator.time)
    return float((item.module(z).detach() - wanted).norm() / z.norm())


@pytest.mark.parametrize("solver", ORDERS)
@pytest.mark.parametrize("size", [0.05, 1.0, 4.0])
@pytest.mark.parametrize("time", [0.7, -0.3])
def test_a_solver_has_its_order(solver: str, size: float, time: float) -> None:
    z = size * torch.randn(3, N, D, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    errors = [off(orthonormal_flow(time=time, steps=steps, solver=solver), z) for steps in (4, 8, 16, 32)]
    # Below 1e-12 rounding is all that is left.
    for before, after in pairwise(found for found in errors[1:] if found > 1e-12):
        assert abs(np.log2(before / after) - ORDERS[solver]) < 0.25


def test_the_default_is_near_the_solution() -> None:
    z = torch.randn(3, N, D, dtype=torch.double)
    assert off(orthonormal_flow(time=0.5), z) < 1e-4


def test_what_no_subspace_sees_rests() -> None:
    item = orthonormal_flow(time=0.5)
    u = item.module.subspaces.detach()
    z = torch.randn(3, N, D, dtype=torch.double)
    z = z - z @ u.T @ u
    assert (item.module(z) - z).abs().max() < EXACT


def test_a_step_of_euler_is_the_exact_step_of_compress() -> None:
    flow = step(Flow(subspaces=K, rank=P, time=0.2, steps=1, solver="euler"), TOKENS)
    arguments = {"subspaces": K, "rank": P, "gradient": "exact", "norm": NoNorm(), "step": 0.2}
    compress = step(Compress(**arguments), TOKENS)
    compress.module.load_state_dict(flow.module.state_dict())
    z = torch.randn(3, N, D)
    assert (flow.module(z) - compress.module(z)).abs().max() < SINGLE


@pytest.mark.parametrize("solver", ORDERS)
@pytest.mark.parametrize("steps", [1, 5])
def test_onnx_is_the_flow(solver: str, steps: int) -> None:
    torch.manual_seed(2)
    item = step(Flow(subspaces=3, rank=P, time=0.3, steps=steps, solver=solver, eps=0.7), TOKENS)
    for size in (0.01, 1.0, 10.0):
        z = size * torch.randn(3, N, D)
        wanted = deepcopy(item.module).double()(z.double()).detach()
        (exported,) = item.onnx(z)
        scale = max(1.0, size)
        assert np.abs(exported - wanted.numpy()).max() < SINGLE * scale
        assert (item.module(z) - wanted).abs().max() < SINGLE * scale


def test_back_in_time_it_is_undone_to_the_order_of_its_solver() -> None:
    z = torch.randn(3, N, D, dtype=torch.double)
    for solver, order in ORDERS.items():
        errors = []
        for steps in (16, 32, 64):
            there = orthonormal_flow(time=0.7, steps=steps, solver=solver)
            inverse = there.operator.inverse(TiedInverse(), TOKENS)
            assert isinstance(inverse, Inverse) and inverse.shared == {"subspaces": "subspaces"}
            back = step(inverse.operator, TOKENS).module.double()
            with torch.no_grad():
                again = back(there.module(z), subspaces=there.module.subspaces)
            errors.append(float((again - z).norm()))
        for before, after in pairwise(errors):
            assert np.log2(before / after) > order - 0.25


def test_no_more_is_promised() -> None:
    operator = Flow(subspaces=K, rank=P, time=0.7)
    learned = operator.inverse(LearnedInverse(), TOKENS)
    assert isinstance(learned, Inverse) and learned.operator.time == -0.7 and learned.shared == {}
    for mode in (FixedPoint(iterations=3), CertifiedInverse()):
        assert isinstance(operator.inverse(mode, TOKENS), NoInverse)


def test_gradients_are_those_of_finite_differences() -> None:
    module = step(Flow(subspaces=2, rank=2, time=0.4, steps=2), floats(3, 5)).module.double()
    z = torch.randn(2, 3, 5, dtype=torch.double, requires_grad=True)
    u = module.subspaces.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda z, u: module(z, subspaces=u), (z, u))


def test_steps_that_are_too_long_are_warned_of() -> None:
    """What W0815 warns of: small tokens grow."""
    alpha = P / (N * 0.5**2)
    for solver, limit in (("euler", 2.0), ("heun", 2.0), ("rk4", 2.785)):
        z = 1e-3 * torch.randn(3, N, K * P, dtype=torch.double)
        for factor, warned in ((0.95, False), (1.05, True)):
            operator = Flow(
                subspaces=K,
                rank=P,
                time=factor * limit / alpha,
                steps=1,
                solver=solver,
                constraint="orthonormal",
            )
            assert [guard.code for guard in operator.infer(TOKENS).guards] == ["W0815"] * warned
            item = step(operator, floats(N, K * P))
            item.module.double()
            with torch.no_grad():
                item.module.subspaces.copy_(torch.eye(K * P))
            assert (item.module(z).norm() > z.norm()) == warned


def test_bases_are_owned_or_borrowed_and_work_is_counted() -> None:
    typing = Flow(subspaces=K, rank=P, time=1.0, steps=3, constraint="orthonormal").infer(TOKENS)
    assert {name: (slot.shape, slot.constraint) for name, slot in typing.slots.items()} == {
        "subspaces": ((K * P, D), "orthonormal")
    }
    once = Flow(subspaces=K, rank=P, time=1.0, steps=1, solver="euler").infer(TOKENS).flops
    assert typing.flops == 3 * 4 * once
    axes = Weight("axes", floats(K * P, D))
    assert Flow(subspaces=K, rank=P, time=1.0, bases=axes).infer(TOKENS).weights == {"subspaces": axes}
    held = Flow(subspaces=K, rank=P, time=1.0, bases=axes, constraint="orthonormal").infer(TOKENS)
    assert held.weights == {"subspaces": replace(axes, constraint="orthonormal")}
    with pytest.raises(Mistake) as caught:
        Flow(subspaces=K, rank=P, time=1.0, bases=Weight("axes", floats(3, D))).infer(TOKENS)
    assert caught.value.code == "E0343"


# ---------------------------------------------------------------------- the closed form


@pytest.mark.parametrize("rank", [1, 2, 5, 8])
@pytest.mark.parametrize("time", [0.5, -0.3, 5.0])
@pytest.mark.parametrize("size", [0.01, 1.0, 10.0, 1e4])
def test_the_exact_flow_is_the_solution_in_both_faces(rank: int, time: float, size: float) -> None:
    """Errors are relative to what goes in: small tokens fall to nothing."""
    torch.manual_seed(3)
    operator = Flow(subspaces=2, rank=rank, time=time, solver="exact", constraint="orthonormal")
    item = step(operator, floats(N, 16))
    exact = deepcopy(item.module).double()
    u = torch.linalg.qr(torch.randn(16, 2 * rank, dtype=torch.double)).Q.T
    with torch.no_grad():
        item.module.subspaces.copy_(u)
        exact.subspaces.copy_(u)
    z = size * torch.randn(3, N, 16, dtype=torch.double)
    wanted = solution(z, u, time, rank)
    scale = max(size, float(wanted.abs().max()))
    assert (exact(z) - wanted).abs().max() < EXACT * scale
    assert (item.module(z.float()) - wanted).abs().max() < SINGLE * scale
    (exported,) = item.onnx(z.float())
    assert np.abs(exported - wanted.numpy()).max() < SINGLE * scale


def test_the_exact_flow_takes_equal_and_missing_singular_values() -> None:
    """Where eigenvectors are not determined, the step and its gradient still are."""
    torch.manual_seed(4)
    exact = orthonormal_flow(time=0.4, solver="exact")
    fine = orthonormal_flow(time=0.4, steps=200)
    u = exact.module.subspaces.detach()
    tokens = {
        "zero": torch.zeros(1, N, D),
        "equal": torch.linalg.qr(torch.randn(N, P, dtype=torch.double)).Q @ u[:P],
        "one direction": torch.ones(N, 1) @ torch.randn(1, D),
    }
    for z in tokens.values():
        z = z.double().reshape(1, N, D).requires_grad_()
        cotangent = torch.randn(1, N, D, dtype=torch.double)
        outs = [item.module(z) for item in (exact, fine)]
        gradients = [torch.autograd.grad(out, z, cotangent)[0] for out in outs]
        assert (outs[0] - outs[1]).abs().max() < 1e-9
        assert (gradients[0] - gradients[1]).abs().max() < 1e-7


def test_the_gradients_of_the_exact_flow_are_those_of_finite_differences() -> None:
    torch.manual_seed(5)
    operator = Flow(subspaces=2, rank=2, time=0.4, solver="exact", constraint="orthonormal")
    module = step(operator, floats(3, 5)).module.double()
    z = torch.randn(2, 3, 5, dtype=torch.double, requires_grad=True)
    u = torch.linalg.qr(torch.randn(5, 4, dtype=torch.double)).Q.T.requires_grad_()
    assert torch.autograd.gradcheck(lambda z, u: module(z, subspaces=u), (z, u))


@pytest.mark.parametrize("time", [0.5, -0.5])
@pytest.mark.parametrize("size", [0.1, 3.0, 100.0])
def test_the_exact_flow_is_undone_for_certain(time: float, size: float) -> None:
    torch.manual_seed(6)
    there = orthonormal_flow(time=time, solver="exact")
    inverse = there.operator.inverse(CertifiedInverse(), TOKENS)
    certificate = there.operator.certificate(TOKENS)
    assert isinstance(inverse, Inverse) and isinstance(certificate, Certificate)
    back = step(inverse.operator, TOKENS).module.double()
    z = size * torch.randn(32, N, D, dtype=torch.double)
    shared = {"subspaces": there.module.subspaces}
    with torch.no_grad():
        assert (back(there.module(z), **shared) - z).norm() < EXACT * z.norm()
        moved = z + 1e-3 * size * torch.randn_like(z)
        grown = (back(moved, **shared) - back(z, **shared)).flatten(1).norm(dim=1)
        assert (grown <= certificate.stretch * (moved - z).flatten(1).norm(dim=1) * (1 + 1e-9)).all()


def test_the_closed_form_needs_orthonormal_bases_and_takes_no_steps() -> None:
    for arguments, code in (
        ({}, "E0346"),
        ({"bases": Weight("axes", floats(K * P, D))}, "E0346"),
        ({"constraint": "orthonormal", "steps": 3}, "E0305"),
    ):
        with pytest.raises(Mistake) as caught:
            Flow(subspaces=K, rank=P, time=1.0, solver="exact", **arguments).infer(TOKENS)
        assert caught.value.code == code
