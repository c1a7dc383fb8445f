"""`flow`: the gradient flow of the coding rate against K learned subspaces, over a span of time."""

from __future__ import annotations

from math import exp
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from crate_dsl.compiler.operators import (
    Certificate,
    FixedPoint,
    Guard,
    Inverse,
    Iterations,
    LearnedInverse,
    Mistake,
    Mode,
    NoInverse,
    Operator,
    Positive,
    TiedInverse,
    Typing,
    Weight,
    Whole,
)
from crate_dsl.compiler.steps.compress.operator import bases_of, check_orthonormal
from crate_dsl.compiler.steps.norm.operator import width_of
from crate_dsl.compiler.types import TensorType

#: Evaluations of the gradient in one step of a solver.
STAGES = {"euler": 1, "heun": 2, "rk4": 4}
#: The largest h·λ at which a solver still damps y' = -λ y.
STABLE = {"euler": 2.0, "heun": 2.0, "rk4": 2.785}

#: Newton steps on ln ω + ω = c, from min(c, ln max(c, 1)), which is off by at most 0.57 in ln ω, and then on
#: q = ln(ω / y), which loses no digits where y is small. Each squares the error: all six reach float64's rounding.
OMEGA_STEPS, POLISHING_STEPS = 4, 2


class Flow(Operator):
    """Integrates dZ = -∇Rᶜ(Z | U) dt over `time`, in `steps` equal steps: denoising; with `time` below 0, diffusion.

    `euler` is of first order: one step of it is `compress(gradient = exact, norm = none, step = time / steps)`. `heun`
    is of second, `rk4` of fourth order. Small tokens fall like e^(-αt) with α = rank / (N eps²) for N tokens, squares
    of large ones linearly. `bases` takes a `learn` of shape [subspaces * rank, dim], which a `compress` may share.

    `solver = exact` takes no steps: with `constraint = orthonormal` every singular value s of U_kᵀ Z moves by itself,
    and y = α s² obeys y e^y = y₀ e^(y₀ - 2αt). What no subspace sees rests.

    Undone, it is the same flow back in time: to the order of its solver, and with `exact` for certain.
    """

    word: ClassVar[str] = "flow"
    formula: ClassVar[str] = r"\dot Z = -\nabla R^c(Z \mid U_{[K]}),\quad Z(0) = Z \mapsto Z(t)"
    source: ClassVar[str] = (
        "structured denoising: Pai et al. 2024, Masked Completion via Structured Diffusion with White-Box "
        "Transformers, arXiv 2404.02446, section 3"
    )

    subspaces: Whole
    rank: Whole
    time: Annotated[float, Field(allow_inf_nan=False)]
    steps: Iterations | None = None
    solver: Literal["euler", "heun", "rk4", "exact"] = "rk4"
    eps: Positive = 0.5
    constraint: Literal["none", "orthonormal"] = "none"
    bases: Weight | None = None

    @property
    def count(self) -> int:
        """How many steps: four where nothing is written."""
        return self.steps or 4

    def infer(self, *inputs: TensorType) -> Typing:
        (tokens,) = inputs
        width = width_of(self.word, tokens)
        inner = self.subspaces * self.rank
        if self.constraint == "orthonormal":
            check_orthonormal(self.subspaces, self.rank, width)
        if self.solver == "exact":
            self._check_exact()
        count = tokens.shape[0].bound
        return Typing(
            (tokens,),
            {"subspaces": bases_of(self.bases, inner, width, self.constraint)},
            flops=self._flops(count, width),
            guards=self._guards(count),
        )

    def _check_exact(self) -> None:
        if self.constraint != "orthonormal":
            message = "the flow has a closed form only where all bases are orthonormal"
            raise Mistake("E0346", message, "constraint = orthonormal, or solver = rk4", at="solver")
        if self.steps is not None:
            raise Mistake("E0305", "`solver = exact` takes no steps", "leave `steps` out", at="steps")

    def _flops(self, count: int, width: int) -> int:
        inner, cube = self.subspaces * self.rank, self.subspaces * self.rank**3
        maps, products = 2 * 2 * count * width * inner, 2 * 2 * count * self.rank * inner
        if self.solver == "exact":
            # Eigenvectors of p x p matrices take about 9 p³ operations.
            return maps + products + 11 * cube
        return self.count * STAGES[self.solver] * (maps + products + cube // 3 + 4 * count * width)

    def _guards(self, count: int) -> tuple[Guard, ...]:
        if self.constraint == "none" or self.time < 0 or self.solver == "exact":
            return ()
        alpha, length, limit = self.alpha(count), self.time / self.count, STABLE[self.solver]
        if length * alpha < limit:
            return ()
        message = (
            f"a step of {length:.3g} is too long for `solver = {self.solver}`: small tokens fall at "
            f"α = {alpha:.3g}, and it damps them only below {limit / alpha:.3g}"
        )
        enough = int(self.time * alpha / limit) + 1
        return (Guard("W0815", message, f"steps = {enough} or more", at="steps"),)

    def alpha(self, tokens: int) -> float:
        """α = p / (N ε²)."""
        return self.rank / (tokens * self.eps**2)

    def inverse(self, mode: Mode, *inputs: TensorType) -> Inverse | NoInverse:
        back = self.model_copy(update={"time": -self.time})
        if isinstance(mode, LearnedInverse):
            return Inverse(back.model_copy(update={"bases": None}))
        if isinstance(mode, TiedInverse) or self.solver == "exact":
            return Inverse(back, {"subspaces": "subspaces"})
        help = "mode = tied" if isinstance(mode, FixedPoint) else "solver = exact"
        return NoInverse("the flow back in time undoes it to the order of its solver", help)

    def certificate(self, *inputs: TensorType) -> Certificate | NoInverse:
        """Each singular value is moved one to one. The slopes of ∇Rᶜ lie between -α/8 and α."""
        if self.solver != "exact":
            return NoInverse("its solver follows the flow only to its order", "solver = exact")
        dim = inputs[0].shape[0]
        # α is largest where there are fewest tokens.
        alpha = self.alpha(dim.offset + (dim.scale if dim.symbol else 0))
        slope = alpha if self.time > 0 else alpha / 8
        reason = (
            f"the exact flow: back in time, distances grow by at most e^({slope:.3g} · {abs(self.time):g})"
        )
        return Certificate(exp(slope * abs(self.time)), reason)
