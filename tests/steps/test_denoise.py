"""`denoise` against the density that it comes from, and against ONNX."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import Tensor

from crate_dsl.compiler.operators import (
    Learned,
    LearnedInverse,
    Mistake,
    NoInverse,
    Port,
    Weight,
)
from crate_dsl.compiler.steps.denoise.operator import Denoise
from crate_dsl.compiler.types import floats
from tests.steps.harness import Step, step

#: Rounding of float64, and of float32, over sums of some dozens of terms.
EXACT, SINGLE = 1e-11, 2e-5

N, D, K, P = 6, 11, 3, 3
TOKENS = floats(N, D)
VARIANTS = {
    "number": Denoise(subspaces=K, rank=P, time=0.6),
    "one": Denoise(subspaces=1, rank=P, time=2.0),
    "learned": Denoise(subspaces=K, rank=P, time=Learned(0.5)),
    "handed": Denoise(subspaces=K, rank=P, time=Port(floats())),
    "borrowed": Denoise(subspaces=K, rank=P, time=0.4, bases=Weight("axes", floats(K * P, D))),
}


def orthonormal_step(operator: Denoise) -> Step:
    """The step in float64, each of its subspaces with an orthonormal basis; subspaces are not orthogonal to each
    other.
    """
    item = step(operator, TOKENS)
    item.module.double()
    torch.manual_seed(0)
    with torch.no_grad():
        if "subspaces" in dict(item.module.named_parameters()):
            item.module.subspaces.copy_(bases(operator.subspaces))
    return item


def bases(subspaces: int) -> Tensor:
    return torch.cat([torch.linalg.qr(torch.randn(D, P, dtype=torch.double)).Q.T for _ in range(subspaces)])


def log_density(x: Tensor, u: Tensor, time: Tensor) -> Tensor:
    """Of noisy tokens: log (1/K) Σ_k N(x; 0, U_k U_kᵀ + t² I)."""
    parts = []
    for basis in u.split(P):
        covariance = basis.T @ basis + time**2 * torch.eye(D, dtype=torch.double)
        normal = torch.distributions.MultivariateNormal(torch.zeros(D, dtype=torch.double), covariance)
        parts.append(normal.log_prob(x))
    return torch.stack(parts).logsumexp(0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_is_the_posterior_mean(variant: str) -> None:
    """Tweedie: E[x₀ | x] = x + t² ∇ log q(x), in both faces."""
    item = orthonormal_step(VARIANTS[variant])
    given: dict[str, Tensor] = {}
    if variant == "borrowed":
        given["subspaces"] = bases(K)
    if variant == "handed":
        given["time"] = torch.tensor([0.3, 1.0, 2.5], dtype=torch.double)
    module = deepcopy(item.module).double()
    u = given.get("subspaces", module.weight_of("subspaces", {})).detach()
    own = item.operator.time if isinstance(item.operator.time, float) else 0.0
    times = given.get(
        "time", getattr(module, "time", torch.tensor(own, dtype=torch.double)).detach().double()
    ).expand(3)
    z = torch.randn(3, N, D, dtype=torch.double, requires_grad=True)
    total = torch.stack([log_density(z[b], u, times[b]).sum() for b in range(3)]).sum()
    (score,) = torch.autograd.grad(total, z)
    wanted = (z + times[:, None, None] ** 2 * score).detach()
    assert (module(z, **given) - wanted).abs().max() < EXACT
    single = {name: value.float() for name, value in given.items()}
    item.module.float()
    (exported,) = item.onnx(z.detach().float(), **single)
    assert np.abs(exported - wanted.numpy()).max() < SINGLE
    taps = module.explain(z, **given)
    assert set(taps) == {*item.operator.taps, "out"}
    assert taps["projection"].shape == (3, item.operator.subspaces, N, P)
    assert (taps["posterior"].sum(-1) - 1).abs().max() < EXACT


def test_with_little_noise_tokens_of_a_subspace_come_back() -> None:
    item = orthonormal_step(Denoise(subspaces=K, rank=P, time=0.01))
    module = item.module
    clean = torch.stack([torch.randn(N, P, dtype=torch.double) @ basis for basis in bases_of(item)])
    noisy = clean + 0.01 * torch.randn_like(clean)
    with torch.no_grad():
        denoised = module(noisy)
    # What is left of the noise is its part in the subspace: P of D directions.
    assert (denoised - clean).square().mean() < 1.5 * P / D * 0.01**2


def bases_of(item: Step) -> tuple[Tensor, ...]:
    return item.module.subspaces.detach().split(P)


def test_rotations_of_bases_and_of_space() -> None:
    item = orthonormal_step(VARIANTS["number"])
    module, z = item.module, torch.randn(2, N, D, dtype=torch.double)
    before, rotation = module(z).detach(), torch.linalg.qr(torch.randn(D, D, dtype=torch.double)).Q
    with torch.no_grad():
        for rows in module.subspaces.split(P):
            rows.copy_(torch.linalg.qr(torch.randn(P, P, dtype=torch.double)).Q @ rows)
        assert (module(z) - before).abs().max() < EXACT
        module.subspaces.copy_(module.subspaces @ rotation)
        assert (module(z @ rotation) - before @ rotation).abs().max() < EXACT


def test_bases_are_held_orthonormal_or_that_is_said() -> None:
    owned = VARIANTS["number"].infer(TOKENS)
    assert owned.slots["subspaces"].constraint == "orthonormal" and owned.guards == ()
    assert owned.flops == N * (2 * 2 * D * K * P + 3 * K * P + 5 * K)
    for operator in (VARIANTS["borrowed"], Denoise(subspaces=K, rank=P, time=0.5, constraint="none")):
        assert [guard.code for guard in operator.infer(TOKENS).guards] == ["W0814"]
    assert isinstance(VARIANTS["number"].inverse(LearnedInverse(), TOKENS), NoInverse)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ({"subspaces": 4}, "E0340"),
        ({"bases": Weight("axes", floats(2, D))}, "E0343"),
        ({"time": Port(floats(2))}, "E0410"),
    ],
)
def test_mistakes(arguments: dict[str, object], code: str) -> None:
    with pytest.raises(Mistake) as caught:
        Denoise(**({"subspaces": K, "rank": P, "time": 0.5} | arguments)).infer(TOKENS)
    assert caught.value.code == code
