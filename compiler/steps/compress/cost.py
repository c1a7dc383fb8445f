"""What a step costs: operations for one sample, 2 for each multiply-add."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crate_dsl.compiler.steps.norm.operator import NoNorm

if TYPE_CHECKING:
    from crate_dsl.compiler.steps.compress.operator import SubspaceStep


def operations(op: SubspaceStep, count: int, width: int) -> tuple[int, int]:
    """Once for each use, and for each evaluation of the branch on so many tokens."""
    inner = op.subspaces * op.rank
    norm = 0 if isinstance(op.norm, NoNorm) else 5 * count * width
    maps = 2 * 2 * count * width * inner
    return _of_the_spectral_norm(op, width), norm + maps + _of_the_meeting(op, count)


def _of_the_meeting(op: SubspaceStep, count: int) -> int:
    """Of what lets the projected tokens meet."""
    inner = op.subspaces * op.rank
    if op.attends:
        return 2 * 2 * count * count * inner
    if op.gradient == "statistics":
        # Of each entry the square and its sum, its share and their sum, its part of the mean and their sum, and of the
        # result a product, a sum and a quotient; a softmax over subspaces.
        return 9 * count * inner + 5 * count * op.subspaces
    if op.gradient == "representatives":
        cells = count if op.pool is None else op.pool.count
        pooled = 0 if op.pool is None else count * inner
        return pooled + 2 * 3 * count * cells * inner + 2 * 2 * cells * cells * inner
    # W Wᵀ; its product with W, or a Cholesky factor of p³/3 and two triangular solves.
    factor = op.subspaces * op.rank**3 // 3 if op.gradient == "exact" else 0
    return 2 * 2 * count * op.rank * inner + factor


def _of_the_spectral_norm(op: SubspaceStep, width: int) -> int:
    """‖U‖₂ of free bases: the smaller of UᵀU and U Uᵀ, and its eigenvalues by reduction to tridiagonal form."""
    if op.fraction is None or op.constraint == "orthonormal":
        return 0
    inner = op.subspaces * op.rank
    small = min(inner, width)
    return 2 * inner * width * small + 4 * small**3 // 3
