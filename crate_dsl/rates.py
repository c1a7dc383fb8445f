"""Coding rates of tokens and their gradients, in torch: what CRATE's layers are derived from, and measured by."""

from crate_dsl.compiler.rates import (
    coding_rate,
    coding_rate_gradient,
    projected_rate,
    published_rate,
    rate_distance,
    rate_reduction,
    rate_reduction_gradient,
    sparse_rate_reduction,
    subspace_rate,
    subspace_rate_gradient,
    unit_tokens,
)

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
