"""`compress`: a gradient step on the coding rate of tokens against K learned subspaces, and what undoes it."""

from __future__ import annotations

from dataclasses import replace
from math import ceil, log
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
    Inverse,
    Iterations,
    LearnedInverse,
    Mistake,
    Mode,
    NoInverse,
    NotStepped,
    Operator,
    OperatorKind,
    Port,
    Positive,
    PositiveScalar,
    Slot,
    Stepped,
    Typing,
    Weight,
    Whole,
    every_weight,
    handed_over,
    learned_slots,
    linear_initial,
)
from crate_dsl.compiler.steps.attend.rule import check_mask, columns_of
from crate_dsl.compiler.steps.compress.cost import operations
from crate_dsl.compiler.steps.compress.guards import guards
from crate_dsl.compiler.steps.compress.own import own_slots
from crate_dsl.compiler.steps.compress.pooling import Pool, patches_of
from crate_dsl.compiler.steps.compress.together import check_arguments
from crate_dsl.compiler.steps.norm.operator import LayerNorm, NoNorm, NormForm, norm_slots, width_of
from crate_dsl.compiler.steps.position.operator import Patches
from crate_dsl.compiler.steps.rotary.operator import Rotary
from crate_dsl.compiler.types import TensorType, floats, held

#: I + α W Wᵀ is rounded in proportion to its largest eigenvalue: an identity below so many spacings of that is lost.
LOST = 8

#: What keeps the divisors of token statistics from zero, as published: of the sum of a channel's squares over all
#: tokens, over the tokens so far, and of a subspace's memberships.
ALL_SQUARES, SQUARES_SO_FAR, MEMBERSHIPS = 1e-24, 1e-12, 1e-8


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
    gradient: Literal["attention", "softmax", "neumann", "exact", "statistics", "representatives"] = (
        "attention"
    )
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
    length: Whole | None = None
    representatives: Pool | Literal["tokens"] | None = None
    positions: Literal["none"] | Rotary = "none"

    # -------------------------------------------------------------- what the arguments amount to

    @property
    def derived(self) -> bool:
        """Whether it is a step of the derivation, κα times a gradient; else a layer as published."""
        return self.gradient in ("softmax", "neumann", "exact")

    @property
    def attends(self) -> bool:
        """Whether tokens attend to tokens, pair by pair."""
        return self.gradient in ("attention", "softmax")

    @property
    def running(self) -> bool:
        """Whether it takes the statistics of the tokens so far: ToST's language form."""
        causal = self.mask == "causal" or (isinstance(self.mask, Rule) and self.mask.causal_and_kept)
        return self.gradient == "statistics" and causal

    @property
    def pool(self) -> Pool | None:
        """The cells whose means represent the tokens, as published 8 x 8; None where tokens represent themselves."""
        if self.representatives == "tokens":
            return None
        return self.representatives or Pool(rows=8, columns=8)

    @property
    def spectral(self) -> bool:
        """Whether the gradient is computed from the p x p matrices W Wᵀ, without attention."""
        return self.gradient in ("neumann", "exact")

    @property
    def tied(self) -> bool:
        """Whether the bases themselves lead back to the tokens (always in derived steps, on request in the
        published one).
        """
        return self.out == "tied" or (self.out is None and self.derived)

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
        return 1.0 if self.derived else self.rank**-0.5

    @property
    def taps(self) -> tuple[str, ...]:
        return ("norm", "projection", *TAPS[self.gradient])

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
        weights |= own_slots(self, tokens, width)
        if not self.tied:
            weights["out_weight"] = Slot((width, inner), linear_initial(inner))
            if self.biased:
                weights["out_bias"] = Slot((width,), linear_initial(inner))
        given = {name: slot for name, slot in learned_slots(self).items() if name != "bases"}
        count = tokens.shape[0].bound
        once, each = self._flops(count, width)
        facts = self._facts(tokens)
        return Typing((tokens,), weights | given, facts, once + each, guards(self, count, width))

    def _facts(self, tokens: TensorType) -> Columns | Patches | None:
        """What a rule reads of the tokens, or where the grid lies whose cells represent them."""
        if isinstance(self.mask, Rule):
            return columns_of(self.mask, tokens)
        if self.gradient == "representatives" and self.pool is not None:
            return patches_of(tokens, self.pool)
        return None

    def _check(self, tokens: TensorType, width: int) -> None:
        """What does not go together. Raises `Mistake`."""
        check_arguments(self)
        if self.constraint == "orthonormal":
            check_orthonormal(self.subspaces, self.rank, width)
        if isinstance(self.mask, Port):
            check_mask(self.mask.type, tokens)

    def _flops(self, count: int, width: int) -> tuple[int, int]:
        """Operations once for each use, and for each evaluation of the branch."""
        return operations(self, count, width)

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
        if self.gradient == "statistics":
            return NoInverse("nothing is known to bound how far token statistics move", exact)
        if self.attends or self.gradient == "representatives":
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
    normalised tokens, with an output map of its own (`out = free`) or the bases themselves (`out = tied`). `exact`,
    `neumann` and `softmax` are steps Z - κ∇Rᶜ(X) of the derivation, at the normalised tokens X = norm Z, back through
    their own bases: `exact` takes the gradient as it is, ∇Rᶜ = α Σ U_k (I + α W_k W_kᵀ)⁻¹ W_k with W_k = U_kᵀ X and
    α = rank / (N eps²) for N tokens; `neumann` its series to first order, α Σ U_k W_k (I - α W_kᵀ W_k), which is
    near it only where α‖W_k‖₂² < 1 (eq. 32); `softmax` is eq. 33, with its (1 - κα) factor.

    `step` is κ, or `relative(c)`: that fraction of 1/(α‖U‖₂²), the largest step that is sure to be one to one.
    `constraint = orthonormal` holds the rows of all bases together orthonormal, so that ‖U‖₂ = 1. `bases` takes a
    `learn` of shape [subspaces * rank, dim] in their place, which other steps may share; a constraint holds for all of
    them.

    `mask` is `causal`, a boolean for each token, or a rule over attributes of `query` and `key`, as
    `key.place <= query.place and query.place - key.place < 8`; `causal` and one boolean may stand in a rule, too:
    `causal and kept`. A token whose keys are all left out by the boolean finds nothing: zero.

    `positions = rotary` rotates what is compared by its place: queries and keys are then R_i U_kᵀ x_i, with a rotation
    for each token, and know how far apart two tokens are. What is averaged is not rotated.

    What is left out follows from `gradient`. Attention, statistics and representatives: `out = free` with a bias, the
    softmax scale s = rank^(-1/2), κ = 1. Softmax: `out = tied`, s = 1, and for `step` κ half of 1/α. Exact and Neumann:
    `out = tied`, `step = relative(0.5)`. A tied map has no bias.

    `gradient = statistics` is ToST's layer, linear in N: no token looks at another one. Π says how much each token
    belongs to each subspace, by a softmax over the subspaces with a learned temperature for each; m_k = Σ_i π_ki w_ki²
    / (Σ_i π_ki + 1e-8) are the second moments of the tokens in subspace k, channel by channel; what comes out is -π_ki
    w_ki / (1 + m_k). It has two forms, which are two things in the published code as well. Without `mask = causal` it
    is the vision form: a token's energy Σ_j w_kij² / Σ_i w_kij² is its share of all tokens' squares, and m is over all
    tokens. A boolean `mask` makes tokens that do not count zero in W and Π: they take no part in any sum, and of the
    branch get the bias alone. With `mask = causal` it is the language form: both sums run over the tokens so far, with
    `causal and kept` over those of them that count. A share then depends on the place, the first token's is 1, and a
    learned bias for each subspace and place is added to each channel's share. So there are no more places than
    `length`, which is for this form alone. In both forms `bias` is that of the projection, too.

    `gradient = representatives` is CBSA's layer, linear in N: M representatives R attend to all projected tokens, A =
    softmax(s R Wᵀ), take a learned step towards what they find, R + σ A W, attend to each other, and hand the result
    back along Aᵀ, times a learned step τ; σ and τ are one number for each subspace. `representatives = pool(8, 8)`,
    which is what is left out, are means over the cells of the grid that the tokens were cut from. Tokens beside the
    grid, as a class token, take no part in the means, and are attended to like all. (The published classifier means to
    do so too, but its class token stands first and the code leaves out the last token: a patch is lost, and the others
    are one place further than where they belong. That is not copied.) `representatives = tokens` has R = W, and is N x
    N.

    Taps: `norm` is X, (B, N, d); `projection` is W, (B, K, N, p); `attention` is (B, K, N, N), a row for each token
    that attends; `gradient` is ∇Rᶜ of derived steps, (B, N, d); `membership` is Π, (B, K, N); `representatives` is R,
    (B, K, M, p), and `assignment` is A, (B, K, M, N).
    """

    word: ClassVar[str] = "compress"
    formula: ClassVar[str] = (
        r"Z + \kappa\,\mathrm{MSSA}(\operatorname{norm} Z \mid U_{[K]}),\quad "
        r"\mathrm{MSSA}(X) = \sum_k O_k\, U_k^\top X \operatorname{softmax}(s\,(U_k^\top X)^\top (U_k^\top X))"
        r"\quad\text{or}\quad Z - \kappa \nabla R^c(\operatorname{norm} Z \mid U_{[K]})"
        r"\quad\text{or}\quad Z - \kappa \sum_k O_k \operatorname{diag}(1 / (1 + m_k))\, W_k \operatorname{diag} \pi_k"
        r"\quad\text{or}\quad Z + \kappa \sum_k \tau_k O_k\, \mathrm{MSA}(R_k + \sigma_k W_k A_k^\top) A_k"
    )
    source: ClassVar[str] = (
        "Yu et al. 2023, White-Box Transformers via Sparse Rate Reduction, arXiv 2311.13110, eqs. 31-33; statistics: "
        "Wu et al. 2025, Token Statistics Transformer, arXiv 2412.17810, eq. 10; representatives: Wen et al. 2025, "
        "Towards Interpretable and Efficient Attention (CBSA), arXiv 2509.16875"
    )

    @property
    def narrows(self) -> bool:
        """Derived steps are of all tokens at once, and a causal mask is aligned to the first query."""
        return not self.derived and self.mask != "causal"

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

    def stepped(self, *inputs: TensorType) -> Stepped | NotStepped:
        from crate_dsl.compiler.steps.cached.operator import CompressStep, stepped_mask

        (tokens,) = inputs
        if self.running:
            table = own_slots(self, tokens, tokens.shape[1].bound)["energy_bias"]
            arguments = self._arguments() | {"mask": "causal", "length": table.shape[1]}
            return Stepped(StatisticsStep(**arguments), (floats(2, self.subspaces, 2 * self.rank + 1),))
        if self.gradient != "attention":
            return NotStepped(
                f"takes all tokens together, later ones too: it is `gradient = {self.gradient}`",
                "`gradient = attention` and `gradient = statistics`, with `mask = causal`, take those so far",
            )
        mask = stepped_mask(self.mask, tokens)
        if isinstance(mask, NotStepped):
            return mask
        step = CompressStep(**(self._arguments() | {"mask": mask}))
        return Stepped(step, (held(tokens, self.subspaces * self.rank),))


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


class StatisticsStep(SubspaceStep):
    """Causal statistics of the next tokens, given the sums over the tokens before: the compiler makes it of
    `compress(gradient = statistics, mask = causal)`.

    float[m, dim], how many tokens were before, and their sums -> float[m, dim] and the sums with these m. A row of the
    sums, float[2, K, 2 p + 1], is Σ w², Σ π w² and Σ π of a subspace; the second of the two is what float32 leaves off
    the first, so that sums are as of float64: else each token rounds them anew.
    """

    word: ClassVar[str] = "statistics_step"
    kind: ClassVar[OperatorKind] = "lowered"
    formula: ClassVar[str] = (
        r"S_t = S_{t-1} + w_t^2,\; T_t = T_{t-1} + \pi_t w_t^2,\; c_t = c_{t-1} + \pi_t,\quad m_t = T_t / c_t"
    )

    @property
    def taps(self) -> tuple[str, ...]:
        return ()

    def infer(self, *inputs: TensorType) -> Typing:
        tokens, _, sums = inputs
        typing = super().infer(tokens)
        return replace(typing, outputs=(*typing.outputs, sums))


#: The tensors inside a step that a reader asks for, beside the norm and the projection.
TAPS = {
    "attention": ("attention",),
    "softmax": ("attention", "gradient"),
    "neumann": ("gradient",),
    "exact": ("gradient",),
    "statistics": ("membership",),
    "representatives": ("representatives", "assignment"),
}


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
