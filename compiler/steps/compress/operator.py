"""`compress`: a gradient step on the coding rate of tokens against K learned subspaces, and what undoes it."""

from __future__ import annotations

from dataclasses import replace
from math import ceil, log, sqrt
from typing import Any, ClassVar, Literal

from crate_dsl.compiler.masks import Columns, Rule
from crate_dsl.compiler.operators import (
    FLOAT32_SPACING,
    FLOAT64_SPACING,
    MOST_ITERATIONS,
    Certificate,
    CertifiedInverse,
    Constraint,
    FixedPoint,
    Form,
    Fraction01,
    Guard,
    Inverse,
    Iterations,
    LearnedInverse,
    Mistake,
    Mode,
    NoInverse,
    Operator,
    Port,
    Positive,
    PositiveScalar,
    Slot,
    Typing,
    Weight,
    Whole,
    every_weight,
    handed_over,
    learned_slots,
    linear_initial,
)
from crate_dsl.compiler.steps.attend.rule import columns_of
from crate_dsl.compiler.steps.norm.operator import LayerNorm, NoNorm, NormForm, norm_slots, width_of
from crate_dsl.compiler.types import TensorType

#: I + α W Wᵀ is rounded in proportion to its largest eigenvalue: an identity below so many spacings of that is lost.
LOST = 8


class Relative(Form):
    """The given fraction c of 1/(α‖U‖₂²), the inverse of the gradient's Lipschitz constant, with α = rank / (N eps²).

    Below 2 every step of the exact gradient decreases the rate, below 1 it can also be undone.
    """

    word: ClassVar[str] = "relative"
    fraction: Positive = 0.5


#: What a step is where nothing is written: half of what the gradient's Lipschitz constant allows.
HALF = Relative()


class SubspaceStep(Operator):
    """What `compress` and `decompress` have in common: a branch F, which the one adds and the other takes away."""

    subspaces: Whole
    rank: Whole
    gradient: Literal["attention", "softmax", "neumann", "exact"] = "attention"
    out: Literal["free", "tied"] | None = None
    step: PositiveScalar | Relative | None = None
    eps: Positive = 0.5
    scale: PositiveScalar | None = None
    constraint: Literal["none", "orthonormal"] = "none"
    mask: Literal["none", "causal"] | Port | Rule = "none"
    norm: NormForm = LayerNorm()
    dropout: Fraction01 = 0.0
    bias: bool | None = None
    bases: Weight | None = None

    # -------------------------------------------------------------- what the arguments amount to

    @property
    def spectral(self) -> bool:
        """Whether the gradient is computed from the p x p matrices W Wᵀ, without attention."""
        return self.gradient in ("neumann", "exact")

    @property
    def tied(self) -> bool:
        """Whether the bases themselves lead back to the tokens (always in derived steps, on request in the
        published one).
        """
        return self.out == "tied" or (self.out is None and self.gradient != "attention")

    @property
    def biased(self) -> bool:
        return not self.tied if self.bias is None else self.bias

    @property
    def fraction(self) -> float | None:
        """c, where the step is that fraction of 1/(α‖U‖₂²)."""
        step = HALF if self.step is None and self.spectral else self.step
        return step.fraction if isinstance(step, Relative) else None

    @property
    def softmax_scale(self) -> float:
        """p^(-1/2) as published; 1 in the derivation. Not asked for where `scale` is learned or handed over."""
        if isinstance(self.scale, float):
            return self.scale
        return self.rank**-0.5 if self.gradient == "attention" else 1.0

    @property
    def taps(self) -> tuple[str, ...]:
        attention = () if self.spectral else ("attention",)
        gradient = () if self.gradient == "attention" else ("gradient",)
        return ("norm", "projection", *attention, *gradient)

    def alpha(self, tokens: int) -> float:
        """α = p / (N ε²)."""
        return self.rank / (tokens * self.eps**2)

    # -------------------------------------------------------------- the type rule

    def infer(self, *inputs: TensorType) -> Typing:
        (tokens,) = inputs
        width = width_of(self.word, tokens)
        self._check(tokens, width)
        inner = self.subspaces * self.rank
        weights: dict[str, Slot | Weight] = dict(norm_slots(self.norm, width, "norm_"))
        weights["subspaces"] = bases_of(self.bases, inner, width, self.constraint)
        if not self.tied:
            weights["out_weight"] = Slot((width, inner), linear_initial(inner))
            if self.biased:
                weights["out_bias"] = Slot((width,), linear_initial(inner))
        given = {name: slot for name, slot in learned_slots(self).items() if name != "bases"}
        facts: Columns | None = columns_of(self.mask, tokens) if isinstance(self.mask, Rule) else None
        count = tokens.shape[0].bound
        once, each = self._flops(count, width)
        return Typing((tokens,), weights | given, facts, once + each, self._guards(count, width))

    def _check(self, tokens: TensorType, width: int) -> None:
        """What does not go together. Raises `Mistake`."""
        derived = self.gradient != "attention"
        if derived and self.out == "free":
            raise Mistake(
                "E0305",
                "the derived step leads back through its own bases: `out = free` needs `gradient = attention`",
                at="out",
            )
        if derived and self.mask != "none":
            raise Mistake(
                "E0305",
                f"`gradient = {self.gradient}` has no published masked form",
                "`gradient = attention` takes a mask",
                at="mask",
            )
        if self.spectral and self.scale is not None:
            message = f"`scale` is that of a softmax, and `gradient = {self.gradient}` has none"
            raise Mistake("E0305", message, at="scale")
        if not derived and isinstance(self.step, Relative):
            raise Mistake(
                "E0305",
                "a relative step is a fraction of what the gradient's Lipschitz constant allows, and published "
                "attention is not a gradient",
                "write a number, or `gradient = exact`",
                at="step",
            )
        if self.tied and self.bias:
            raise Mistake(
                "E0305", "a tied output map has no bias", "leave `bias` out, or write `out = free`", at="bias"
            )
        if self.constraint == "orthonormal":
            check_orthonormal(self.subspaces, self.rank, width)
        if isinstance(self.mask, Port):
            check_mask(self.mask.type, tokens)

    def _flops(self, count: int, width: int) -> tuple[int, int]:
        """Operations once for each use, and for each evaluation of the branch."""
        inner = self.subspaces * self.rank
        norm = 0 if isinstance(self.norm, NoNorm) else 5 * count * width
        maps = 2 * 2 * count * width * inner
        if not self.spectral:
            return self._norm_flops(width), norm + maps + 2 * 2 * count * count * inner
        # W Wᵀ; its product with W, or a Cholesky factor of p³/3 and two triangular solves.
        factor = self.subspaces * self.rank**3 // 3 if self.gradient == "exact" else 0
        return self._norm_flops(width), norm + maps + 2 * 2 * count * self.rank * inner + factor

    def _norm_flops(self, width: int) -> int:
        """‖U‖₂ of free bases: the smaller of UᵀU and U Uᵀ, and its eigenvalues by reduction to tridiagonal form."""
        if self.fraction is None or self.constraint == "orthonormal":
            return 0
        inner = self.subspaces * self.rank
        small = min(inner, width)
        return 2 * inner * width * small + 4 * small**3 // 3

    def _guards(self, count: int, width: int) -> tuple[Guard, ...]:
        """What the mathematics warns of, as far as it can be known without the weights: at the longest input, where α
        is smallest.
        """
        guards = []
        alpha, orthonormal = self.alpha(count), self.constraint == "orthonormal"
        rate = self.fraction
        if rate is None and orthonormal and isinstance(self.step, float):
            rate = self.step * alpha
        if self.spectral and rate is not None and rate >= 1:
            guards.append(self._step_guard(rate, alpha))
        if self.gradient == "neumann":
            guards += self._radius_guards(count, width)
        return tuple(guards)

    def _step_guard(self, rate: float, alpha: float) -> Guard:
        if self.fraction is None:
            shown = f"κα‖U‖₂² = {self.step:g} · {alpha:.3g} = {rate:.3g}"
            one, two = (f"{limit / alpha:.3g}" for limit in (1, 2))
        else:
            shown, one, two = f"κα‖U‖₂² = {rate:g}", "relative(1)", "relative(2)"
        if rate >= 2:
            message = f"this step increases the rate of small tokens: {shown}, and it descends only below 2"
            return Guard("W0811", message, f"a step below {two}; to undo it as well, below {one}", at="step")
        message = f"this step descends, but cannot be undone: {shown}, and it is one to one only below 1"
        return Guard("W0810", message, f"a step below {one} can be undone", at="step")

    def _radius_guards(self, count: int, width: int) -> list[Guard]:
        """The Neumann series of (I + α WᵀW)⁻¹ converges where α‖W_k‖₂² < 1, and nowhere else."""
        if isinstance(self.norm, NoNorm):
            message = (
                "`gradient = neumann` holds where α‖U_kᵀZ‖₂² < 1, and nothing bounds the size of tokens that are "
                "not normalised"
            )
            return [Guard("W0813", message, "`gradient = exact` holds for tokens of every size", at="norm")]
        if self.constraint == "none" or self.subspaces * self.rank != width:
            return []
        # Orthonormal bases that span keep the size of normalised tokens: Σ_k ‖W_k‖_F² = N d. So one W_k, which has
        # min(p, N) singular values, has one with ‖W_k‖₂² ≥ N d / (K min(p, N)); none has more than N d.
        least = self.alpha(count) * count * width / (self.subspaces * min(self.rank, count))
        if least < 1:
            return []
        enough = sqrt(self.rank * width)
        message = (
            "`gradient = neumann` is outside of its radius of convergence: it needs α‖U_kᵀX‖₂² < 1, and of "
            f"normalised tokens some subspace has at least {least:.3g}"
        )
        help = (
            f"`gradient = exact` has no such radius; `eps` of at least {self.eps * sqrt(least):.3g} may be enough, "
            f"above {enough:.3g} is"
        )
        return [Guard("W0812", message, help, at="gradient")]

    # -------------------------------------------------------------- what is certain

    def certificate(self, *inputs: TensorType) -> Certificate | NoInverse:
        """X -> X + F(X) is a bijection for every X where F is a contraction: Lip F ≤ κα‖U‖₂² = c < 1."""
        found = self._contraction()
        if isinstance(found, NoInverse):
            return found
        reason = (
            f"F is the exact gradient with κα‖U‖₂² = {found:g}: its inverse stretches by 1/(1 - {found:g})"
        )
        return Certificate(1 / (1 - found), reason)

    def _contraction(self) -> float | NoInverse:
        """The branch's Lipschitz constant c < 1, for every input and all weights; or why there is none."""
        exact = "gradient = exact, step = relative(0.5), norm = none"
        if self.gradient in ("attention", "softmax"):
            return NoInverse("attention has no Lipschitz constant that holds for every input", exact)
        if self.gradient == "neumann":
            return NoInverse("a Neumann gradient grows with the cube of its tokens", exact)
        if not isinstance(self.norm, NoNorm):
            reason = "the norm in its branch stretches tokens that are nearly constant without bound"
            return NoInverse(reason, "norm = none")
        if self.dropout:
            return NoInverse("`dropout` makes it another map each time", "leave `dropout` out")
        if self.fraction is None:
            reason = (
                "its step is a number of its own, and κα‖U‖₂² < 1 has to hold whatever the weights become"
            )
            return NoInverse(reason, "step = relative(0.5)")
        if self.fraction >= 1:
            reason = f"κα‖U‖₂² = {self.fraction:g}, and it is one to one for certain only below 1"
            return NoInverse(reason, "step = relative(0.5)")
        sweeps = log(FLOAT64_SPACING) / log(self.fraction)
        if sweeps > MOST_ITERATIONS:
            reason = f"at κα‖U‖₂² = {self.fraction:g} its inverse takes {sweeps:.3g} iterations, and at most "
            return NoInverse(f"{reason}{MOST_ITERATIONS:,} are run", "step = relative(0.5)")
        return self.fraction

    def _arguments(self) -> dict[str, Any]:
        """The arguments of the branch, as another step takes them."""
        return {name: getattr(self, name) for name in SubspaceStep.model_fields}


class Compress(SubspaceStep):
    """Compresses tokens against `subspaces` learned subspaces of dimension `rank`.

    `gradient = attention` is the published layer: the tokens plus multi-head subspace self-attention (MSSA) of the
    normalised tokens, with an output map of its own (`out = free`) or the bases themselves (`out = tied`). The others
    are steps Z - κ∇Rᶜ(X) of the derivation, at the normalised tokens X = norm Z, back through their own bases:
    `exact` takes the gradient as it is, ∇Rᶜ = α Σ U_k (I + α W_k W_kᵀ)⁻¹ W_k with W_k = U_kᵀ X and
    α = rank / (N eps²) for N tokens; `neumann` its series to first order, α Σ U_k W_k (I - α W_kᵀ W_k), which is
    near it only where α‖W_k‖₂² < 1 (eq. 32); `softmax` is eq. 33, with its (1 - κα) factor.

    `step` is κ, or `relative(c)`: that fraction of 1/(α‖U‖₂²), the largest step that is sure to be one to one.
    `constraint = orthonormal` holds the rows of all bases together orthonormal, so that ‖U‖₂ = 1. `bases` takes a
    `learn` of shape [subspaces * rank, dim] in their place, which other steps may share; a constraint holds for all of
    them.

    `mask` is `causal`, a boolean for each token, or a rule over attributes of `query` and `key`, as
    `key.place <= query.place and query.place - key.place < 8`.

    What is left out follows from `gradient`. Attention: `out = free` with a bias, the softmax scale
    s = rank^(-1/2), κ = 1. Softmax: `out = tied`, s = 1, and for `step` κ half of 1/α. Exact and Neumann: `out =
    tied`, `step = relative(0.5)`. A tied map has no bias.

    Taps: `norm` is X, (B, N, d); `projection` is W, (B, K, N, p); `attention` is (B, K, N, N), a row for each token
    that attends; `gradient` is ∇Rᶜ of derived steps, (B, N, d).
    """

    word: ClassVar[str] = "compress"
    formula: ClassVar[str] = (
        r"Z + \kappa\,\mathrm{MSSA}(\operatorname{norm} Z \mid U_{[K]}),\quad "
        r"\mathrm{MSSA}(X) = \sum_k O_k\, U_k^\top X \operatorname{softmax}(s\,(U_k^\top X)^\top (U_k^\top X))"
        r"\quad\text{or}\quad Z - \kappa \nabla R^c(\operatorname{norm} Z \mid U_{[K]})"
    )
    source: ClassVar[str] = (
        "Yu et al. 2023, White-Box Transformers via Sparse Rate Reduction, arXiv 2311.13110, eqs. 31-33"
    )

    def inverse(self, mode: Mode, *inputs: TensorType) -> Inverse | NoInverse:
        refused = handed_over(self)
        if refused is not None:
            return refused
        if isinstance(mode, LearnedInverse):
            # Bases that the encoder borrows are not the decoder's own.
            return Inverse(Decompress(**(self._arguments() | {"bases": None})))
        iterations: int | Literal["certified"] = 1
        if isinstance(mode, FixedPoint):
            iterations = mode.iterations
        if isinstance(mode, CertifiedInverse):
            found = self._contraction()
            if isinstance(found, NoInverse):
                return found
            iterations = "certified"
        return Inverse(Decompress(**self._arguments(), iterations=iterations), every_weight(self, *inputs))


class Decompress(SubspaceStep):
    """Undoes `compress` of the same arguments: solves X + F(X) = Y for the branch F that compress adds.

    Each of `iterations` replaces X by Y - F(X), beginning with X = Y. One is the published decoder layer,
    Y - MSSA(norm Y | V), with weights of its own. More of them come nearer where F is a contraction;
    `iterations = certified` takes as many as leave nothing but rounding, and needs what a certified inverse needs: the
    exact gradient, `step = relative(c)` with c < 1, and no norm.

    Taps: those of `compress`, at the point where F was evaluated last.
    """

    word: ClassVar[str] = "decompress"
    formula: ClassVar[str] = r"X_0 = Y,\quad X_{i+1} = Y - F(X_i)\quad\text{where compress is } Z + F(Z)"
    source: ClassVar[str] = (
        "Pai et al. 2024, Masked Completion via Structured Diffusion with White-Box Transformers, arXiv 2404.02446; "
        "iterations: Behrmann et al. 2019, Invertible Residual Networks, arXiv 1811.00995"
    )

    iterations: Iterations | Literal["certified"] = 1

    def sweeps(self, spacing: float) -> int:
        """How often the branch is evaluated, in an arithmetic whose numbers near 1 have that spacing.

        After m iterations X is off by at most c^(m+1)‖X‖: ‖X_m - X‖ ≤ c^m ‖Y - X‖ = c^m ‖F(X)‖, and F(0) = 0.
        """
        if self.iterations != "certified":
            return self.iterations
        contraction = self._contraction()
        assert isinstance(contraction, float)
        return max(1, ceil(log(spacing) / log(contraction)))

    def _check(self, tokens: TensorType, width: int) -> None:
        super()._check(tokens, width)
        found = self._contraction()
        if self.iterations == "certified" and isinstance(found, NoInverse):
            message = f"nothing certifies how many iterations are enough: {found.reason}"
            raise Mistake("E0342", message, found.help or "write a whole number", at="iterations")

    def _flops(self, count: int, width: int) -> tuple[int, int]:
        once, each = super()._flops(count, width)
        return once, each * self.sweeps(FLOAT32_SPACING)

    def inverse(self, mode: Mode, *inputs: TensorType) -> Inverse | NoInverse:
        refused = handed_over(self)
        if refused is not None:
            return refused
        if isinstance(mode, LearnedInverse):
            return Inverse(Compress(**(self._arguments() | {"bases": None})))
        if isinstance(mode, FixedPoint | CertifiedInverse) and self.iterations != "certified":
            reason = "it is itself an inverse, and only as near as its iterations bring it"
            return NoInverse(reason, "iterations = certified")
        return Inverse(Compress(**self._arguments()), every_weight(self, *inputs))

    def certificate(self, *inputs: TensorType) -> Certificate | NoInverse:
        """What undoes it is `compress`, which stretches by at most 1 + c."""
        found = self._contraction()
        if isinstance(found, NoInverse):
            return found
        if self.iterations != "certified":
            return NoInverse("it is only as near to an inverse as its iterations", "iterations = certified")
        return Certificate(1 + found, f"its inverse is Z + F(Z), where F stretches by κα‖U‖₂² = {found:g}")


def bases_of(given: Weight | None, inner: int, width: int, constraint: Constraint) -> Slot | Weight:
    """The rows of all bases: of the step's own, or a `learn` of that shape. Raises `Mistake` where it has another."""
    if given is None:
        return Slot((inner, width), linear_initial(width), constraint)
    if given.type.kind != "float" or tuple(dim.static for dim in given.type.shape) != (inner, width):
        wanted = f"float[{inner}, {width}]"
        message = f"`bases` here are {wanted}, a row for each direction, but `{given.name}` is {given.type}"
        raise Mistake("E0343", message, at="bases", label=str(given.type))
    return replace(given, constraint=constraint)


def check_orthonormal(subspaces: int, rank: int, width: int) -> None:
    """So many directions can be orthonormal. Raises `Mistake`."""
    if subspaces * rank > width:
        message = (
            f"{subspaces} subspaces of dimension {rank} have {subspaces * rank} directions, and no more than {width} "
            f"can be orthonormal in tokens of width {width}"
        )
        raise Mistake("E0340", message, f"subspaces * rank of at most {width}", at="constraint")


def check_mask(mask: TensorType, tokens: TensorType) -> None:
    """A boolean mask says which tokens count: one for each. Raises `Mistake` where it does not fit."""
    if mask.kind != "bool" or mask.shape != tokens.shape[:1]:
        raise Mistake(
            "E0406",
            f"a mask of these tokens is bool[{tokens.shape[0]}], but is given {mask}",
            at="mask",
            label=str(mask),
        )
