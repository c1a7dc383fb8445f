"""What each pairing mode promises, held at the level of operators: orders, rates, certificates, and what has none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from crate_dsl.compiler.constraints import orthonormal
from crate_dsl.compiler.operators import (
    Certificate,
    CertifiedInverse,
    FixedPoint,
    Inverse,
    Mode,
    NoInverse,
    Operator,
    TiedInverse,
)
from crate_dsl.compiler.steps.compress.operator import Compress, Relative
from crate_dsl.compiler.steps.norm.operator import LayerNorm, NoNorm
from crate_dsl.compiler.steps.sparsify.operator import Leaky, Sparsify
from crate_dsl.compiler.types import floats
from tests.steps.harness import Step, step

N, D, K, P = 9, 12, 3, 4
TOKENS = floats(N, D)


@dataclass
class Paired:
    """A step and what undoes it; the inverse is handed the weights that it shares."""

    there: Step
    back: Step
    shared: dict[str, Tensor]

    def forth(self, z: Tensor) -> Tensor:
        return self.there.module(z)

    def undo(self, y: Tensor) -> Tensor:
        return self.back.module(y, **{name: value.to(y.dtype) for name, value in self.shared.items()})


def paired(operator: Operator, mode: Mode, seed: int = 0, double: bool = True) -> Paired:
    """The step with perturbed weights, led back to their constraints, and its inverse."""
    there = step(operator, TOKENS, seed=seed)
    for name, slot in there.typing.slots.items():
        if slot.constraint == "orthonormal":
            weight = getattr(there.module, name)
            with torch.no_grad():
                weight.copy_(orthonormal(weight.double()))
    found = operator.inverse(mode, TOKENS)
    assert isinstance(found, Inverse)
    back = step(found.operator, TOKENS, seed=seed + 100)
    if double:
        there.module.double()
        back.module.double()
        for name, slot in there.typing.slots.items():
            if slot.constraint == "orthonormal":
                weight = getattr(there.module, name)
                with torch.no_grad():
                    weight.copy_(orthonormal(weight))
    weights = dict(there.module.named_parameters())
    return Paired(there, back, {name: weights[own].detach() for name, own in found.shared.items()})


def error(pairs: list[Paired], z: Tensor) -> float:
    """How far a chain of steps and their inverses, in the opposite order, is from the identity, relative to z."""
    with torch.no_grad():
        y = z
        for pair in pairs:
            y = pair.forth(y)
        for pair in reversed(pairs):
            y = pair.undo(y)
        return float((y - z).norm() / z.norm())


# ---------------------------------------------------------------------- tied: first order

COMPRESS: dict[str, Callable[[float], Operator]] = {
    "attention": lambda h: Compress(subspaces=K, rank=P, step=0.1 * h),
    "attention, raw": lambda h: Compress(subspaces=K, rank=P, step=0.1 * h, norm=NoNorm()),
    "softmax": lambda h: Compress(subspaces=K, rank=P, gradient="softmax", step=0.05 * h),
    "neumann": lambda h: Compress(subspaces=K, rank=P, gradient="neumann", step=0.05 * h, eps=9),
    "exact": lambda h: Compress(subspaces=K, rank=P, gradient="exact", step=0.1 * h),
    "exact, relative": lambda h: Compress(
        subspaces=K, rank=P, gradient="exact", step=Relative(fraction=0.4 * h), norm=NoNorm()
    ),
}
SPARSIFY: dict[str, Callable[[float], Operator]] = {
    "nonnegative": lambda h: Sparsify(step=0.1 * h, penalty=0.1, norm=NoNorm()),
    "leaky": lambda h: Sparsify(step=0.1 * h, penalty=0.1, norm=NoNorm(), prox=Leaky(slope=0.9)),
    "residual": lambda h: Sparsify(
        step=0.1 * h, penalty=0.1, start="zero", expand=2, decode="free", residual=True
    ),
}
#: The steps that are halved, and by how much the error falls when they are: four in the limit.
HALVES = (1 / 2, 1 / 4, 1 / 8, 1 / 16)
FOUR = (3.5, 4.6)


def falls_by_four(errors: list[float]) -> bool:
    return all(FOUR[0] < before / after < FOUR[1] for before, after in pairwise(errors[-3:]))


def active(batch: int = 4) -> Tensor:
    """Tokens that stay active: well above every threshold."""
    torch.manual_seed(0)
    return 2 + torch.rand(batch, N, D, dtype=torch.double)


@pytest.mark.parametrize("variant", COMPRESS)
def test_a_tied_compress_half_is_right_to_first_order(variant: str) -> None:
    z = torch.randn(4, N, D, dtype=torch.double)
    errors = [error([paired(COMPRESS[variant](h), TiedInverse())], z) for h in HALVES]
    assert falls_by_four(errors)


@pytest.mark.parametrize("variant", SPARSIFY)
def test_a_tied_sparsify_half_is_right_to_first_order(variant: str) -> None:
    errors = [error([paired(SPARSIFY[variant](h), TiedInverse())], active()) for h in HALVES]
    assert falls_by_four(errors)


@pytest.mark.parametrize("layers", [1, 3])
def test_tied_layers_are_right_to_first_order(layers: int) -> None:
    def chain(h: float) -> list[Paired]:
        return [
            paired(make(h), TiedInverse(), seed=layer)
            for layer in range(layers)
            for make in (COMPRESS["exact, relative"], SPARSIFY["nonnegative"])
        ]

    small = (1 / 8, 1 / 16, 1 / 32)
    assert falls_by_four([error(chain(h / layers), active()) for h in small])


def test_the_dictionary_itself_is_no_first_order_inverse() -> None:
    """Why a tied `densify` is the gradient step turned round and not D: that gets no better as the step shrinks."""
    errors = []
    for h in (1.0, 0.25, 0.0625):
        pair = paired(SPARSIFY["nonnegative"](h), TiedInverse())
        z, dictionary = active(), pair.there.module.dictionary.detach()
        errors.append(float((pair.forth(z).detach() @ dictionary.T - z).norm() / z.norm()))
    assert min(errors) > 0.5


# ---------------------------------------------------------------------- fixed point: the certified rate


@pytest.mark.parametrize("fraction", [0.5, 0.9])
@pytest.mark.parametrize("size", [3.0, 1.0, 0.01])
def test_iterations_converge_at_the_certified_rate_or_faster(fraction: float, size: float) -> None:
    """The certified rate is that of small tokens, where the step is nearly linear; that of large ones is better."""
    torch.manual_seed(1)
    z = size * torch.randn(4, N, D, dtype=torch.double)
    operator = Compress(
        subspaces=K,
        rank=P,
        gradient="exact",
        norm=NoNorm(),
        constraint="orthonormal",
        step=Relative(fraction=fraction),
    )
    errors = [error([paired(operator, FixedPoint(iterations=m))], z) for m in (1, 2, 4, 8, 16)]
    for m, found in zip((1, 2, 4, 8, 16), errors, strict=True):
        assert found <= fraction ** (m + 1) * (1 + 1e-6) + 1e-15
    if size == 0.01:
        assert errors[3] > 0.5 * fraction**9
    if size == 3.0:
        assert errors[3] < 0.1 * fraction**9


def test_a_step_of_the_dictionary_converges_where_it_is_a_contraction() -> None:
    operator = Sparsify(step=0.1, norm=NoNorm(), prox=Leaky(slope=0.8))
    pair = paired(operator, TiedInverse())
    rate = pair.there.module.bound(TOKENS).lipschitz
    assert rate is not None and rate < 1
    z = torch.randn(4, N, D, dtype=torch.double)
    errors = [error([paired(operator, FixedPoint(iterations=m))], z) for m in (1, 2, 4, 8)]
    assert all(found <= rate ** (m + 1) for m, found in zip((1, 2, 4, 8), errors, strict=True))


def test_published_attention_promises_nothing() -> None:
    """A residual of step 1 is not certified, its bound is not known, and iterating may lead away from the tokens."""
    operator = Compress(subspaces=K, rank=P, norm=NoNorm())
    assert isinstance(operator.certificate(TOKENS), NoInverse)
    assert isinstance(operator.inverse(CertifiedInverse(), TOKENS), NoInverse)
    pair = paired(operator, FixedPoint(iterations=30))
    assert pair.there.module.bound(TOKENS).lipschitz is None
    with torch.no_grad():
        pair.there.module.subspaces.copy_(orthonormal(pair.there.module.subspaces))
        pair.there.module.out_weight.copy_(2 * pair.there.module.subspaces.T)
    pair = Paired(pair.there, pair.back, {n: w.detach() for n, w in pair.there.module.named_parameters()})
    assert not error([pair], torch.randn(4, N, D, dtype=torch.double)) < 0.5


# ---------------------------------------------------------------------- certified: a bijection

CERTIFIED_LAYER: tuple[Operator, ...] = (
    Compress(
        subspaces=K,
        rank=P,
        gradient="exact",
        norm=NoNorm(),
        constraint="orthonormal",
        step=Relative(fraction=0.5),
    ),
    Sparsify(step=0.1, penalty=0.1, norm=NoNorm(), prox=Leaky(slope=0.9), constraint="orthonormal"),
)
LAYERS = 6


def certified(double: bool) -> list[Paired]:
    return [
        paired(operator, CertifiedInverse(), seed=layer, double=double)
        for layer in range(LAYERS)
        for operator in CERTIFIED_LAYER
    ]


def stretch() -> float:
    """By how much the certificates say that an error may grow on its way back."""
    total = 1.0
    for operator in CERTIFIED_LAYER:
        found = operator.certificate(TOKENS)
        assert isinstance(found, Certificate)
        total *= found.stretch
    return total**LAYERS


@pytest.mark.parametrize("size", [3.0, 1.0, 0.01, 100.0])
def test_a_certified_round_trip_is_exact(size: float) -> None:
    torch.manual_seed(2)
    z = size * torch.randn(4, N, D, dtype=torch.double)
    assert error(certified(double=True), z) < 1e-10
    single = error(certified(double=False), z.float())
    assert single < torch.finfo(torch.float32).eps * stretch()


@pytest.mark.parametrize("size", [3.0, 1.0, 0.01, 100.0])
def test_a_certified_round_trip_is_exact_in_onnxruntime(size: float) -> None:
    torch.manual_seed(2)
    z = size * torch.randn(4, N, D)
    pairs, y = certified(double=False), z
    for pair in pairs:
        (array,) = pair.there.onnx(y)
        y = torch.from_numpy(array)
    for pair in reversed(pairs):
        # The harness hands over what is shared where the module has a weight of that name.
        with torch.no_grad():
            for name, weight in pair.back.module.named_parameters():
                weight.copy_(pair.shared[name])
        (array,) = pair.back.onnx(y)
        y = torch.from_numpy(array)
    off = np.linalg.norm((y - z).numpy()) / np.linalg.norm(z.numpy())
    assert off < torch.finfo(torch.float32).eps * stretch()


def test_an_error_grows_by_no_more_than_the_certificate_says() -> None:
    torch.manual_seed(3)
    for operator in CERTIFIED_LAYER:
        pair, found = paired(operator, CertifiedInverse()), operator.certificate(TOKENS)
        assert isinstance(found, Certificate)
        for size in (1e-3, 0.1, 1.0, 30.0):
            a = size * torch.randn(64, N, D, dtype=torch.double)
            b = a + 1e-2 * size * torch.randn(64, N, D, dtype=torch.double)
            with torch.no_grad():
                grown = (pair.undo(a) - pair.undo(b)).flatten(1).norm(dim=1) / (a - b).flatten(1).norm(dim=1)
            assert grown.max() <= found.stretch * (1 + 1e-9)


def test_every_code_has_its_tokens() -> None:
    """A bijection both ways: tokens of any kind are what some others are taken to."""
    torch.manual_seed(4)
    y = 10 * torch.randn(4, N, D, dtype=torch.double)
    for operator in CERTIFIED_LAYER:
        pair = paired(operator, CertifiedInverse())
        with torch.no_grad():
            assert (pair.forth(pair.undo(y)) - y).norm() < 1e-12 * y.norm()


def test_a_norm_cannot_be_undone() -> None:
    for mode in (TiedInverse(), FixedPoint(iterations=5), CertifiedInverse()):
        found = Sparsify(norm=LayerNorm()).inverse(mode, TOKENS)
        assert isinstance(found, NoInverse) and "norm" in found.reason and found.help == "norm = none"
