"""What is measured of a layer. Axes: B images, K subspaces or heads, N tokens, p rank, d width, s codes, m vectors."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from crate_dsl.compiler.rates import coding_rate, projected_rate, unit_tokens

#: ε of the published curves of Rᶜ (their code passes ε² = 0.01).
PUBLISHED_EPS = 0.1
#: ε of R and of the rate reduction: that of MCR² and of the language's `compress`.
EPS = 0.5


@dataclass(frozen=True)
class Measure:
    """A number for each image, as its mean and its standard deviation."""

    mean: float
    std: float


@dataclass
class Samples:
    """A number for each image, gathered batch by batch."""

    values: list[float] = field(default_factory=list)

    def add(self, values_b: Tensor) -> None:
        self.values += values_b.double().flatten().tolist()

    def measure(self) -> Measure:
        values_n = torch.tensor(self.values, dtype=torch.float64)
        return Measure(float(values_n.mean()), float(values_n.std()) if len(values_n) > 1 else 0.0)

    def share_below(self, other: Samples) -> float:
        """The share of images whose number here is smaller than there."""
        pairs = list(zip(self.values, other.values, strict=True))
        return sum(mine < theirs for mine, theirs in pairs) / len(pairs)


# ------------------------------------------------------------------ of activations


def tokens_rate(z_bnd: Tensor) -> Tensor:
    """R of tokens that are scaled to length 1 each: (B, N, d) -> (B)."""
    return coding_rate(unit_tokens(z_bnd.double()), EPS)


def reduction(x_bnd: Tensor, w_bknp: Tensor) -> Tensor:
    """R(X) - Rᶜ(X | U) of tokens X scaled to length 1 each, with w = U_kᵀ x: (B, N, d), (B, K, N, p) -> (B)."""
    x_bnd, w_bknp = x_bnd.double(), w_bknp.double()
    length_bn1 = torch.linalg.vector_norm(x_bnd, dim=-1, keepdim=True)
    length_bn1 = length_bn1.masked_fill(length_bn1 == 0, 1)
    return coding_rate(x_bnd / length_bn1, EPS) - projected_rate(w_bknp / length_bn1[:, None], EPS)


def nonzero(code_bns: Tensor) -> Tensor:
    """‖A‖₀ / (s N), the share of a code's entries that are not exactly zero: (B, N, s) -> (B)."""
    return (code_bns != 0).flatten(1).double().mean(1)


# ------------------------------------------------------------------ of weights


@dataclass(frozen=True)
class Incoherence:
    """How far vectors are from being orthonormal.

    `deviation` is ‖G - I‖₂ of their Gram matrix G; `coherence` the largest |cosine| between two of them; `random` the
    same of as many random directions.
    """

    vectors: int
    deviation: float
    coherence: float
    random: float


def incoherence(vectors_md: Tensor) -> Incoherence:
    """Of vectors as rows: the basis vectors of all subspaces, or the atoms of a dictionary."""
    rows_md = vectors_md.detach().double().cpu()
    count, width = rows_md.shape
    # G has the eigenvalues of the smaller of its two sides; if it is the larger, the others are zero.
    smaller = rows_md @ rows_md.T if count <= width else rows_md.T @ rows_md
    deviation = (torch.linalg.eigvalsh(smaller) - 1).abs().max().clamp(min=0.0 if count <= width else 1.0)
    generator = torch.Generator().manual_seed(0)
    chance_md = torch.randn(rows_md.shape, generator=generator, dtype=torch.float64)
    return Incoherence(count, float(deviation), _coherence(rows_md), _coherence(chance_md))


def _coherence(rows_md: Tensor) -> float:
    unit_md = unit_tokens(rows_md)
    cosine_mm = (unit_md @ unit_md.T).abs().fill_diagonal_(0)
    return float(cosine_mm.max())
