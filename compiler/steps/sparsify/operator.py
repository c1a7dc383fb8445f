"""`sparsify`: proximal gradient steps towards a sparse code in a learned dictionary; `densify` undoes them."""

from __future__ import annotations

from math import ceil, log, log2
from typing import Any, ClassVar, Literal

from crate_dsl.compiler.operators import (
    Certificate,
    CertifiedInverse,
    FixedPoint,
    Form,
    Inverse,
    Iterations,
    LearnedInverse,
    Mistake,
    Mode,
    NoInverse,
    NonNegativeScalar,
    Operator,
    Part,
    PositiveScalar,
    Slot,
    Typing,
    Weight,
    Whole,
    check_scalar,
    every_weight,
    handed_over,
    kaiming_initial,
    learned_slots,
    ports,
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
    slope: Part = 0.9


ProxForm = Nonnegative | Soft | Leaky


class DictionaryStep(Operator):
    """What `sparsify` and `densify` have in common: proximal gradient steps on ½‖Y - D A‖² + λ‖A‖₁."""

    step: PositiveScalar = 0.1
    penalty: NonNegativeScalar = 0.1
    iterations: Iterations = 1
    start: Literal["input", "zero"] = "input"
    prox: ProxForm = Nonnegative()
    expand: Whole = 1
    decode: Literal["none", "tied", "free"] = "none"
    residual: bool = False
    norm: NormForm = LayerNorm()
    constraint: Literal["none", "orthonormal"] = "none"

    @property
    def tokenwise(self) -> bool:
        return not ports(self)

    @property
    def exact_zeros(self) -> bool:
        """A leaky map is one to one, and makes nothing exactly zero."""
        return super().exact_zeros and not isinstance(self.prox, Leaky)

    def _check(self, width: int) -> None:
        """What does not go together. Raises `Mistake`."""
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
        if self.constraint == "orthonormal" and self.expand > 1:
            message = f"a dictionary of {codes} atoms of width {width} has no orthonormal atoms: it is wider than high"
            raise Mistake("E0341", message, "leave `expand` or `constraint` out", at="constraint")
        for argument in ("step", "penalty"):
            check_scalar(self, argument, codes)

    def _weights(self, width: int) -> dict[str, Slot | Weight]:
        codes = self.expand * width
        weights: dict[str, Slot | Weight] = dict(norm_slots(self.norm, width, "norm_"))
        weights["dictionary"] = Slot((width, codes), kaiming_initial(codes), self.constraint)
        if self.decode == "free":
            weights["decode"] = Slot((width, codes), kaiming_initial(codes))
        return weights | learned_slots(self)

    def _flops(self, count: int, width: int) -> int:
        codes = self.expand * width
        norm = 0 if isinstance(self.norm, NoNorm) else 5 * count * width
        # From zero, the first step needs D'Y alone. Every step ends in a proximal map of one operation a number.
        products = 2 * self.iterations - (self.start == "zero") + (self.decode != "none")
        return norm + products * 2 * count * width * codes + self.iterations * count * codes

    # -------------------------------------------------------------- what can be undone

    def _irreversible(self) -> NoInverse | None:
        """Why a step that replaces its tokens cannot be run backwards with its own weights."""
        if self.residual:
            return None
        if self.decode != "none":
            return NoInverse("it decodes its codes, which then are no longer there", "decode = none")
        if self.start == "zero":
            return NoInverse("its codes start from zero, and keep little of the tokens", "start = input")
        if self.iterations > 1:
            reason = f"each of its {self.iterations} proximal steps cuts off what was not active"
            return NoInverse(reason, "iterations = 1")
        if not isinstance(self.norm, NoNorm):
            return NoInverse("its norm forgets each token's mean and size", "norm = none")
        return None

    def _conditioned(self) -> float | NoInverse:
        """By how much the inverse of M = I + η(D' - D'D) and of the proximal map stretch; or why that is unbounded.

        With D orthogonal M = (1 - η) I + η D', whose singular values are at least 1 - 2η.
        """
        refused = self._irreversible()
        if refused is not None:
            return refused
        if self.residual:
            reason = "the residual adds codes whose Lipschitz constant follows from the weights alone"
            return NoInverse(reason, "residual = false, or mode = fixed_point(8)")
        if not isinstance(self.prox, Leaky):
            reason = f"`prox = {self.prox.word}` gives many tokens the same code"
            return NoInverse(reason, "prox = leaky(0.9)")
        if self.constraint != "orthonormal":
            reason = "its dictionary is free, and I + η(D' - D'D) may become singular"
            return NoInverse(reason, "constraint = orthonormal")
        if not isinstance(self.step, float):
            return NoInverse("its step is learned, and has to stay below 1/2", "step = 0.1")
        if self.step >= 0.5:
            reason = (
                f"its step is {self.step:g}, and (1 - η) I + η D' is sure to be invertible only below 1/2"
            )
            return NoInverse(reason, "step = 0.1")
        return 1 / (self.prox.slope * (1 - 2 * self.step))

    def _arguments(self) -> dict[str, Any]:
        """The arguments of the proximal steps, as another step takes them."""
        return {name: getattr(self, name) for name in DictionaryStep.model_fields}


class Sparsify(DictionaryStep):
    """Replaces tokens by (or, with `residual`, adds to them) a sparse code in a learned dictionary.

    Each of `iterations` proximal gradient steps descends on ½‖Y - D A‖² + λ‖A‖₁ with Y = norm Z and λ = `penalty`:
    what is subtracted is `step` times `penalty`. The defaults are CRATE's: one step from the input, whose code replaces
    the tokens. CRATE-α has two steps from zero in a dictionary four times as wide, decoded by another one and added.
    `constraint = orthonormal` holds a square dictionary orthogonal.

    A learned `step` or `penalty` is not held above zero. A penalty below zero is no longer one: the proximal map then
    adds where it would subtract.

    Taps: `norm` is Y, (B, N, d); `code` is A, (B, N, s).
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

    @property
    def taps(self) -> tuple[str, ...]:
        return ("norm", "code")

    def infer(self, *inputs: TensorType) -> Typing:
        (tokens,) = inputs
        width = width_of(self.word, tokens)
        self._check(width)
        return Typing((tokens,), self._weights(width), flops=self._flops(tokens.shape[0].bound, width))

    def inverse(self, mode: Mode, *inputs: TensorType) -> Inverse | NoInverse:
        refused = handed_over(self)
        if refused is not None:
            return refused
        if isinstance(mode, LearnedInverse):
            undone = Densify(**self._arguments(), by="gradient") if self.residual else Densify(norm=self.norm)
            return Inverse(undone)
        certified = isinstance(mode, CertifiedInverse)
        found = self._conditioned() if certified else self._irreversible()
        if isinstance(found, NoInverse):
            return found
        repeats = "certified" if certified else mode.iterations if isinstance(mode, FixedPoint) else 1
        return Inverse(
            Densify(**self._arguments(), by="gradient", repeats=repeats), every_weight(self, *inputs)
        )

    def certificate(self, *inputs: TensorType) -> Certificate | NoInverse:
        """A leaky proximal map of M Y, with both of them bijections."""
        found = self._conditioned()
        if isinstance(found, NoInverse):
            return found
        assert isinstance(self.prox, Leaky) and isinstance(self.step, float)
        reason = (
            f"leaky({self.prox.slope:g}) and, with D orthogonal, σ_min(I + η(D' - D'D)) ≥ 1 - 2 · {self.step:g}: its "
            f"inverse stretches by 1/({self.prox.slope:g} · {1 - 2 * self.step:g})"
        )
        return Certificate(found, reason)


class Densify(DictionaryStep):
    """Undoes `sparsify`: tokens from their sparse codes.

    `by = synthesis` is the published decoder layer E norm Y, with a dictionary of its own; it takes `norm` and nothing
    else. `by = gradient` runs the proximal step of the same arguments backwards: V undoes the proximal map, as where
    codes are active, and X = V - η D'(V - D V) is the gradient step with its sign turned. Each of `repeats` replaces X
    by V - η D'(X - D X), beginning with X = V, and comes nearer where that is a contraction. `repeats = certified`
    solves for X; it needs `constraint = orthonormal`, a number below 1/2 for `step`, `prox = leaky(…)` and no norm.
    With `residual`, the codes F that sparsify adds are taken away by X = Y - F(X).

    Taps: `norm` with synthesis; `norm` and `code` with `residual`, where F was evaluated last.
    """

    word: ClassVar[str] = "densify"
    formula: ClassVar[str] = (
        r"E \operatorname{norm} Y\quad\text{or}\quad V = \operatorname{prox}^{-1}_{\eta\lambda} Y,\ X_0 = V,\ "
        r"X_{i+1} = V - \eta D^\top (X_i - D X_i)"
    )
    source: ClassVar[str] = (
        "Pai et al. 2024, Masked Completion via Structured Diffusion with White-Box Transformers, arXiv 2404.02446"
    )

    by: Literal["synthesis", "gradient"] = "synthesis"
    repeats: Iterations | Literal["certified"] = 1

    @property
    def taps(self) -> tuple[str, ...]:
        if self.by == "synthesis":
            return ("norm",)
        return ("norm", "code") if self.residual else ()

    def infer(self, *inputs: TensorType) -> Typing:
        (tokens,) = inputs
        width = width_of(self.word, tokens)
        count = tokens.shape[0].bound
        if self.by == "synthesis":
            self._check_synthesis()
            weights = {
                **norm_slots(self.norm, width, "norm_"),
                "dictionary": Slot((width, width), kaiming_initial(width)),
            }
            norm = 0 if isinstance(self.norm, NoNorm) else 5 * count * width
            return Typing((tokens,), weights, flops=norm + 2 * count * width * width)
        self._check(width)
        if self.repeats == "certified":
            # An LU decomposition of 2d³/3, and two triangular solves.
            flops = 2 * width**3 // 3 + 2 * count * width * width
        else:
            each = self._flops(count, width) if self.residual else 4 * count * width * width
            flops = self.repeats * each
        return Typing((tokens,), self._weights(width), flops=flops + 2 * count * width)

    def _check_synthesis(self) -> None:
        for name, info in type(self).model_fields.items():
            if name not in ("norm", "by") and getattr(self, name) != info.default:
                message = f"`{name}` is of the step that `by = gradient` runs backwards, and `by = synthesis` has none"
                raise Mistake("E0305", message, "write `by = gradient`, or leave it out", at=name)

    def _check(self, width: int) -> None:
        super()._check(width)
        certified = self.repeats == "certified"
        found = self._conditioned() if certified else self._irreversible()
        if isinstance(found, NoInverse):
            message = f"`sparsify` of these arguments cannot be run backwards: {found.reason}"
            raise Mistake("E0345", message, found.help, at="repeats" if certified else "by")

    def newton_steps(self, spacing: float) -> int:
        """From I towards M⁻¹: what is left is (M - I)^(2^k), of which the norm is at most (2η)^(2^k)."""
        assert isinstance(self.step, float)
        return max(1, ceil(log2(log(spacing) / log(2 * self.step))))

    def inverse(self, mode: Mode, *inputs: TensorType) -> Inverse | NoInverse:
        if self.by == "synthesis":
            return NoInverse("its dictionary does not say which step it undoes", "by = gradient")
        refused = handed_over(self)
        if refused is not None:
            return refused
        if isinstance(mode, LearnedInverse):
            return Inverse(Sparsify(**self._arguments()))
        if isinstance(mode, FixedPoint | CertifiedInverse) and self.repeats != "certified":
            return NoInverse(
                "it is itself an inverse, and only as near as its repeats bring it", "repeats = certified"
            )
        return Inverse(Sparsify(**self._arguments()), every_weight(self, *inputs))

    def certificate(self, *inputs: TensorType) -> Certificate | NoInverse:
        """What undoes it is `sparsify`, where neither M nor the proximal map stretches."""
        found = self._conditioned()
        if isinstance(found, NoInverse):
            return found
        if self.by == "synthesis" or self.repeats != "certified":
            return NoInverse("it is only as near to an inverse as its repeats", "repeats = certified")
        return Certificate(1.0, "(1 - η) I + η D' of an orthogonal D and a leaky proximal map do not stretch")
