"""Rates and their gradients against the formulas in float64, and the laws that they obey."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from crate_dsl import rates

#: Float64: sums of some dozen logarithms of size one, in two orders.
FLOAT64 = 1e-12
#: Half a unit in the last place of float32, relative.
ROUNDING = 2.0**-24

BATCH, TOKENS, WIDTH, SUBSPACES, RANK, CLASSES = 2, 11, 7, 3, 4, 5


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def rotation(size: int, seed: int = 1) -> Tensor:
    return torch.linalg.qr(random(size, size, seed=seed)).Q


def labels(tokens: int = TOKENS, seed: int = 2) -> Tensor:
    """Labels with a gap: nothing has label 1."""
    drawn = torch.randint(CLASSES - 1, (tokens,), generator=torch.Generator().manual_seed(seed))
    return drawn + (drawn >= 1)


def shares(*batch: int) -> Tensor:
    return random(*batch, TOKENS, CLASSES, seed=3).softmax(-1)


def same(a: Tensor, b: Tensor, atol: float = FLOAT64) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=atol, check_dtype=False)


# The formulas, with tokens as columns, as the papers write them.


def reference_rate(z_dn: Tensor, eps: float) -> Tensor:
    d, n = z_dn.shape
    eye = torch.eye(n, dtype=torch.float64)
    return torch.linalg.slogdet(eye + d / (n * eps**2) * z_dn.T @ z_dn).logabsdet / 2


def reference_subspace_rate(z_dn: Tensor, subspaces_kdp: Tensor, eps: float) -> Tensor:
    rate = torch.zeros((), dtype=torch.float64)
    for u_dp in subspaces_kdp:
        rate = rate + reference_rate(u_dp.T @ z_dn, eps)  # whose d is p
    return rate


def reference_reduction(z_dn: Tensor, membership_kn: Tensor, eps: float) -> Tensor:
    d, n = z_dn.shape
    rate = reference_rate(z_dn, eps)
    for pi_n in membership_kn:
        trace = pi_n.sum()
        if trace > 0:
            gram_dd = z_dn @ pi_n.diag() @ z_dn.T
            eye = torch.eye(d, dtype=torch.float64)
            rate = rate - trace / (2 * n) * torch.linalg.slogdet(eye + d / (trace * eps**2) * gram_dd)[1]
    return rate


# ---------------------------------------------------------------- formulas


@pytest.mark.parametrize("tokens", [3, TOKENS])  # fewer than the width, and more
@pytest.mark.parametrize("eps", [0.1, 0.5])
def test_rates_are_the_formulas(tokens: int, eps: float) -> None:
    z, u = random(BATCH, tokens, WIDTH), random(SUBSPACES, RANK, WIDTH, seed=1)
    expected = [reference_rate(one.T, eps) for one in z]
    same(rates.coding_rate(z, eps), torch.stack(expected))
    compressed = [reference_subspace_rate(one.T, u.mT, eps) for one in z]
    same(rates.subspace_rate(z, u, eps), torch.stack(compressed))
    w = torch.stack([z @ u_pd.T for u_pd in u], dim=1)
    same(rates.projected_rate(w, eps), torch.stack(compressed))
    srr = [
        r - c - 0.3 * one.abs().sum() / (tokens * WIDTH)
        for r, c, one in zip(expected, compressed, z, strict=True)
    ]
    same(rates.sparse_rate_reduction(z, u, 0.3, eps), torch.stack(srr))


def test_the_published_rate() -> None:
    """Tokens of each head normalised, ε² = 0.01, summed over heads."""
    w = 3 * random(BATCH, SUBSPACES, TOKENS, RANK)
    expected = torch.zeros(BATCH, dtype=torch.float64)
    for b in range(BATCH):
        for k in range(SUBSPACES):
            x = w[b, k] / w[b, k].pow(2).sum(-1, keepdim=True).sqrt()
            expected[b] += torch.logdet(torch.eye(TOKENS) + RANK / (TOKENS * 0.01) * x @ x.T) / 2
    same(rates.published_rate(w), expected)
    same(rates.published_rate(5 * w), expected)


@pytest.mark.parametrize("eps", [0.1, 0.5])
def test_rate_reduction_is_the_formula(eps: float) -> None:
    z = random(TOKENS, WIDTH)
    one_hot = torch.nn.functional.one_hot(labels(), CLASSES).double()
    hard = rates.rate_reduction(z, labels(), eps)
    same(hard, reference_reduction(z.T, one_hot.T, eps))
    same(hard, rates.rate_reduction(z, one_hot, eps))  # a class without members counts as nothing
    same(rates.rate_reduction(z, shares(), eps), reference_reduction(z.T, shares().T, eps))


def test_batches_are_loops() -> None:
    z, u = random(BATCH, 3, TOKENS, WIDTH), random(SUBSPACES, RANK, WIDTH, seed=1)
    own_labels = torch.stack([labels(seed=seed) for seed in range(BATCH * 3)]).unflatten(0, (BATCH, 3))
    functions: list[tuple[Callable[..., Tensor], list[Tensor]]] = [
        (rates.coding_rate, [z]),
        (rates.rate_distance, [z, z.flip(1)]),
        (rates.rate_reduction, [z, own_labels]),
        (rates.rate_reduction, [z, shares(BATCH, 3)]),
        (rates.coding_rate_gradient, [z]),
        (rates.rate_reduction_gradient, [z, own_labels]),
        (rates.rate_reduction_gradient, [z, shares(BATCH, 3)]),
        (partial(rates.subspace_rate, subspaces_kpd=u), [z]),
        (partial(rates.sparse_rate_reduction, subspaces_kpd=u, penalty=0.1), [z]),
        (partial(rates.subspace_rate_gradient, subspaces_kpd=u), [z]),
        (partial(rates.rate_reduction, membership=labels()), [z]),
        (partial(rates.rate_reduction, membership=shares()), [z]),
        (partial(rates.rate_reduction_gradient, membership=labels()), [z]),
    ]
    for function, arguments in functions:
        whole = function(*arguments)
        for i in range(BATCH):
            for j in range(3):
                same(whole[i, j], function(*(argument[i, j] for argument in arguments)))


# -------------------------------------------------------------------- laws


def test_rotations_and_orders_change_no_rate() -> None:
    z, u = random(TOKENS, WIDTH), random(SUBSPACES, RANK, WIDTH, seed=1)
    order = torch.randperm(TOKENS, generator=torch.Generator().manual_seed(4))
    rate = rates.coding_rate(z)
    same(rates.coding_rate(z @ rotation(WIDTH)), rate)
    same(rates.coding_rate(rotation(TOKENS) @ z), rate)
    same(rates.coding_rate(z[order]), rate)
    turned = torch.stack([rotation(RANK, seed) @ u_pd for seed, u_pd in enumerate(u)])
    same(rates.subspace_rate(z, turned), rates.subspace_rate(z, u))
    same(rates.subspace_rate(z[order], u.flip(0)), rates.subspace_rate(z, u))


def test_both_sides_of_the_determinant_agree() -> None:
    """With N and d exchanged and d/N kept by ε, the other side is taken."""
    z = random(TOKENS, WIDTH)
    same(rates.coding_rate(z.T, eps=0.5 * TOKENS / WIDTH), rates.coding_rate(z))


def test_less_error_costs_more() -> None:
    z, u = random(TOKENS, WIDTH), random(SUBSPACES, RANK, WIDTH, seed=1)
    for rate in (rates.coding_rate, partial(rates.subspace_rate, subspaces_kpd=u)):
        costs = [rate(z, eps=eps).item() for eps in (2.0, 1.0, 0.5, 0.1, 0.01)]
        assert costs == sorted(set(costs))
        assert costs[0] > 0


def test_rates_of_nothing_are_zero() -> None:
    zero = torch.zeros(TOKENS, WIDTH, dtype=torch.float64)
    z, basis = random(TOKENS, WIDTH), rotation(WIDTH)
    assert rates.coding_rate(zero) == 0 < rates.coding_rate(1e-3 * z)
    assert rates.rate_reduction(zero, labels()) == 0
    assert rates.published_rate(zero[None]) == 0
    # Tokens in the last two directions, subspaces in the others.
    inside, outside = basis[:4].unflatten(0, (2, 2)), z[:, :2] @ basis[-2:]
    same(rates.subspace_rate(outside, inside), torch.tensor(0.0))
    same(rates.subspace_rate_gradient(outside, inside), zero)


def test_tokens_in_one_of_orthogonal_subspaces_cost_what_they_cost_there() -> None:
    basis = rotation(6)
    inside = random(TOKENS, 2)
    same(rates.subspace_rate(inside @ basis[:2], basis.unflatten(0, (3, 2))), rates.coding_rate(inside))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_classes_never_cost(seed: int, scale: float) -> None:
    z = scale * random(TOKENS, WIDTH, seed=seed)
    assert rates.rate_reduction(z, labels(seed=seed)) > 0
    assert rates.rate_reduction(z, shares()) > 0


def test_classes_with_equal_second_moments_save_nothing() -> None:
    z = random(TOKENS, WIDTH)
    thrice = torch.cat([z, rotation(TOKENS) @ z, z.flip(0)])
    same(rates.rate_reduction(thrice, torch.arange(3).repeat_interleave(TOKENS)), torch.tensor(0.0))
    same(rates.rate_reduction(z, torch.full((TOKENS, 4), 0.25)), torch.tensor(0.0))
    same(rates.rate_reduction(z, torch.zeros(TOKENS, dtype=torch.int32)), torch.tensor(0.0))


def test_any_whole_numbers_are_labels() -> None:
    z = random(TOKENS, WIDTH)
    reduction = rates.rate_reduction(z, labels())
    same(rates.rate_reduction(z, 1000 * labels() + 7), reduction)
    same(rates.rate_reduction(z, labels().to(torch.uint8)), reduction)
    same(rates.rate_reduction_gradient(z, 1000 * labels()), rates.rate_reduction_gradient(z, labels()))


def test_the_distance_of_two_sets() -> None:
    a, b = random(TOKENS, WIDTH), random(TOKENS, WIDTH, seed=1)
    halves = (rates.coding_rate(a) + rates.coding_rate(b)) / 2
    same(rates.rate_distance(a, b), rates.coding_rate(torch.cat([a, b])) - halves)
    same(rates.rate_distance(b, a), rates.rate_distance(a, b))
    assert rates.rate_distance(a, b) > 0
    same(rates.rate_distance(a, a.flip(0)), torch.tensor(0.0))
    same(rates.rate_distance(a, rotation(TOKENS) @ a), torch.tensor(0.0))


def test_the_distance_of_sets_of_different_sizes() -> None:
    a, b = random(TOKENS, WIDTH), random(4, WIDTH, seed=1)
    total = TOKENS + 4
    parts = TOKENS / total * rates.coding_rate(a) + 4 / total * rates.coding_rate(b)
    same(rates.rate_distance(a, b), rates.coding_rate(torch.cat([a, b])) - parts)
    same(rates.rate_distance(a, torch.cat([a, a])), torch.tensor(0.0))


# --------------------------------------------------------------- gradients


def gradients() -> list[tuple[Callable[..., Tensor], Callable[..., Tensor]]]:
    u = random(SUBSPACES, RANK, WIDTH, seed=1)
    return [
        (rates.coding_rate, rates.coding_rate_gradient),
        (
            partial(rates.subspace_rate, subspaces_kpd=u),
            partial(rates.subspace_rate_gradient, subspaces_kpd=u),
        ),
        *(
            (
                partial(rates.rate_reduction, membership=membership),
                partial(rates.rate_reduction_gradient, membership=membership),
            )
            for membership in (labels(), shares())
        ),
    ]


@pytest.mark.parametrize(("rate", "gradient"), gradients())
@pytest.mark.parametrize("eps", [0.1, 0.5])
def test_gradients_are_autograds(
    rate: Callable[..., Tensor], gradient: Callable[..., Tensor], eps: float
) -> None:
    z = random(BATCH, TOKENS, WIDTH).requires_grad_()
    (expected,) = torch.autograd.grad(rate(z, eps=eps).sum(), z)
    same(gradient(z, eps=eps), expected)


def test_gradients_of_fewer_tokens_than_dimensions() -> None:
    z, u = random(2, WIDTH).requires_grad_(), random(SUBSPACES, RANK, WIDTH, seed=1)
    total = rates.coding_rate(z) + rates.subspace_rate(z, u)
    (expected,) = torch.autograd.grad(total, z)
    same(rates.coding_rate_gradient(z) + rates.subspace_rate_gradient(z, u), expected)


def test_everything_can_be_differentiated() -> None:
    z = random(5, 3).requires_grad_()
    u = random(2, 2, 3, seed=1).requires_grad_()
    scores = random(5, 2, seed=2).requires_grad_()

    def reduction(z_nd: Tensor, scores_nc: Tensor) -> Tensor:
        return rates.rate_reduction(z_nd, scores_nc.softmax(-1))

    assert torch.autograd.gradcheck(rates.coding_rate, (z,))
    assert torch.autograd.gradcheck(rates.subspace_rate, (z, u))
    assert torch.autograd.gradcheck(reduction, (z, scores))
    assert torch.autograd.gradcheck(rates.published_rate, (random(2, 3, 4, 3).requires_grad_(),))
    assert torch.autograd.gradcheck(rates.subspace_rate_gradient, (z, u))


def test_gradients_are_finite_at_zero() -> None:
    zero = torch.zeros(TOKENS, WIDTH, dtype=torch.float64, requires_grad=True)
    one_hot = torch.nn.functional.one_hot(labels()).double().requires_grad_()
    rate = rates.coding_rate(rates.unit_tokens(zero)) + rates.rate_reduction(zero + 1, one_hot)
    for gradient in torch.autograd.grad(rate, (zero, one_hot)):
        assert gradient.isfinite().all()


def test_a_step_against_the_gradient_compresses() -> None:
    """For κ < 2/L: L = α, for one orthonormal basis in parts."""
    z, halves = random(TOKENS, 6), rotation(6).unflatten(0, (3, 2))
    alpha = 2 / (TOKENS * 0.5**2)
    after = z - 1.9 / alpha * rates.subspace_rate_gradient(z, halves)
    assert rates.subspace_rate(after, halves) < rates.subspace_rate(z, halves)


# ------------------------------------------------------------------- types


@pytest.mark.parametrize("eps", [0.1, 0.5])
@pytest.mark.parametrize("agree", [False, True])
def test_float32_is_as_good_as_its_tokens(eps: float, agree: bool) -> None:
    """At the size of a ViT-B: all that is lost is the rounding of the result, even where the tokens nearly agree."""
    z = rates.unit_tokens(random(197, 768) + (100 * random(768, seed=1) if agree else 0)).float()
    u = rotation(768).unflatten(0, (12, 64)).float()
    for rate in (rates.coding_rate, partial(rates.subspace_rate, subspaces_kpd=u)):
        single, double = rate(z, eps=eps), rate(z.double(), eps=eps)
        assert single.dtype == torch.float32
        same(single, double, atol=ROUNDING * double.item())
    double = rates.coding_rate_gradient(z.double(), eps)
    assert (rates.coding_rate_gradient(z, eps) - double).norm() < ROUNDING * double.norm()
    # The products with U, in float32, sum 768 terms, whose errors add up like a random walk. Between the two products
    # stands a function that stretches by at most α.
    double, alpha = rates.subspace_rate_gradient(z.double(), u.double(), eps), 64 / (197 * eps**2)
    error = (rates.subspace_rate_gradient(z, u, eps) - double).norm()
    assert error < ROUNDING * 768**0.5 * (alpha * z.norm() + double.norm())


@pytest.mark.parametrize("eps", [0.1, 0.5])
def test_rounding_the_tokens_moves_the_rate_little(eps: float) -> None:
    """Of unit tokens in general position: R moves by at most a rounding for each of min(N, d) = 197 directions."""
    z = rates.unit_tokens(random(197, 768))
    rate = rates.coding_rate(z, eps)
    same(rates.coding_rate(z.float(), eps), rate, atol=ROUNDING * (197 + rate.item()))


def test_half_precision_and_autocast() -> None:
    z, u = random(TOKENS, WIDTH), random(SUBSPACES, RANK, WIDTH, seed=1).bfloat16()
    half = z.bfloat16()
    assert rates.coding_rate(half).dtype == torch.float32
    assert rates.coding_rate_gradient(half).dtype == torch.bfloat16
    assert rates.rate_reduction_gradient(half, labels()).dtype == torch.bfloat16
    exact = rates.subspace_rate(half.double(), u.double())
    step = rates.subspace_rate_gradient(half.float(), u.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        same(rates.subspace_rate(half, u), exact, atol=ROUNDING * exact.item())
        same(rates.subspace_rate_gradient(half.float(), u.float()), step, atol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_rates_on_a_gpu() -> None:
    z, u = random(BATCH, TOKENS, WIDTH), random(SUBSPACES, RANK, WIDTH, seed=1)
    for function, arguments in (
        (rates.sparse_rate_reduction, (z, u, 0.1)),
        (rates.subspace_rate_gradient, (z, u)),
        (rates.rate_reduction, (z, labels())),
        (rates.rate_reduction_gradient, (z, shares())),
        (rates.rate_distance, (z, z[:, 1:])),
    ):
        there = [part.cuda() if isinstance(part, Tensor) else part for part in arguments]
        same(function(*there).cpu(), function(*arguments))


# ------------------------------------------------------------------- edges


@pytest.mark.parametrize(("tokens", "width"), [(1, 1), (1, WIDTH), (TOKENS, 1)])
def test_the_smallest_sizes(tokens: int, width: int) -> None:
    z = random(tokens, width)
    same(rates.coding_rate(z), reference_rate(z.T, 0.5))
    same(rates.subspace_rate(z, torch.ones(1, 1, width)), rates.coding_rate(z.sum(1, keepdim=True)))
    same(rates.rate_reduction(z, torch.zeros(tokens, dtype=torch.long)), torch.tensor(0.0))
    assert rates.coding_rate_gradient(z).shape == z.shape


def test_tokens_of_length_one() -> None:
    z = random(TOKENS, WIDTH)
    z[3] = 0
    unit = rates.unit_tokens(z)
    same(unit.norm(dim=-1), (torch.arange(TOKENS) != 3).double())
    same(unit * z.norm(dim=-1, keepdim=True), z)


Z, U = torch.ones(6, 4), torch.ones(3, 2, 4)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: rates.coding_rate(Z, eps=0), "eps must be a positive number, not 0"),
        (lambda: rates.coding_rate(Z, eps=-0.5), "eps must be a positive number, not -0.5"),
        (lambda: rates.coding_rate_gradient(Z, eps=float("nan")), "eps must be a positive number, not nan"),
        (lambda: rates.published_rate(Z, eps=float("inf")), "eps must be a positive number, not inf"),
        (lambda: rates.coding_rate(Z[0]), "z must be (…, N, d), at least one token as rows, not (4)"),
        (lambda: rates.coding_rate(Z[:0]), "z must be (…, N, d), at least one token as rows, not (0, 4)"),
        (lambda: rates.coding_rate(Z.long()), "z must hold real numbers, not int64"),
        (lambda: rates.sparse_rate_reduction(Z.long(), U, 0.1), "z must hold real numbers, not int64"),
        (lambda: rates.unit_tokens(Z.long()), "z must hold real numbers, not int64"),
        (lambda: rates.coding_rate(Z * torch.nan), "not finite, or too large for this eps"),
        (lambda: rates.coding_rate_gradient(Z * torch.inf), "not finite, or too large for this eps"),
        (
            lambda: rates.projected_rate(Z),
            "w must be (…, K, N, p): tokens in K subspaces of rank p, not (6, 4)",
        ),
        (
            lambda: rates.subspace_rate(Z, U[..., :3]),
            "subspaces must be (K, p, 4) for tokens of width 4, not (3, 2, 3)",
        ),
        (
            lambda: rates.subspace_rate_gradient(Z, U[0]),
            "subspaces must be (K, p, 4) for tokens of width 4, not (2, 4)",
        ),
        (
            lambda: rates.rate_reduction(Z, torch.zeros(5, dtype=torch.long)),
            "membership must be labels, whole numbers of shape (N) or (…, N), or shares, real numbers of shape "
            "(N, C) or (…, N, C); for tokens (6, 4) it cannot be int64 (5)",
        ),
        (lambda: rates.rate_reduction(Z, torch.zeros(6)), "it cannot be float32 (6)"),
        (
            lambda: rates.rate_reduction_gradient(Z, torch.ones(6, 2, dtype=torch.long)),
            "it cannot be int64 (6, 2)",
        ),
        (lambda: rates.rate_reduction(Z, torch.full((6,), -1)), "membership must not be negative"),
        (lambda: rates.rate_reduction(Z, torch.tensor([2.0, -1.0]).expand(6, 2)), "must not be negative"),
        (lambda: rates.rate_reduction(Z, torch.full((6, 2), torch.nan)), "must not be negative"),
        (
            lambda: rates.rate_reduction(Z, torch.ones(6, 2)),
            "membership must give each token shares in the classes that sum to 1",
        ),
        (
            lambda: rates.rate_distance(Z, Z[:, 1:]),
            "z1 and z2 may differ in N alone, but are (6, 4) and (6, 3)",
        ),
        (lambda: rates.rate_distance(Z, Z[None]), "z1 and z2 may differ in N alone"),
    ],
)
def test_what_does_not_fit_is_told(call: Callable[[], Tensor], said: str) -> None:
    with pytest.raises(ValueError) as caught:
        call()
    assert said in str(caught.value)


def test_the_package_alone_brings_no_torch() -> None:
    code = "import sys, crate_dsl; assert 'torch' not in sys.modules; from crate_dsl import rates; rates.coding_rate"
    subprocess.run([sys.executable, "-c", code], check=True)
