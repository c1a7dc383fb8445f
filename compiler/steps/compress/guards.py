"""What the mathematics of a derived step warns of, as far as it can be known without the weights."""

from __future__ import annotations

from math import sqrt
from typing import TYPE_CHECKING

from crate_dsl.compiler.operators import Guard
from crate_dsl.compiler.steps.norm.operator import NoNorm

if TYPE_CHECKING:
    from crate_dsl.compiler.steps.compress.operator import SubspaceStep


def guards(op: SubspaceStep, count: int, width: int) -> tuple[Guard, ...]:
    """The warnings of a step on at most `count` tokens: at the longest input, where α is smallest."""
    found = []
    alpha, orthonormal = op.alpha(count), op.constraint == "orthonormal"
    rate = op.fraction
    if rate is None and orthonormal and isinstance(op.step, float):
        rate = op.step * alpha
    if op.spectral and rate is not None and rate >= 1:
        found.append(_of_the_step(op, rate, alpha))
    if op.gradient == "neumann":
        found += _of_the_radius(op, count, width)
    return tuple(found)


def _of_the_step(op: SubspaceStep, rate: float, alpha: float) -> Guard:
    if op.fraction is None:
        shown = f"κα‖U‖₂² = {op.step:g} · {alpha:.3g} = {rate:.3g}"
        one, two = (f"{limit / alpha:.3g}" for limit in (1, 2))
    else:
        shown, one, two = f"κα‖U‖₂² = {rate:g}", "relative(1)", "relative(2)"
    if rate >= 2:
        message = f"this step increases the rate of small tokens: {shown}, and it descends only below 2"
        return Guard("W0811", message, f"a step below {two}; to undo it as well, below {one}", at="step")
    message = f"this step descends, but cannot be undone: {shown}, and it is one to one only below 1"
    return Guard("W0810", message, f"a step below {one} can be undone", at="step")


def _of_the_radius(op: SubspaceStep, count: int, width: int) -> list[Guard]:
    """The Neumann series of (I + α WᵀW)⁻¹ converges where α‖W_k‖₂² < 1, and nowhere else."""
    if isinstance(op.norm, NoNorm):
        message = (
            "`gradient = neumann` holds where α‖U_kᵀZ‖₂² < 1, and nothing bounds the size of tokens that are "
            "not normalised"
        )
        return [Guard("W0813", message, "`gradient = exact` holds for tokens of every size", at="norm")]
    if op.constraint == "none" or op.subspaces * op.rank != width:
        return []
    # Orthonormal bases that span keep the size of normalised tokens: Σ_k ‖W_k‖_F² = N d. So one W_k, which has
    # min(p, N) singular values, has one with ‖W_k‖₂² ≥ N d / (K min(p, N)); none has more than N d.
    least = op.alpha(count) * count * width / (op.subspaces * min(op.rank, count))
    if least < 1:
        return []
    enough = sqrt(op.rank * width)
    message = (
        "`gradient = neumann` is outside of its radius of convergence: it needs α‖U_kᵀX‖₂² < 1, and of "
        f"normalised tokens some subspace has at least {least:.3g}"
    )
    help = (
        f"`gradient = exact` has no such radius; `eps` of at least {op.eps * sqrt(least):.3g} may be enough, "
        f"above {enough:.3g} is"
    )
    return [Guard("W0812", message, help, at="gradient")]
