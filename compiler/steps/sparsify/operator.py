"""`sparsify`: proximal gradient steps towards a sparse code of the tokens in a learned dictionary."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from crate_dsl.compiler.operators import (
    Form,
    Inverse,
    Mistake,
    Mode,
    NoInverse,
    NonNegativeScalar,
    Operator,
    PositiveScalar,
    Slot,
    Typing,
    Weight,
    Whole,
    check_scalar,
    kaiming_initial,
    learned_slots,
)
from crate_dsl.compiler.steps.norm.operator import LayerNorm, NoNorm, NormForm, norm_slots, width_of
from crate_dsl.compiler.types import TensorType


class Nonnegative(Form):
    """max(x - τ, 0): codes are not negative, as published."""

    word: ClassVar[str] = "nonnegative"


class Soft(Form):
    """sign(x) max(|x| - τ, 0): codes of both signs."""

    word: ClassVar[str] = "soft"


class Leaky(Form):
    """x - τ where that is positive, `slope` times it elsewhere: no two inputs have the same code."""

    word: ClassVar[str] = "leaky"
    slope: Annotated[float, Field(gt=0, le=1)] = 0.9


ProxForm = Nonnegative | Soft | Leaky


class Sparsify(Operator):
    """Replaces tokens by (or, with `residual`, adds to them) a sparse code in a learned dictionary.

    Each of `iterations` proximal gradient steps descends on ½‖Y - D A‖² + λ‖A‖₁ with Y = norm Z and λ = `penalty`:
    what is subtracted is `step` times `penalty`. The defaults are CRATE's: one step from the input, whose code replaces
    the tokens. CRATE-α has two steps from zero in a dictionary four times as wide, decoded by another one and added.
    """

    word: ClassVar[str] = "sparsify"
    formula: ClassVar[str] = (
        r"A_{t+1} = \operatorname{prox}_{\eta\lambda}\!\left(A_t + \eta D^\top (Y - D A_t)\right),\quad "
        r"Y = \operatorname{norm} Z,\quad A_0 \in \{Y, 0\}"
    )
    source: ClassVar[str] = (
        "Yu et al. 2023, White-Box Transformers via Sparse Rate Reduction, arXiv 2306.01129; "
        "overcomplete, decoupled, residual: Yang et al. 2024, Scaling White-Box Transformers for Vision, "
        "arXiv 2405.20299"
    )

    step: PositiveScalar = 0.1
    penalty: NonNegativeScalar = 0.1
    iterations: Whole = 1
    start: Literal["input", "zero"] = "input"
    prox: ProxForm = Nonnegative()
    expand: Whole = 1
    decode: Literal["none", "tied", "free"] = "none"
    residual: bool = False
    norm: NormForm = LayerNorm()
    constraint: Literal["none", "orthonormal"] = "none"

    def infer(self, *inputs: TensorType) -> Typing:
        (tokens,) = inputs
        width = width_of(self.word, tokens)
        codes = self.expand * width
        if self.expand > 1 and self.decode == "none":
            start = ", and `start = zero`" if self.start == "input" else ""
            raise Mistake(
                "E0310",
                f"codes of width {codes} do not fit tokens of width {width}: constant width, a wide dictionary and "
                "sparse codes as the result cannot all hold",
                f"to keep the wide dictionary, lead back with `decode = tied` or `decode = free`{start}",
                "to keep the codes as the result, leave `expand` out",
                at="expand",
            )
        if self.expand > 1 and self.start == "input":
            raise Mistake(
                "E0311",
                f"codes of width {codes} cannot start from tokens of width {width}",
                "write `start = zero`",
                at="start",
            )
        if self.constraint == "orthonormal":
            raise Mistake("E0901", "`constraint = orthonormal` is not there yet", at="constraint")
        for argument in ("step", "penalty"):
            check_scalar(self, argument, codes)
        weights: dict[str, Slot | Weight] = dict(norm_slots(self.norm, width, "norm_"))
        weights["dictionary"] = Slot((width, codes), kaiming_initial(codes))
        if self.decode == "free":
            weights["decode"] = Slot((width, codes), kaiming_initial(codes))
        count = tokens.shape[0].bound
        norm = 0 if isinstance(self.norm, NoNorm) else 5 * count * width
        # From zero, the first step needs D'Y alone. Every step ends in a proximal map of one operation a number.
        products = 2 * self.iterations - (self.start == "zero") + (self.decode != "none")
        flops = norm + products * 2 * count * width * codes + self.iterations * count * codes
        return Typing((tokens,), weights | learned_slots(self), flops=flops)

    def inverse(self, mode: Mode, *inputs: TensorType) -> Inverse | NoInverse:
        return NoInverse("its inverse, `densify`, is not there yet")
