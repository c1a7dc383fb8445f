"""Coding rates: the nats it takes to describe tokens up to an error ε, and what is saved by describing them in parts.

Axes: B any number of leading axes, N tokens as rows, d width, K subspaces, p rank, C classes.

One convention of ε: `eps` is the ε of the formulas. Published code (CRATE's measurements, ReduNet, SimDINO) calls ε²
`eps`: its 0.01 is 0.1 here. Rates are in nats; divide by ln 2 for bits.

All of it is computed in float64: I + α ZᵀZ has condition numbers up to 1 + α ‖Z‖², and where tokens nearly agree, as
in deep layers, its Cholesky factor is wrong or does not exist in float32. Rates come back in the tokens' type, those of
half precision in float32; gradients in the tokens' type.

Every function raises ValueError if shapes do not fit, if `eps` is not a positive number, or if values are not finite.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "coding_rate",
    "coding_rate_gradient",
    "projected_rate",
    "published_rate",
    "rate_distance",
    "rate_reduction",
    "rate_reduction_gradient",
    "sparse_rate_reduction",
    "subspace_rate",
    "subspace_rate_gradient",
    "unit_tokens",
]

#: How far a token's shares may sum from 1: a softmax in bfloat16 keeps 8 bits of each share.
SHARES = 1e-2


# ---------------------------------------------------------------------- rates


def coding_rate(z_bnd: Tensor, eps: float = 0.5) -> Tensor:
    """R(Z) = ½ log det(I + d/(N ε²) Zᵀ Z): tokens (B, N, d) -> (B), in nats.

    Zero if and only if all tokens are. Source: Yu et al. 2020 (MCR²), arXiv 2006.08558.

    Args:
        z_bnd: Tokens as rows.
        eps: ε, the error allowed; published code passes ε².

    Raises:
        ValueError: see the module.

    >>> z = torch.eye(4)  # four tokens in four directions
    >>> round(coding_rate(z, eps=0.5).item(), 4), round(2 * math.log(1 + 1 / 0.5**2), 4)
    (3.2189, 3.2189)
    """
    _check(z_bnd, eps)
    tokens, width = z_bnd.shape[-2:]
    x_bnd = math.sqrt(width / (tokens * eps**2)) * z_bnd.double()
    # Sylvester: the determinant is the same on either side, so the smaller.
    gram = x_bnd @ x_bnd.mT if tokens <= width else x_bnd.mT @ x_bnd
    return _half_log_det(gram).to(_precision(z_bnd))


def subspace_rate(z_bnd: Tensor, subspaces_kpd: Tensor, eps: float = 0.5) -> Tensor:
    """Rᶜ(Z | U) = Σ_k ½ log det(I + p/(N ε²) (U_kᵀZ)ᵀ(U_kᵀZ)): tokens (B, N, d), bases (K, p, d) -> (B), in nats.

    Zero if and only if every token is orthogonal to every basis. Source: Yu et al. 2023 (CRATE), arXiv 2311.13110.

    Args:
        z_bnd: Tokens as rows.
        subspaces_kpd: U_1 … U_K, each row a basis vector; the weight `subspaces` of `compress`, unflattened.
        eps: ε, the error allowed; published code passes ε².

    Raises:
        ValueError: see the module.

    >>> halves = torch.eye(4).unflatten(0, (2, 2))  # two subspaces of rank 2 that span
    >>> round(subspace_rate(torch.eye(4), halves, eps=0.5).item(), 4), round(2 * math.log(1 + 2), 4)
    (2.1972, 2.1972)
    """
    _check_subspaces(z_bnd, subspaces_kpd, eps)
    return projected_rate(_project(z_bnd.double(), subspaces_kpd.double()), eps).to(_precision(z_bnd))


def projected_rate(w_bknp: Tensor, eps: float = 0.5) -> Tensor:
    """Rᶜ of tokens that are projected already, w_k = U_kᵀ z: (B, K, N, p) -> (B), in nats.

    Args:
        w_bknp: The tokens in the coordinates of each subspace.
        eps: ε, the error allowed; published code passes ε².

    Raises:
        ValueError: see the module.

    >>> projected_rate(torch.zeros(5, 2, 7, 3)).tolist()
    [0.0, 0.0, 0.0, 0.0, 0.0]
    """
    _check(w_bknp, eps, "w")
    if w_bknp.ndim < 3:
        raise ValueError(f"w must be (…, K, N, p): tokens in K subspaces of rank p, not {_shape(w_bknp)}")
    return coding_rate(w_bknp.double(), eps).sum(-1).to(_precision(w_bknp))


def published_rate(w_bknp: Tensor, eps: float = 0.1) -> Tensor:
    """Rᶜ as CRATE's layer-by-layer curves measure it: (B, K, N, p) -> (B), in nats.

    Each token is given length 1 in each subspace. The published curves are of w = U_kᵀ norm(Z), what a layer's
    `compress` projects, class token included. A token of zeros stays zero here; there, the rate is not a number then.
    Source: the code of Yu et al. 2023 (CRATE), arXiv 2311.13110, whose `eps = 0.01` is ε².

    Args:
        w_bknp: The tokens in the coordinates of each subspace.
        eps: ε, the error allowed.

    Raises:
        ValueError: see the module.

    >>> w = torch.tensor([[[3.0, 4.0]]])  # one subspace, one token
    >>> round(published_rate(w).item(), 4), round(0.5 * math.log(1 + 2 / 0.01), 4)
    (2.6517, 2.6517)
    """
    return projected_rate(unit_tokens(w_bknp), eps)


def rate_reduction(z_bnd: Tensor, membership: Tensor, eps: float = 0.5) -> Tensor:
    """ΔR(Z, Π) = R(Z) - Σ_k tr(Π_k)/(2N) log det(I + d/(tr(Π_k) ε²) Zᵀ Π_k Z): what classes save.

    Never negative but for rounding; zero if and only if all classes have the same second moments. Classes without
    members count as nothing. Source: Yu et al. 2020 (MCR²), arXiv 2006.08558.

    Args:
        z_bnd: Tokens, or features of samples, as rows: (B, N, d).
        membership: Labels, whole numbers from 0, of shape (N) or (B, N); or the shares of each token in the classes,
            real numbers from 0 with sum 1, of shape (N, C) or (B, N, C).
        eps: ε, the error allowed; published code passes ε².

    Returns:
        ΔR of shape (B), in nats.

    Raises:
        ValueError: see the module; labels or shares that are negative, do not match the tokens or do not sum to 1.

    >>> z = torch.eye(4)
    >>> round(rate_reduction(z, torch.tensor([0, 0, 1, 1])).item(), 4)  # 2 log 5 - log 9
    1.0217
    >>> round(rate_reduction(z, torch.full((4, 2), 0.5)).item(), 4)  # both classes are the whole
    0.0
    """
    _check(z_bnd, eps)
    _check_membership(z_bnd, membership)
    tokens, width = z_bnd.shape[-2:]
    x_bnd = z_bnd.double()
    rate_b = coding_rate(x_bnd, eps)
    if membership.ndim == 1:
        for label in membership.unique():
            members_bmd = x_bnd[..., membership == label, :]
            rate_b = rate_b - members_bmd.shape[-2] / tokens * coding_rate(members_bmd, eps)
        return rate_b.to(_precision(z_bnd))
    # Of the two sides of the determinant, only this one is smooth where shares are zero.
    for share_bn1, count_b in _classes(membership, x_bnd):
        gram_bdd = width / (_or_one(count_b)[..., None, None] * eps**2) * (share_bn1 * x_bnd).mT @ x_bnd
        rate_b = rate_b - count_b / tokens * _half_log_det(gram_bdd)
    return rate_b.to(_precision(z_bnd))


def sparse_rate_reduction(z_bnd: Tensor, subspaces_kpd: Tensor, penalty: float, eps: float = 0.5) -> Tensor:
    """R(Z) - Rᶜ(Z | U) - λ · mean |Z|: what CRATE is to maximise: (B, N, d), (K, p, d) -> (B), in nats.

    With the mean of all N d entries, not their sum, so that λ means the same at every size. Tokens are taken as they
    are; give it normalised ones, for scale alone raises R. Source: Yu et al. 2023 (CRATE), arXiv 2311.13110, with its
    ℓ⁰ relaxed to ℓ¹.

    Args:
        z_bnd: Tokens as rows.
        subspaces_kpd: U_1 … U_K, each row a basis vector.
        penalty: λ.
        eps: ε, the error allowed; published code passes ε².

    Raises:
        ValueError: see the module.

    >>> halves = torch.eye(4).unflatten(0, (2, 2))
    >>> round(sparse_rate_reduction(torch.eye(4), halves, penalty=0.1).item(), 4)  # 2 log 5 - 2 log 3 - 0.1 / 4
    0.9967
    """
    _check_subspaces(z_bnd, subspaces_kpd, eps)
    x_bnd = z_bnd.double()
    reduction_b = coding_rate(x_bnd, eps) - subspace_rate(x_bnd, subspaces_kpd, eps)
    return (reduction_b - penalty * x_bnd.abs().mean((-2, -1))).to(_precision(z_bnd))


def rate_distance(z1_bnd: Tensor, z2_bnd: Tensor, eps: float = 0.5) -> Tensor:
    """ΔR(Z₁, Z₂) = R(Z₁ ∪ Z₂) - ½ (R(Z₁) + R(Z₂)): (B, N₁, d) and (B, N₂, d) -> (B), in nats.

    Never negative but for rounding; zero if and only if the second moments ZᵀZ/N agree. Where N₁ and N₂ differ, each
    set's rate counts by its share of the union, N₁/N and N₂/N, and both statements stay true. Source: Dai et al. 2022
    (CTRL), arXiv 2111.06636.

    Args:
        z1_bnd: Tokens, or features of samples, as rows.
        z2_bnd: Others of the same width, with the same leading axes.
        eps: ε, the error allowed; published code passes ε².

    Raises:
        ValueError: see the module.

    >>> z = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    >>> abs(rate_distance(z, -z.flip(0)).item()) < 1e-12, rate_distance(z, 2 * z).item() > 0
    (True, True)
    """
    _check(z1_bnd, eps, "z1")
    _check(z2_bnd, eps, "z2")
    if (z1_bnd.shape[:-2], z1_bnd.shape[-1]) != (z2_bnd.shape[:-2], z2_bnd.shape[-1]):
        raise ValueError(f"z1 and z2 may differ in N alone, but are {_shape(z1_bnd)} and {_shape(z2_bnd)}")
    union_bnd = torch.cat([z1_bnd, z2_bnd], dim=-2)
    second = torch.arange(union_bnd.shape[-2], device=union_bnd.device) >= z1_bnd.shape[-2]
    return rate_reduction(union_bnd, second, eps)


def unit_tokens(z_bnd: Tensor) -> Tensor:
    """Each token divided by its length: (…, d) -> the same. Tokens of zeros stay zero, and their gradients finite.

    Raises:
        ValueError: tokens of whole numbers.

    >>> unit_tokens(torch.tensor([[0.0, -2.0], [0.0, 0.0]])).tolist()
    [[0.0, -1.0], [0.0, 0.0]]
    """
    _check_real(z_bnd, "z")
    return z_bnd / _or_one(torch.linalg.vector_norm(z_bnd, dim=-1, keepdim=True))


# ------------------------------------------------------------------ gradients


def coding_rate_gradient(z_bnd: Tensor, eps: float = 0.5) -> Tensor:
    """∇R(Z) = α Z (I + α Zᵀ Z)⁻¹ with α = d/(N ε²): (B, N, d) -> the same.

    Source: Chan et al. 2022 (ReduNet), arXiv 2105.10446.

    Args:
        z_bnd: Tokens as rows.
        eps: ε, the error allowed; published code passes ε².

    Raises:
        ValueError: see the module.

    >>> torch.allclose(coding_rate_gradient(torch.eye(4)), 4 / (1 + 4) * torch.eye(4))
    True
    """
    _check(z_bnd, eps)
    tokens, width = z_bnd.shape[-2:]
    alpha = width / (tokens * eps**2)
    x_bnd = z_bnd.double()
    if tokens <= width:
        step_bnd = torch.cholesky_solve(x_bnd, _cholesky(alpha * x_bnd @ x_bnd.mT))
    else:
        step_bnd = torch.cholesky_solve(x_bnd.mT, _cholesky(alpha * x_bnd.mT @ x_bnd)).mT
    return (alpha * step_bnd).to(z_bnd)


def subspace_rate_gradient(z_bnd: Tensor, subspaces_kpd: Tensor, eps: float = 0.5) -> Tensor:
    """∇Rᶜ(Z) = α Σ_k U_k (I + α W_k W_kᵀ)⁻¹ W_k with W_k = U_kᵀ Z, α = p/(N ε²): (B, N, d), (K, p, d) -> (B, N, d).

    The matrices are p × p, so the cost is linear in N. Z - κ ∇Rᶜ(Z) is the step that CRATE's attention approximates; as
    it may be a layer, the products with U are left in the tokens' type, or float32, also under autocast. Source: Yu et
    al. 2023 (CRATE), arXiv 2311.13110, eq. 31.

    Args:
        z_bnd: Tokens as rows.
        subspaces_kpd: U_1 … U_K, each row a basis vector.
        eps: ε, the error allowed; published code passes ε².

    Raises:
        ValueError: see the module.

    >>> halves = torch.eye(4).unflatten(0, (2, 2))
    >>> torch.allclose(subspace_rate_gradient(torch.eye(4), halves), 2 / (1 + 2) * torch.eye(4))
    True
    """
    _check_subspaces(z_bnd, subspaces_kpd, eps)
    with torch.autocast(z_bnd.device.type, enabled=False):
        x_bnd = z_bnd.to(_precision(z_bnd))
        u_kpd = subspaces_kpd.to(x_bnd)
        # Rᶜ is a sum of R over subspaces, so its gradient is theirs, carried back by each basis.
        step_bknp = coding_rate_gradient(_project(x_bnd, u_kpd), eps)
        return torch.einsum("...knp,kpd->...nd", step_bknp, u_kpd).to(z_bnd)


def rate_reduction_gradient(z_bnd: Tensor, membership: Tensor, eps: float = 0.5) -> Tensor:
    """∇ΔR(Z, Π) = α Z (I + α Zᵀ Z)⁻¹ - α Σ_k Π_k Z (I + α_k Zᵀ Π_k Z)⁻¹: tokens (B, N, d) -> the same.

    With α = d/(N ε²) and α_k = d/(tr(Π_k) ε²). The step of a ReduNet layer, whose E and C_k are what stands right of Z.
    Source: Chan et al. 2022 (ReduNet), arXiv 2105.10446.

    Args:
        z_bnd: Tokens, or features of samples, as rows.
        membership: Labels or shares, as for `rate_reduction`.
        eps: ε, the error allowed; published code passes ε².

    Raises:
        ValueError: as for `rate_reduction`.

    >>> gradient = rate_reduction_gradient(torch.eye(4), torch.tensor([0, 0, 1, 1]))
    >>> torch.allclose(gradient, (4 / (1 + 4) - 4 / (1 + 8)) * torch.eye(4))
    True
    """
    _check(z_bnd, eps)
    _check_membership(z_bnd, membership)
    tokens, width = z_bnd.shape[-2:]
    x_bnd = z_bnd.double()
    gradient_bnd = coding_rate_gradient(x_bnd, eps)
    for share_bn1, count_b in _classes(membership, x_bnd):
        part_bnd = share_bn1 * x_bnd
        gram_bdd = width / (_or_one(count_b)[..., None, None] * eps**2) * part_bnd.mT @ x_bnd
        step_bnd = torch.cholesky_solve(part_bnd.mT, _cholesky(gram_bdd)).mT
        gradient_bnd = gradient_bnd - width / (tokens * eps**2) * step_bnd
    return gradient_bnd.to(z_bnd)


# ---------------------------------------------------------------------- parts


def _half_log_det(gram: Tensor) -> Tensor:
    """½ log det(I + gram): (B, m, m) -> (B)."""
    return _cholesky(gram).diagonal(dim1=-2, dim2=-1).log().sum(-1)


def _cholesky(gram: Tensor) -> Tensor:
    """The lower factor of I + gram."""
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    try:
        return torch.linalg.cholesky(identity + gram)
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]  # public, but not in its __all__
        raise ValueError("the tokens have values that are not finite, or too large for this eps") from error


def _project(z_bnd: Tensor, subspaces_kpd: Tensor) -> Tensor:
    """U_kᵀ z for every token and subspace: (B, K, N, p)."""
    return torch.einsum("...nd,kpd->...knp", z_bnd, subspaces_kpd)


def _classes(membership: Tensor, z_bnd: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Each class's share of every token, (B, N, 1), and how many tokens that makes, (B)."""
    if not membership.is_floating_point():
        membership = F.one_hot(membership.unique(return_inverse=True)[1])
    for share_bn in membership.to(z_bnd).unbind(-1):
        yield share_bn[..., None], share_bn.sum(-1)


def _or_one(divisor: Tensor) -> Tensor:
    """A divisor, or 1 where it is zero, and so is what it divides."""
    return divisor.masked_fill(divisor == 0, 1)


def _precision(z: Tensor) -> torch.dtype:
    """The type of the tokens, or float32 if theirs is a half."""
    return torch.promote_types(z.dtype, torch.float32)


# --------------------------------------------------------------------- checks


def _shape(tensor: Tensor) -> str:
    return f"({', '.join(map(str, tensor.shape))})"


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _check_real(z: Tensor, name: str) -> None:
    if not z.is_floating_point():
        raise ValueError(f"{name} must hold real numbers, not {_type(z)}")


def _check(z_bnd: Tensor, eps: float, name: str = "z") -> None:
    _check_real(z_bnd, name)
    if z_bnd.ndim < 2 or 0 in z_bnd.shape[-2:]:
        raise ValueError(f"{name} must be (…, N, d), at least one token as rows, not {_shape(z_bnd)}")
    if not 0 < eps < math.inf:
        raise ValueError(f"eps must be a positive number, not {eps}")


def _check_subspaces(z_bnd: Tensor, subspaces_kpd: Tensor, eps: float) -> None:
    _check(z_bnd, eps)
    _check_real(subspaces_kpd, "subspaces")
    width = z_bnd.shape[-1]
    if subspaces_kpd.ndim != 3 or subspaces_kpd.shape[-1] != width or 0 in subspaces_kpd.shape:
        raise ValueError(
            f"subspaces must be (K, p, {width}) for tokens of width {width}, not {_shape(subspaces_kpd)}"
        )


def _check_membership(z_bnd: Tensor, membership: Tensor) -> None:
    soft = membership.is_floating_point()
    classes = membership.shape[-1:] if soft else ()
    fits = [(*tokens, *classes) for tokens in (z_bnd.shape[-2:-1], z_bnd.shape[:-1])]
    if membership.is_complex() or tuple(membership.shape) not in fits:
        raise ValueError(
            "membership must be labels, whole numbers of shape (N) or (…, N), or shares, real numbers of shape "
            f"(N, C) or (…, N, C); for tokens {_shape(z_bnd)} it cannot be {_type(membership)} {_shape(membership)}"
        )
    if torch.compiler.is_compiling():  # a compiled program does not stop to look at values
        return
    if not bool((membership >= 0).all()):
        raise ValueError("membership must not be negative")
    if soft and not bool(((membership.double().sum(-1) - 1).abs() < SHARES).all()):
        raise ValueError("membership must give each token shares in the classes that sum to 1")
