"""`densify` against its formulas in float64 and against ONNX; what can be undone, and what says so."""

from __future__ import annotations

from copy import deepcopy

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
    Learned,
    LearnedInverse,
    Mistake,
    Mode,
    NoInverse,
    Port,
    TiedInverse,
)
from crate_dsl.compiler.steps.norm.operator import NoNorm, RmsNorm
from crate_dsl.compiler.steps.sparsify.module import MANY
from crate_dsl.compiler.steps.sparsify.operator import (
    Densify,
    Leaky,
    Nonnegative,
    Soft,
    Sparsify,
)
from crate_dsl.compiler.types import floats
from tests.steps.harness import Step, step
from tests.steps.sparsify_formulas import (
    CRATE,
    CRATE_ALPHA,
    CRATE_LM,
    EXACT,
    SINGLE,
    TOKENS,
    D,
    N,
    arguments,
    normalised,
    perturbed,
    reference,
    scalar,
)

RAW = {"norm": NoNorm(), "by": "gradient"}
UNDONE = {
    "synthesis": Densify(),
    "synthesis_rms": Densify(norm=RmsNorm()),
    "synthesis_raw": Densify(norm=NoNorm()),
    "tied": Densify(**RAW),
    "soft": Densify(**RAW, prox=Soft(), step=0.2, repeats=2),
    "leaky": Densify(**RAW, prox=Leaky(slope=0.7), penalty=0.4, repeats=5),
    "learned": Densify(**RAW, step=Learned(0.1, (D,)), penalty=Learned(0.2)),
    "handed": Densify(**RAW, step=Port(floats()), repeats=3),
    "certified": Densify(**RAW, prox=Leaky(), constraint="orthonormal", step=0.3, repeats="certified"),
    "certified_long": Densify(
        **RAW, prox=Leaky(slope=0.2), constraint="orthonormal", step=0.47, repeats="certified"
    ),
    "residual": Densify(by="gradient", residual=True),
    "residual_alpha": Densify(
        by="gradient", residual=True, iterations=2, start="zero", expand=4, decode="free", repeats=3
    ),
}


def undone(item: Step, y: Tensor, **given: Tensor) -> Tensor:
    """The formulas: E norm Y; or V = prox⁻¹ Y, X <- V - (M - I) X; or X <- Y - F(X)."""
    op, w = item.operator, {name: value.detach().double() for name, value in item.module.named_parameters()}
    if op.by == "synthesis":
        return normalised(op.norm, y.double(), w) @ w["dictionary"].T
    if op.residual:
        x = y.double()
        same = step(Sparsify(**op._arguments()), TOKENS)
        same.module.load_state_dict(item.module.state_dict())
        for _ in range(op.repeats):
            x = y.double() - (reference(same, x, **given) - x)
        return x
    eta, penalty = (scalar(item, name, w, given) for name in ("step", "penalty"))
    a, tau, dictionary = y.double().transpose(1, 2), eta * penalty, w["dictionary"]
    if isinstance(op.prox, Soft):
        v = a + a.sign() * tau
    else:
        v = torch.where(a > 0, a, a / op.prox.slope if isinstance(op.prox, Leaky) else a) + tau
    residue = eta * (dictionary.T - dictionary.T @ dictionary)
    if op.repeats == "certified":
        return torch.linalg.solve(torch.eye(D) + residue, v).transpose(1, 2)
    x = v
    for _ in range(op.repeats):
        x = v - eta * (dictionary.T @ (x - dictionary @ x))
    return x.transpose(1, 2)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("variant", UNDONE)
def test_densify_and_its_onnx_are_the_formula(variant: str, batch: int) -> None:
    torch.manual_seed(batch)
    item = perturbed(UNDONE[variant])
    if item.operator.constraint == "orthonormal":
        with torch.no_grad():
            item.module.dictionary.copy_(orthonormal(item.module.dictionary))
    y, given = torch.randn(batch, N, D), arguments(item, batch)
    wanted = undone(item, y, **given)
    double = deepcopy(item.module).double()
    doubled = {name: value.double() for name, value in given.items()}
    assert (double(y.double(), **doubled) - wanted).abs().max() < 10 * EXACT
    taps = double.explain(y.double(), **doubled)
    assert set(taps) == {*item.operator.taps, "out"}
    assert (taps["out"] - wanted).abs().max() < 10 * EXACT
    (exported,) = item.onnx(y, **given)
    scale = max(1.0, float(wanted.abs().max()))
    assert np.abs(exported - wanted.numpy()).max() < 2 * SINGLE * scale
    assert (item.module(y, **given) - wanted).abs().max() < 2 * SINGLE * scale


@pytest.mark.parametrize("step_size", [Learned(0.1), Learned(0.1, (D,))])
def test_one_product_for_many_tokens_has_the_gradients_of_two(step_size: Learned) -> None:
    """D' - D'D formed once: values and gradients of tokens, dictionary, step and penalty, in float64."""
    item = perturbed(Densify(**RAW, step=step_size, penalty=Learned(0.1)))
    module = item.module.double()
    y = torch.randn(3, N, D, dtype=torch.double, requires_grad=True)
    cotangent = torch.randn(3, N, D, dtype=torch.double)
    # Sample by sample there are too few tokens for one product.
    assert N < MANY * D <= 3 * N
    one, two = module(y), torch.cat([module(sample[None]) for sample in y])
    of = [y, *module.parameters()]
    gradients = (torch.autograd.grad(out, of, cotangent) for out in (one, two))
    for a, b in zip([one.detach(), *next(gradients)], [two.detach(), *next(gradients)], strict=True):
        assert (a - b).abs().max() < EXACT * max(1.0, float(b.abs().max()))


def test_sweeps_share_one_matrix() -> None:
    """Two sweeps of a sample have tokens enough between them, and D' - D'D is formed once for both."""
    item = perturbed(Densify(**RAW, repeats=2))
    y = torch.randn(1, N, D)
    assert N < MANY * D <= 2 * N
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        item.module(y)
    assert sum(event.count for event in profile.key_averages() if event.key == "aten::mm") == 3


def test_the_published_synthesis_has_the_published_slots() -> None:
    typing = Densify().infer(TOKENS)
    assert {name: slot.shape for name, slot in typing.slots.items()} == {
        "norm_weight": (D,),
        "norm_bias": (D,),
        "dictionary": (D, D),
    }
    assert typing.flops == 5 * N * D + 2 * N * D * D
    assert Densify(**RAW, repeats=3).infer(TOKENS).flops == 3 * 4 * N * D * D + 2 * N * D


@pytest.mark.parametrize(
    ("operator", "words"),
    [
        (Sparsify(), "its norm forgets"),
        (Sparsify(norm=NoNorm(), iterations=2), "each of its 2 proximal steps"),
        (Sparsify(norm=NoNorm(), start="zero"), "start from zero"),
        (CRATE_LM, "decodes its codes"),
        (Sparsify(norm=NoNorm(), decode="free"), "decodes its codes"),
    ],
)
def test_what_cannot_be_undone_with_its_own_weights(operator: Sparsify, words: str) -> None:
    for mode in (TiedInverse(), FixedPoint(iterations=3), CertifiedInverse()):
        found = operator.inverse(mode, TOKENS)
        assert isinstance(found, NoInverse) and words in found.reason and found.help
    learned = operator.inverse(LearnedInverse(), TOKENS)
    assert isinstance(learned, Inverse) and learned.operator == Densify(norm=operator.norm)
    assert learned.shared == {}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"prox": Nonnegative()}, "`prox = nonnegative` gives many tokens the same code"),
        ({"prox": Soft()}, "`prox = soft`"),
        ({"constraint": "none"}, "may become singular"),
        ({"step": Learned(0.1)}, "its step is learned"),
        ({"step": 0.5}, "its step is 0.5"),
        ({"residual": True}, "residual"),
    ],
)
def test_what_breaks_the_certificate_is_said(arguments: dict[str, object], words: str) -> None:
    certain = {"step": 0.1, "norm": NoNorm(), "prox": Leaky(slope=0.9), "constraint": "orthonormal"}
    operator = Sparsify(**(certain | arguments))
    for found in (operator.certificate(TOKENS), operator.inverse(CertifiedInverse(), TOKENS)):
        assert isinstance(found, NoInverse) and words in found.reason and found.help
    sure = Sparsify(**certain).certificate(TOKENS)
    assert isinstance(sure, Certificate) and sure.stretch == pytest.approx(1 / (0.9 * 0.8))


@pytest.mark.parametrize("mode", [LearnedInverse(), TiedInverse(), FixedPoint(iterations=3)])
def test_a_residual_is_undone_by_taking_its_codes_away(mode: Mode) -> None:
    found = CRATE_ALPHA.inverse(mode, TOKENS)
    assert isinstance(found, Inverse)
    assert found.operator.residual and found.operator.by == "gradient"
    assert set(found.shared) == (
        set() if isinstance(mode, LearnedInverse) else set(CRATE_ALPHA.infer(TOKENS).weights)
    )
    assert found.operator.repeats == (3 if isinstance(mode, FixedPoint) else 1)


@pytest.mark.parametrize(
    "mode", [LearnedInverse(), TiedInverse(), FixedPoint(iterations=3), CertifiedInverse()]
)
def test_what_is_handed_over_cannot_be_undone(mode: Mode) -> None:
    for handed in ("step", "penalty"):
        found = Sparsify(**{handed: Port(floats())}).inverse(mode, TOKENS)
        assert isinstance(found, NoInverse) and f"`{handed}` is handed over" in found.reason


def test_the_bound_is_that_of_the_step() -> None:
    torch.manual_seed(6)
    cases = (
        perturbed(Sparsify(norm=NoNorm(), step=Learned(0.1, (D,)))),
        perturbed(
            Sparsify(norm=NoNorm(), residual=True, start="zero", iterations=2, expand=2, decode="free")
        ),
        perturbed(Sparsify(norm=NoNorm(), residual=True, iterations=2)),
    )
    for item in cases:
        bound = item.module.bound(TOKENS).lipschitz
        assert bound is not None
        # Active everywhere: the first one's threshold shifts, and what is left of Z -> A - Z is linear.
        a = 10 + torch.rand(64, N, D, dtype=torch.double)
        b = a + 1e-2 * torch.randn(64, N, D, dtype=torch.double)
        module = item.module.double()
        with torch.no_grad():
            moved = ((module(a) - a) - (module(b) - b)).flatten(1).norm(dim=1)
        worst = float((moved / (a - b).flatten(1).norm(dim=1)).max())
        assert 0.1 * bound < worst <= bound * (1 + 1e-6)
    for operator in (CRATE, CRATE_ALPHA, CRATE_LM, Sparsify(step=Port(floats())), Densify()):
        found = perturbed(operator).module.bound(TOKENS)
        assert found.lipschitz is None and found.reason


@pytest.mark.parametrize(
    ("operator", "code", "at"),
    [
        (Densify(step=0.3), "E0305", "step"),
        (Densify(repeats=2), "E0305", "repeats"),
        (Densify(by="gradient"), "E0345", "by"),
        (Densify(**RAW, iterations=2), "E0345", "by"),
        (Densify(**RAW, repeats="certified"), "E0345", "repeats"),
    ],
)
def test_mistakes_of_densify(operator: Densify, code: str, at: str) -> None:
    with pytest.raises(Mistake) as caught:
        operator.infer(TOKENS)
    assert (caught.value.code, caught.value.at) == (code, at)
