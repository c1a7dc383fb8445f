"""`flow`: the gradient flow of the coding rate against K learned subspaces, over a span of time."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from crate_dsl.compiler.operators import (
    Guard,
    Inverse,
    LearnedInverse,
    Mode,
    NoInverse,
    Operator,
    Positive,
    Slot,
    TiedInverse,
    Typing,
    Weight,
    Whole,
    linear_initial,
)
from crate_dsl.compiler.steps.compress.operator import check_bases, check_orthonormal
from crate_dsl.compiler.steps.norm.operator import width_of
from crate_dsl.compiler.types import TensorType

#: Evaluations of the gradient in one step of a solver.
STAGES = {"euler": 1, "heun": 2, "rk4": 4}
#: The largest h·λ at which a solver still damps y' = -λ y.
STABLE = {"euler": 2.0, "heun": 2.0, "rk4": 2.785}


class Flow(Operator):
    """Integrates dZ = -∇Rᶜ(Z | U) dt over `time`, in `steps` equal steps: denoising; with `time` below 0, diffusion.

    `euler` is of first order: one step of it is `compress(gradient = exact, norm = none, step = time / steps)`. `heun`
    is of second, `rk4` of fourth order. Small tokens fall like e^(-αt) with α = rank / (N eps²) for N tokens, squares
    of large ones linearly. `bases` takes a `learn` of shape [subspaces * rank, dim], which a `compress` may share.

    Undone, it is the same flow back in time: `tied` to the order of its solver.
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
    steps: Whole = 4
    solver: Literal["euler", "heun", "rk4"] = "rk4"
    eps: Positive = 0.5
    constraint: Literal["none", "orthonormal"] = "none"
    bases: Weight | None = None

    def infer(self, *inputs: TensorType) -> Typing:
        (tokens,) = inputs
        width = width_of(self.word, tokens)
        inner = self.subspaces * self.rank
        check_bases(self.bases, self.constraint == "orthonormal", inner, width)
        if self.constraint == "orthonormal":
            check_orthonormal(self.subspaces, self.rank, width)
        owned = Slot((inner, width), linear_initial(width), self.constraint)
        count = tokens.shape[0].bound
        maps, solve = 2 * 2 * count * width * inner, 2 * 2 * count * self.rank * inner
        each = maps + solve + self.subspaces * self.rank**3 // 3 + 4 * count * width
        return Typing(
            (tokens,),
            {"subspaces": self.bases or owned},
            flops=self.steps * STAGES[self.solver] * each,
            guards=self._guards(count),
        )

    def _guards(self, count: int) -> tuple[Guard, ...]:
        alpha = self.rank / (count * self.eps**2)
        rate, limit = abs(self.time) / self.steps * alpha, STABLE[self.solver]
        if self.constraint == "none" or self.time < 0 or rate < limit:
            return ()
        message = (
            f"a step of {self.time / self.steps:.3g} is too long for `solver = {self.solver}`: small tokens fall at "
            f"α = {alpha:.3g}, and it damps them only below {limit / alpha:.3g}"
        )
        enough = int(self.time * alpha / limit) + 1
        return (Guard("W0815", message, f"steps = {enough} or more", at="steps"),)

    def inverse(self, mode: Mode, *inputs: TensorType) -> Inverse | NoInverse:
        back = self.model_copy(update={"time": -self.time})
        if isinstance(mode, LearnedInverse):
            return Inverse(back)
        if isinstance(mode, TiedInverse):
            return Inverse(back, {"subspaces": "subspaces"})
        return NoInverse("the flow back in time undoes it to the order of its solver", "mode = tied")
