"""Losses that look inside a stage: where they look, what they read, and what they come to."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import crate_dsl
from crate_dsl import rates
from crate_dsl.compiler.network import Network
from tests.compiler.specs import codes, elaborated

#: Rounding of float32 in a layer's sums, against the same tokens in float64.
SINGLE = 1e-5
K, P, D = 3, 4, 10

SPEC = """
model m(dim = 10, depth = 3) {
    input image : float[1, 8, 12]
    input other : float[1, 8, 12]
    target label : index(5)

    stage encoder = repeat(depth) {
        compress(3, rank = 4)
        sparsify
    }
    stage front = patchify(4) -> linear(dim)
    features = image -> front -> encoder -> pool
    logits = features -> linear(5)
    others = other -> front -> encoder -> pool

    output logits, others
    objective OBJECTIVE
}
"""


def spec(objective: str) -> str:
    return SPEC.replace("OBJECTIVE", objective)


def batch(size: int = 4) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = {name: torch.randn(size, 1, 8, 12, generator=generator) for name in ("image", "other")}
    return {**images, "label": torch.arange(size) % 5}


def layers(net: Network, image: Tensor) -> list[Tensor]:
    """What leaves each layer, by the modules themselves."""
    found = [net.front(image)]
    for layer in net.encoder.layers:
        found.append(layer(found[-1]))
    return found[1:]


def sparse_rate(net: Network, tokens: list[Tensor], penalty: float, eps: float) -> Tensor:
    """λ mean|Z̄| + R^c - R of each layer's tokens against its own subspaces, from the formulas, in float64."""
    terms = []
    for layer, z in zip(net.encoder.layers, tokens, strict=True):
        z = z.double() / z.double().square().mean(-1, keepdim=True).sqrt()
        n, u = z.shape[1], layer.compress.subspaces.double().unflatten(0, (K, P))

        def half_log_det(alpha: float, w: Tensor, n: int = n) -> Tensor:
            return 0.5 * torch.linalg.slogdet(torch.eye(n, dtype=w.dtype) + alpha * w @ w.mT)[1]

        whole = half_log_det(D / (n * eps**2), z)
        parts = sum(half_log_det(P / (n * eps**2), z @ u_k.T) for u_k in u)
        terms.append(penalty * z.abs().mean((1, 2)) + parts - whole)
    return torch.stack(terms).mean()


def test_a_stage_is_measured_layer_by_layer() -> None:
    net = crate_dsl.build(
        elaborated(spec("sparse_rate(encoder, penalty = 2, eps = 0.7) + 0 * mse(logits, logits)"))
    )
    given = batch()
    wanted = sparse_rate(net, layers(net, given["image"]), 2, 0.7)
    assert abs(crate_dsl.Objective(net)(given) - wanted) < SINGLE * abs(wanted)


def test_every_use_that_nothing_chooses_from_is_measured() -> None:
    net = crate_dsl.build(elaborated(spec("sparse_rate(encoder)")))
    given = batch()
    wanted = sum(sparse_rate(net, layers(net, given[name]), 0.1, 0.5) for name in ("image", "other")) / 2
    assert abs(crate_dsl.Objective(net)(given) - wanted) < SINGLE * abs(wanted)


def test_the_objective_is_written_step_by_step_and_trains_what_it_reads() -> None:
    net = crate_dsl.build(elaborated(spec("cross_entropy(logits, label) + 1e-3 * sparse_rate(encoder)")))
    objective = crate_dsl.Objective(net)
    assert "self.net.encoder[2].sparsify(" in objective.source
    assert "bases=self.net.encoder[2].compress.subspaces" in objective.source
    assert '"other"' not in objective.source, "nothing of the objective reads the other image"
    loss = objective(batch())
    loss.backward()
    assert all(p.grad is not None for p in net.encoder.parameters())
    compiled = torch.compile(objective, fullgraph=True, backend="eager")
    assert abs(compiled(batch()) - loss) < SINGLE * abs(loss)


def test_a_frozen_use_is_not_trained() -> None:
    text = spec("sparse_rate(encoder)").replace(
        "image -> front -> encoder", "image -> front -> frozen(encoder)"
    )
    text = text.replace(
        "others = other -> front -> encoder -> pool", "others = other -> front -> encoder -> pool"
    )
    net = crate_dsl.build(elaborated(text))
    source = crate_dsl.Objective(net).source
    assert source.count("frozen(self.net.encoder[") == 6
    assert source.count("sparse_rate") == 6


def test_any_tokens_are_measured_against_a_learn() -> None:
    text = """
model m {
    input z : float[6, 10]
    learn basis : float[12, 10] = normal(0.5)
    y = z -> linear(10)
    output y
    objective sparse_rate(y, bases = basis, subspaces = 3, penalty = 0)
}
"""
    net = crate_dsl.build(elaborated(text))
    z = torch.randn(2, 6, 10)
    tokens = rates.unit_tokens(net(z)) * 10**0.5
    wanted = -rates.sparse_rate_reduction(tokens, net.basis.unflatten(0, (3, 4)), 0.0).mean()
    assert abs(crate_dsl.Objective(net)({"z": z}) - wanted) < SINGLE


@pytest.mark.parametrize(("objective", "sign"), [("rate_reduction(features, label)", -1)])
def test_rate_reduction_is_that_of_the_batch(objective: str, sign: int) -> None:
    net = crate_dsl.build(elaborated(spec(objective)))
    given = batch(12)
    features = net.features.pool(layers(net, given["image"])[-1])
    wanted = sign * rates.rate_reduction(rates.unit_tokens(features), given["label"])
    assert abs(crate_dsl.Objective(net)(given) - wanted) < SINGLE * abs(wanted)


@pytest.mark.parametrize(
    ("objective", "code"),
    [
        ("sparse_rate(front)", "E0606"),
        ("sparse_rate(encoder, subspaces = 3)", "E0305"),
        ("sparse_rate(features)", "E0401"),
        ("sparse_rate(encodr)", "E0201"),
        ("sparse_rate(3)", "E0307"),
        ("rate_reduction(logits, logits)", None),
        ("rate_reduction(image, label)", "E0608"),
        ("rate_reduction(label, features)", "E0608"),
    ],
)
def test_mistakes(objective: str, code: str | None) -> None:
    assert [found for found in codes(spec(objective)) if not found.startswith("W")] == (
        [code] if code else []
    )


def test_tokens_need_bases_that_fit() -> None:
    text = """
model m {
    input z : float[6, 10]
    learn basis : float[12, 10]
    y = z -> linear(10)
    output y
    objective sparse_rate(y, ARGUMENTS)
}
"""
    for arguments, code in (("penalty = 1", "E0302"), ("bases = basis, subspaces = 5", "E0607")):
        assert code in codes(text.replace("ARGUMENTS", arguments))


def test_a_stage_that_is_not_used_is_not_measured() -> None:
    text = spec("mse(logits, logits) + sparse_rate(spare)").replace(
        "features =", "stage spare = repeat(2) { compress(3, rank = 4) }\n    features ="
    )
    assert "E0506" in codes(text)
