"""What `compress` says of itself: costs, guards, certificates, inverses, bounds, mistakes."""

from __future__ import annotations

import pytest
import torch

from crate_dsl.compiler.operators import (
    Certificate,
    CertifiedInverse,
    FixedPoint,
    Inverse,
    Learned,
    LearnedInverse,
    Mistake,
    Mode,
    NoInverse,
    TiedInverse,
    Weight,
)
from crate_dsl.compiler.steps.compress.operator import Compress, Decompress, Relative
from crate_dsl.compiler.steps.norm.operator import LayerNorm, NoNorm
from crate_dsl.compiler.types import floats
from crate_dsl.workspace import check_text
from tests.steps.compress_formulas import (
    CERTIFIED,
    KEPT,
    PER_SAMPLE,
    TOKENS,
    VARIANTS,
    D,
    K,
    N,
    P,
    branch,
    orthonormal_rows,
)
from tests.steps.harness import step


def test_derived_steps_are_counted() -> None:
    exact = Compress(subspaces=2, rank=P, gradient="exact", constraint="orthonormal").infer(TOKENS)
    assert set(exact.slots) == {"norm_weight", "norm_bias", "subspaces"}
    assert exact.slots["subspaces"].constraint == "orthonormal"
    m = 2 * P
    maps, gram_and_solve, factors = 2 * (2 * N * D * m), 2 * (2 * N * P * m), 2 * P**3 // 3
    assert exact.flops == 5 * N * D + maps + gram_and_solve + factors
    undone = Decompress(**CERTIFIED, iterations="certified").infer(TOKENS)
    assert undone.flops == 23 * (maps + gram_and_solve + factors)
    borrowed = VARIANTS["exact_bases"].infer(TOKENS)
    assert borrowed.weights["subspaces"] == Weight("axes", floats(2 * P, D))


def guards(**arguments: object) -> list[str]:
    return [guard.code for guard in Compress(**arguments).infer(floats(16, 8)).guards]


def test_guards_say_what_the_derivation_does_not_hold_for() -> None:
    orthonormal: dict[str, object] = {"subspaces": 2, "rank": 4, "constraint": "orthonormal"}
    assert guards(**orthonormal, gradient="exact") == []
    # α = 4 / (16 · 0.25) = 1.
    assert guards(**orthonormal, gradient="exact", step=0.99) == []
    assert guards(**orthonormal, gradient="exact", step=1.0) == ["W0810"]
    assert guards(**orthonormal, gradient="exact", step=Relative(fraction=1.2)) == ["W0810"]
    assert guards(**orthonormal, gradient="exact", step=2.0) == ["W0811"]
    assert guards(subspaces=2, rank=4, gradient="exact", step=2.0) == []
    # Some subspace has α‖W_k‖² ≥ p/ε²; all have at most p d/ε².
    assert guards(**orthonormal, gradient="neumann") == ["W0812"]
    assert guards(**orthonormal, gradient="neumann", eps=1.99) == ["W0812"]
    assert guards(**orthonormal, gradient="neumann", eps=2.01) == []
    assert guards(subspaces=2, rank=4, gradient="neumann") == []
    assert guards(subspaces=2, rank=4, gradient="neumann", norm=NoNorm()) == ["W0813"]
    assert guards(**orthonormal) == []


def test_a_guard_is_told_once_for_a_repeat() -> None:
    text = """model example {
        input z : float[16, 8]
        y = z -> repeat(3) { compress(2, 4, gradient = exact, constraint = orthonormal, step = 3) }
        output y
    }"""
    (found,) = check_text("example.crate", text)
    assert found.code == "W0811" and found.where is not None and found.where.span.text == "3"


def test_the_radius_of_the_guard_is_that_of_every_normalised_input() -> None:
    torch.manual_seed(4)
    u = orthonormal_rows(8, 8)
    for spread in (0.0, 0.1, 1.0):
        tokens = torch.randn(50, 1, 8, dtype=torch.double) + spread * torch.randn(
            50, 16, 8, dtype=torch.double
        )
        x = torch.nn.functional.layer_norm(tokens, (8,))
        sizes = torch.stack([torch.linalg.matrix_norm(x @ basis.T, 2) for basis in u.split(4)]) ** 2
        alpha = 4 / (16 * 0.5**2)
        # LayerNorm's own ε takes away a little.
        assert (alpha * sizes.amax(0) > 16 * (1 - 1e-3)).all()
        assert (alpha * sizes < 4 * 8 / 0.5**2).all()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"gradient": "attention"}, "attention has no Lipschitz constant"),
        ({"gradient": "softmax", "step": 1.0}, "attention has no Lipschitz constant"),
        ({"gradient": "neumann"}, "cube"),
        ({"norm": LayerNorm()}, "norm"),
        ({"dropout": 0.1}, "`dropout`"),
        ({"step": 0.1}, "its step is a number of its own"),
        ({"step": Learned(0.1)}, "its step is a number of its own"),
        ({"step": Relative(fraction=1.0)}, "κα‖U‖₂² = 1,"),
    ],
)
def test_what_breaks_the_certificate_is_said(arguments: dict[str, object], words: str) -> None:
    operator = Compress(**(CERTIFIED | arguments))
    for found in (operator.certificate(TOKENS), operator.inverse(CertifiedInverse(), TOKENS)):
        assert isinstance(found, NoInverse) and words in found.reason and found.help


def test_the_certificate_has_its_number() -> None:
    found = Compress(**CERTIFIED, step=Relative(fraction=0.75)).certificate(TOKENS)
    assert isinstance(found, Certificate) and found.stretch == pytest.approx(4)
    back = Decompress(**CERTIFIED, step=Relative(fraction=0.75), iterations="certified").certificate(TOKENS)
    assert isinstance(back, Certificate) and back.stretch == pytest.approx(1.75)


@pytest.mark.parametrize(
    "mode", [LearnedInverse(), TiedInverse(), FixedPoint(iterations=3), CertifiedInverse()]
)
@pytest.mark.parametrize("handed", [{"mask": KEPT}, {"step": PER_SAMPLE}, {"scale": PER_SAMPLE}])
def test_what_is_handed_over_cannot_be_undone(mode: Mode, handed: dict[str, object]) -> None:
    found = Compress(subspaces=K, rank=P, **handed).inverse(mode, TOKENS)
    assert isinstance(found, NoInverse) and f"`{min(handed)}` is handed over" in found.reason


@pytest.mark.parametrize(
    "mode", [LearnedInverse(), TiedInverse(), FixedPoint(iterations=3), CertifiedInverse()]
)
def test_the_inverse_of_the_inverse_is_the_step(mode: Mode) -> None:
    operator = Compress(**CERTIFIED)
    there = operator.inverse(mode, TOKENS)
    assert isinstance(there, Inverse)
    back = there.operator.inverse(mode, TOKENS)
    if isinstance(mode, FixedPoint):
        assert isinstance(back, NoInverse)
    else:
        assert isinstance(back, Inverse) and back.operator == operator


def test_a_learned_inverse_has_bases_of_its_own() -> None:
    found = VARIANTS["exact_bases"].inverse(LearnedInverse(), TOKENS)
    assert isinstance(found, Inverse) and set(found.operator.infer(TOKENS).slots) >= {"subspaces"}
    tied = VARIANTS["exact_bases"].inverse(TiedInverse(), TOKENS)
    assert isinstance(tied, Inverse) and "subspaces" not in tied.operator.infer(TOKENS).slots


def test_the_bound_is_that_of_the_branch() -> None:
    """Sampled slopes come near it where tokens are small, and do not exceed it."""
    torch.manual_seed(5)
    for item in (
        step(Compress(subspaces=K, rank=P, gradient="exact", norm=NoNorm(), step=0.1), TOKENS),
        step(Compress(**(CERTIFIED | {"constraint": "none"})), TOKENS),
    ):
        bound = item.module.bound(TOKENS)
        assert bound.lipschitz is not None
        worst = 0.0
        for size in (1e-3, 0.1, 1.0, 10.0):
            a = size * torch.randn(64, N, D, dtype=torch.double)
            b = a + size * 1e-2 * torch.randn(64, N, D, dtype=torch.double)
            moved = (branch(item, a) - branch(item, b)).flatten(1).norm(dim=1)
            worst = max(worst, float((moved / (a - b).flatten(1).norm(dim=1)).max()))
        assert 0.2 * bound.lipschitz < worst <= bound.lipschitz * (1 + 1e-9)
    for variant in ("published", "softmax", "neumann", "exact", "exact_handed"):
        found = step(VARIANTS[variant], TOKENS).module.bound(TOKENS)
        assert found.lipschitz is None and found.reason


@pytest.mark.parametrize(
    ("operator", "code", "at"),
    [
        (Compress(subspaces=K, rank=P, step=Relative()), "E0305", "step"),
        (Compress(subspaces=K, rank=P, gradient="exact", scale=0.5), "E0305", "scale"),
        (Compress(subspaces=K, rank=P, gradient="exact", mask="causal"), "E0305", "mask"),
        (Compress(subspaces=K, rank=P, gradient="neumann", mask=KEPT), "E0305", "mask"),
        (Compress(subspaces=K, rank=P, gradient="exact", bases=Weight("u", floats(3, D))), "E0343", "bases"),
        (Decompress(subspaces=K, rank=P, iterations="certified"), "E0342", "iterations"),
        (Decompress(**(CERTIFIED | {"norm": LayerNorm()}), iterations="certified"), "E0342", "iterations"),
    ],
)
def test_mistakes(operator: Compress, code: str, at: str) -> None:
    with pytest.raises(Mistake) as caught:
        operator.infer(TOKENS)
    assert (caught.value.code, caught.value.at) == (code, at)
