"""`sparsify` against its formulas in float64, against ONNX, and against the theory of the LASSO."""

from __future__ import annotations

from copy import deepcopy
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from crate_dsl.compiler.operators import (
    Learned,
    Mistake,
    Port,
    Weight,
)
from crate_dsl.compiler.steps.norm.operator import NoNorm
from crate_dsl.compiler.steps.sparsify.module import MANY
from crate_dsl.compiler.steps.sparsify.operator import (
    Leaky,
    Nonnegative,
    Soft,
    Sparsify,
)
from crate_dsl.compiler.types import Dim, Symbol, floats
from tests.steps.harness import step
from tests.steps.sparsify_formulas import (
    CRATE,
    CRATE_ALPHA,
    CRATE_LM,
    EXACT,
    SINGLE,
    TOKENS,
    VARIANTS,
    D,
    N,
    arguments,
    perturbed,
    reference,
)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("variant", VARIANTS)
def test_module_and_onnx_are_the_formula(variant: str, batch: int) -> None:
    torch.manual_seed(batch)
    item = perturbed(VARIANTS[variant])
    z, given = torch.randn(batch, N, D), arguments(item, batch)
    wanted = reference(item, z, **given)
    double = deepcopy(item.module).double()
    exact = double(z.double(), **{name: value.double() for name, value in given.items()})
    assert (exact - wanted).abs().max() < EXACT
    (exported,) = item.onnx(z, **given)
    assert np.abs(exported - wanted.numpy()).max() < SINGLE
    assert (item.module(z, **given) - wanted).abs().max() < SINGLE


def test_one_product_for_many_tokens_has_the_gradients_of_two() -> None:
    """D' - D'D formed inside forward: the same values and gradients as (Y - Y D')D, in float64."""
    item = perturbed(Sparsify(step=Learned(0.1), penalty=Learned(0.1)))
    module = item.module.double()
    z = torch.randn(3, N, D, dtype=torch.double, requires_grad=True)
    cotangent = torch.randn(3, N, D, dtype=torch.double)
    # Sample by sample there are too few tokens for one product.
    assert N < MANY * D <= 3 * N
    one, two = module(z), torch.cat([module(sample[None]) for sample in z])
    assert (one - two).abs().max() < EXACT
    weights = [z, *module.parameters()]
    gradients = (torch.autograd.grad(out, weights, cotangent) for out in (one, two))
    for a, b in zip(*gradients, strict=True):
        assert (a - b).abs().max() < EXACT * max(1.0, float(b.abs().max()))


def test_gradients_are_those_of_finite_differences() -> None:
    item = perturbed(CRATE)
    module = item.module.double()
    z = torch.randn(3, N, D, dtype=torch.double, requires_grad=True)
    weights = {name: value.detach().clone().requires_grad_() for name, value in module.named_parameters()}

    def run(z: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(module, dict(zip(weights, values, strict=True)), (z,))

    assert torch.autograd.gradcheck(run, (z, *weights.values()))


def test_a_step_for_each_sample_is_that_samples_step() -> None:
    item = perturbed(Sparsify(step=Port(floats())))
    z, eta = torch.randn(4, N, D), torch.tensor([0.05, 0.1, 0.2, 0.4])
    together = item.module(z, step=eta)
    for i in range(4):
        alone = perturbed(Sparsify(step=float(eta[i])))
        alone.module.load_state_dict(item.module.state_dict())
        assert (together[i : i + 1] - alone.module(z[i : i + 1])).abs().max() < SINGLE


def test_the_identity_dictionary_shrinks() -> None:
    item = perturbed(Sparsify(step=0.3, penalty=0.5, norm=NoNorm()))
    with torch.no_grad():
        item.module.dictionary.copy_(torch.eye(D))
    z = torch.randn(3, N, D)
    assert (item.module(z) - torch.relu(z - 0.15)).abs().max() < SINGLE


def test_an_orthogonal_dictionary_at_step_one_solves_at_once() -> None:
    item = perturbed(Sparsify(step=1.0, penalty=0.2, norm=NoNorm()))
    rotation = torch.linalg.qr(torch.randn(D, D)).Q
    with torch.no_grad():
        item.module.dictionary.copy_(rotation)
    z = torch.randn(3, N, D)
    assert (item.module(z) - torch.relu(z @ rotation - 0.2)).abs().max() < SINGLE


def codes(z: Tensor, dictionary: Tensor, eta: float, penalty: float, iterations: int) -> Tensor:
    """What `iterations` steps from zero arrive at: the codes themselves, in a square dictionary."""
    width = z.shape[-1]
    operator = Sparsify(step=eta, penalty=penalty, iterations=iterations, start="zero", norm=NoNorm())
    item = step(operator, floats(z.shape[1], width))
    module = item.module.double()
    with torch.no_grad():
        module.dictionary.copy_(dictionary)
        return module(z)


def test_the_lasso_objective_does_not_increase() -> None:
    """With η ≤ 1/‖D‖², each proximal step decreases ½‖Y - D A‖² + λ‖A‖₁."""
    torch.manual_seed(1)
    dictionary, z = torch.randn(D, D, dtype=torch.double), torch.randn(2, N, D, dtype=torch.double)
    eta, penalty = 1 / float(torch.linalg.matrix_norm(dictionary, 2)) ** 2, 0.3

    def objective(a: Tensor) -> float:
        return float(0.5 * (z - a @ dictionary.T).pow(2).sum() + penalty * a.abs().sum())

    values = [objective(torch.zeros_like(z))]
    values += [objective(codes(z, dictionary, eta, penalty, iterations)) for iterations in range(1, 12)]
    assert all(after <= before + EXACT for before, after in pairwise(values))
    assert values[-1] < 0.9 * values[0]


def test_the_published_step_decreases_the_objective_from_the_input() -> None:
    torch.manual_seed(2)
    item = perturbed(Sparsify(step=0.01, penalty=0.3, norm=NoNorm()))
    module = item.module.double()
    z = torch.rand(3, N, D, dtype=torch.double)
    dictionary = module.dictionary.detach()
    assert torch.linalg.matrix_norm(dictionary, 2) ** 2 < 1 / 0.01

    def objective(a: Tensor) -> float:
        return float(0.5 * (z - a @ dictionary.T).pow(2).sum() + 0.3 * a.abs().sum())

    assert objective(module(z).detach()) < objective(z)


def test_many_steps_arrive_at_the_lasso() -> None:
    """The limit satisfies the optimality conditions and is scikit-learn's solution."""
    from sklearn.linear_model import Lasso

    torch.manual_seed(3)
    dictionary = torch.randn(D, D, dtype=torch.double) + 2 * torch.eye(D, dtype=torch.double)
    z = torch.randn(1, N, D, dtype=torch.double)
    eta, penalty = 1 / float(torch.linalg.matrix_norm(dictionary, 2)) ** 2, 0.4
    found = codes(z, dictionary, eta, penalty, iterations=5000)
    # On the support D'(Y - D A) = λ, elsewhere it is at most λ.
    pull = (z - found @ dictionary.T) @ dictionary
    converged = 1e-6
    assert (pull <= penalty + converged).all()
    assert (pull[found > 0] - penalty).abs().max() < converged
    # scikit-learn divides the squares by the number of equations.
    lasso = Lasso(alpha=penalty / D, positive=True, fit_intercept=False, tol=1e-12, max_iter=100_000)
    for n in range(N):
        assert (
            np.abs(lasso.fit(dictionary.numpy(), z[0, n].numpy()).coef_ - found[0, n].numpy()).max()
            < converged
        )


def test_a_leaky_code_loses_nothing() -> None:
    """Its proximal map is undone number by number, where `nonnegative` has lost what was not positive."""
    item = perturbed(Sparsify(step=0.1, penalty=0.4, prox=Leaky(slope=0.9), norm=NoNorm()))
    with torch.no_grad():
        item.module.dictionary.copy_(torch.eye(D))
    z = torch.randn(3, N, D)
    code = item.module(z)
    assert (torch.where(code > 0, code, code / 0.9) + 0.04 - z).abs().max() < SINGLE


def test_weights_and_costs_are_counted() -> None:
    n, d = 197, 384
    crate = CRATE.infer(floats(n, d))
    assert {name: slot.shape for name, slot in crate.slots.items()} == {
        "norm_weight": (d,),
        "norm_bias": (d,),
        "dictionary": (d, d),
    }
    assert crate.flops == 5 * n * d + 2 * 2 * n * d * d + n * d
    alpha = CRATE_ALPHA.infer(floats(n, d))
    assert sum(int(np.prod(slot.shape)) for slot in alpha.slots.values()) == 2 * d + 2 * d * 4 * d
    # D'Y; D A; D'(…); the decoder; two proximal maps.
    assert alpha.flops == 5 * n * d + 4 * 2 * n * d * 4 * d + 2 * n * 4 * d
    tied = CRATE_LM.infer(floats(n, d))
    assert sum(int(np.prod(slot.shape)) for slot in tied.slots.values()) == 2 * d + 4 * d * d
    bound = CRATE.infer(floats(Dim.symbolic(Symbol("n", n)) + 1, d))
    assert bound.flops == CRATE.infer(floats(n + 1, d)).flops
    assert alpha.slots["dictionary"].initial.limit == pytest.approx((6 / (4 * d)) ** 0.5)


@pytest.mark.parametrize(
    ("operator", "code", "at"),
    [
        (Sparsify(expand=4), "E0310", "expand"),
        (Sparsify(expand=4, decode="tied"), "E0311", "start"),
        (
            Sparsify(constraint="orthonormal", expand=2, start="zero", decode="tied"),
            "E0341",
            "constraint",
        ),
        (Sparsify(step=Learned(0.1, (4,))), "E0314", "step"),
        (Sparsify(penalty=Weight("tau", floats(4))), "E0314", "penalty"),
        (Sparsify(step=Port(floats(2))), "E0410", "step"),
    ],
)
def test_mistakes(operator: Sparsify, code: str, at: str) -> None:
    with pytest.raises(Mistake) as caught:
        operator.infer(TOKENS)
    assert (caught.value.code, caught.value.at) == (code, at)


def test_the_trichotomy_is_explained() -> None:
    with pytest.raises(
        Mistake, match="constant width, a wide dictionary and sparse codes as the result cannot all hold"
    ):
        Sparsify(expand=4, start="zero").infer(TOKENS)


def test_an_exported_program_takes_two_products_however_many_tokens_its_example_has() -> None:
    """A choice by size would be frozen into the program, or refused."""
    item = perturbed(CRATE)
    many = torch.randn(3, N, D)
    assert MANY * D <= 3 * N
    program = torch.export.export(item.module, (many,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    products = [
        node for node in program.graph.nodes if "matmul" in str(node.target) or "linear" in str(node.target)
    ]
    assert len(products) == 2
    for batch in (1, 2, 40):
        z = torch.randn(batch, N, D)
        assert (program.module()(z) - item.module(z)).abs().max() < SINGLE


@pytest.mark.parametrize("variant", ["crate", "crate_alpha"])
def test_it_compiles_whole_and_exports_with_any_batch(variant: str) -> None:
    item = perturbed(VARIANTS[variant])
    z = torch.randn(3, N, D)
    compiled = torch.compile(item.module, fullgraph=True, backend="eager")
    assert (compiled(z) - item.module(z)).abs().max() < SINGLE
    program = torch.export.export(item.module, (z,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    for batch in (1, 7):
        z = torch.randn(batch, N, D)
        assert (program.module()(z) - item.module(z)).abs().max() < SINGLE


# ---------------------------------------------------------------------- what can be seen of it


@pytest.mark.parametrize("variant", VARIANTS)
def test_explain_is_the_plain_formula(variant: str) -> None:
    item = perturbed(VARIANTS[variant])
    item.module.double()
    z = torch.randn(3, N, D, dtype=torch.double)
    given = {name: value.double() for name, value in arguments(item, 3).items()}
    taps = item.module.explain(z, **given)
    assert set(taps) == {*item.operator.taps, "out"}
    assert (taps["out"] - item.module(z, **given)).abs().max() < EXACT
    assert taps["code"].shape == (3, N, D * item.operator.expand)


def test_the_objective_of_each_token_is_what_a_step_descends_on() -> None:
    """½‖Y - D A‖² + λ‖A‖₁, and from the input a small step makes it smaller for every token."""
    torch.manual_seed(5)
    item = perturbed(Sparsify(step=0.02, penalty=0.3, prox=Soft(), norm=NoNorm()))
    module = item.module.double()
    with torch.no_grad():
        taps = module.explain(torch.randn(3, N, D, dtype=torch.double))
        before, after = (module.lasso(taps["norm"], codes) for codes in (taps["norm"], taps["code"]))
        y, a = taps["norm"][1, 2], taps["code"][1, 2]
        wanted = 0.5 * (y - module.dictionary @ a).square().sum() + 0.3 * a.abs().sum()
    assert before.shape == (3, N)
    assert abs(after[1, 2] - wanted) < EXACT
    assert (after < before).all()


def test_a_learned_penalty_below_zero_adds() -> None:
    """Both faces agree there: what is learned is not held above zero."""
    for prox in (Nonnegative(), Soft(), Leaky(slope=0.7)):
        item = step(Sparsify(penalty=Learned(0.1, (D,)), prox=prox), TOKENS)
        with torch.no_grad():
            item.module.penalty.copy_(-torch.rand(D))
        z = torch.randn(3, N, D)
        (exported,) = item.onnx(z)
        assert np.abs(exported - item.module(z).detach().numpy()).max() < SINGLE
