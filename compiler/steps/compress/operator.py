"""`compress`: one gradient step on the coding rate of the tokens against K learned subspaces."""

from __future__ import annotations

from typing import ClassVar, Literal

from crate_dsl.compiler.operators import (
    Fraction01,
    Inverse,
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
    learned_slots,
    linear_initial,
)
from crate_dsl.compiler.steps.norm.operator import LayerNorm, NoNorm, NormForm, norm_slots, width_of
from crate_dsl.compiler.types import TensorType


class Compress(Operator):
    """Compresses tokens against `subspaces` learned subspaces of dimension `rank`.

    `gradient = attention` is the published layer: the tokens plus multi-head subspace self-attention (MSSA) of the
    normalised tokens, with an output map of its own (`out = free`) or the bases themselves (`out = tied`).
    `gradient = softmax` is the derived step of eq. 33, with its (1 - κα) factor, taken at the normalised tokens.

    What is left out follows from `gradient`. Attention: `out = free` with a bias, the softmax scale
    s = rank^(-1/2), κ = 1. Softmax: `out = tied`, s = 1, and for `step` κ half of 1/α, where α = rank / (N eps²)
    for N tokens. A tied map has no bias.
    """

    word: ClassVar[str] = "compress"
    formula: ClassVar[str] = (
        r"Z + \kappa\,\mathrm{MSSA}(\operatorname{norm} Z \mid U_{[K]}),\quad "
        r"\mathrm{MSSA}(X) = \sum_k O_k\, U_k^\top X \operatorname{softmax}(s\,(U_k^\top X)^\top (U_k^\top X))"
    )
    source: ClassVar[str] = (
        "Yu et al. 2023, White-Box Transformers via Sparse Rate Reduction, arXiv 2311.13110, eq. 33"
    )

    subspaces: Whole
    rank: Whole
    gradient: Literal["attention", "softmax"] = "attention"
    out: Literal["free", "tied"] | None = None
    step: PositiveScalar | None = None
    eps: Positive = 0.5
    scale: PositiveScalar | None = None
    constraint: Literal["none", "orthonormal"] = "none"
    mask: Literal["none", "causal"] | Port = "none"
    norm: NormForm = LayerNorm()
    dropout: Fraction01 = 0.0
    bias: bool | None = None

    @property
    def tied(self) -> bool:
        """Whether the bases themselves lead back to the tokens (always in derived steps, on request in the
        published one).
        """
        return self.out == "tied" or (self.out is None and self.gradient == "softmax")

    @property
    def biased(self) -> bool:
        return not self.tied if self.bias is None else self.bias

    @property
    def softmax_scale(self) -> float:
        """p^(-1/2) as published; 1 in the derivation. Not asked for where `scale` is learned or handed over."""
        if isinstance(self.scale, float):
            return self.scale
        return self.rank**-0.5 if self.gradient == "attention" else 1.0

    def infer(self, *inputs: TensorType) -> Typing:
        (tokens,) = inputs
        width = width_of(self.word, tokens)
        if self.gradient == "softmax" and self.out == "free":
            raise Mistake(
                "E0305",
                "the derived step leads back through its own bases: `out = free` needs `gradient = attention`",
                at="out",
            )
        if self.gradient == "softmax" and self.mask != "none":
            raise Mistake(
                "E0305",
                "`gradient = softmax` has no published masked form",
                "`gradient = attention` takes a mask",
                at="mask",
            )
        if self.tied and self.bias:
            raise Mistake(
                "E0305", "a tied output map has no bias", "leave `bias` out, or write `out = free`", at="bias"
            )
        if self.constraint == "orthonormal":
            raise Mistake("E0901", "`constraint = orthonormal` is not there yet", at="constraint")
        if isinstance(self.mask, Port):
            check_mask(self.mask.type, tokens)
        inner = self.subspaces * self.rank
        weights: dict[str, Slot | Weight] = dict(norm_slots(self.norm, width, "norm_"))
        weights["subspaces"] = Slot((inner, width), linear_initial(width))
        if not self.tied:
            weights["out_weight"] = Slot((width, inner), linear_initial(inner))
            if self.biased:
                weights["out_bias"] = Slot((width,), linear_initial(inner))
        count = tokens.shape[0].bound
        norm = 0 if isinstance(self.norm, NoNorm) else 5 * count * width
        maps = 2 * 2 * count * width * inner
        attention = 2 * 2 * count * count * inner
        return Typing((tokens,), weights | learned_slots(self), flops=norm + maps + attention)

    def inverse(self, mode: Mode, *inputs: TensorType) -> Inverse | NoInverse:
        return NoInverse("its inverse, `decompress`, is not there yet")


def check_mask(mask: TensorType, tokens: TensorType) -> None:
    """A boolean mask says which tokens count: one for each. Raises `Mistake` where it does not fit."""
    if mask.kind != "bool" or mask.shape != tokens.shape[:1]:
        raise Mistake(
            "E0406",
            f"a mask of these tokens is bool[{tokens.shape[0]}], but is given {mask}",
            at="mask",
            label=str(mask),
        )
