"""`cross_compress` and `cross_attend`: tokens that are updated by what other tokens hold."""

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
    PositiveScalar,
    Slot,
    Typing,
    Weight,
    Whole,
    learned_slots,
    linear_initial,
)
from crate_dsl.compiler.steps.attend.operator import check_heads
from crate_dsl.compiler.steps.compress.operator import bases_of
from crate_dsl.compiler.steps.norm.operator import LayerNorm, NoNorm, NormForm, norm_slots, width_of
from crate_dsl.compiler.types import TensorType


class CrossStep(Operator):
    """What both have in common: the piped tokens ask, and `keys` answer."""

    @property
    def taps(self) -> tuple[str, ...]:
        return ("query", "key", "value", "attention")

    def inverse(self, mode: Mode, *inputs: TensorType) -> Inverse | NoInverse:
        return NoInverse("`keys` is handed over to it, and nobody hands it to its inverse")


class CrossCompress(CrossStep):
    """Compresses tokens against other tokens, `keys`: `compress`, in which the ones ask and the others are attended to.

    Both go through the same bases, and keys are their own values. With the tokens themselves for `keys` it is
    `compress` of the same arguments. `norm_queries = false` lets the asking tokens in as they are, as the code of
    DEPICT does, which also ties the output map and learns one step: `out = tied, step = learn(1.0)`.

    `mask` is false for keys that nobody attends to; `bases` takes a `learn` of shape [subspaces * rank, dim] in place
    of the step's own, which a `compress` may share; `scale` is that of the softmax, rank^(-1/2) unless it is said.

    Taps: `query` is (B, K, N, p), `key` and `value` are one tensor, (B, K, M, p); `attention` is (B, K, N, M), a row
    for each token that asks.
    """

    word: ClassVar[str] = "cross_compress"
    formula: ClassVar[str] = (
        r"Q + \kappa \sum_k O_k\, U_k^\top X \operatorname{softmax}(s\,(U_k^\top X)^\top (U_k^\top Y)),\quad "
        r"X = \operatorname{norm} Z,\ Y = \operatorname{norm} Q"
    )
    source: ClassVar[str] = (
        "Wen and Li 2024, Rethinking Decoders for Transformer-based Semantic Segmentation: A Compression Perspective "
        "(DEPICT), arXiv 2411.03033: the cross-attention variant"
    )

    subspaces: Whole
    rank: Whole
    keys: Port
    out: Literal["free", "tied"] = "free"
    step: PositiveScalar | None = None
    scale: PositiveScalar | None = None
    mask: Literal["none"] | Port = "none"
    norm: NormForm = LayerNorm()
    norm_queries: bool = True
    dropout: Fraction01 = 0.0
    bias: bool | None = None
    bases: Weight | None = None

    @property
    def biased(self) -> bool:
        return self.out == "free" if self.bias is None else self.bias

    @property
    def softmax_scale(self) -> float:
        """Not asked for where `scale` is learned or handed over."""
        return self.scale if isinstance(self.scale, float) else self.rank**-0.5

    def infer(self, *inputs: TensorType) -> Typing:
        (queries,) = inputs
        width = width_of(self.word, queries)
        _check_keys(self.word, queries, self.keys.type, self.mask)
        if self.out == "tied" and self.bias:
            raise Mistake(
                "E0305", "a tied output map has no bias", "leave `bias` out, or write `out = free`", at="bias"
            )
        if isinstance(self.norm, NoNorm) and not self.norm_queries:
            raise Mistake(
                "E0305", "without a norm there is none for `norm_queries` to leave out", at="norm_queries"
            )
        inner = self.subspaces * self.rank
        weights: dict[str, Slot | Weight] = dict(norm_slots(self.norm, width, "norm_"))
        weights["subspaces"] = bases_of(self.bases, inner, width, "none")
        if self.out == "free":
            weights["out_weight"] = Slot((width, inner), linear_initial(inner))
            if self.biased:
                weights["out_bias"] = Slot((width,), linear_initial(inner))
        weights |= {name: slot for name, slot in learned_slots(self).items() if name != "bases"}
        asking, answering = queries.shape[0].bound, self.keys.type.shape[0].bound
        normed = answering + (asking if self.norm_queries else 0)
        norm = 0 if isinstance(self.norm, NoNorm) else 5 * normed * width
        maps = 2 * (2 * asking + answering) * width * inner
        return Typing((queries,), weights, flops=norm + maps + 2 * 2 * asking * answering * inner)


class CrossAttend(CrossStep):
    """Multi-head attention of tokens to other tokens, `keys`: a black box, with maps of its own for queries, keys and
    values. It contains neither norm nor residual.

    With the class token asking and all tokens for `keys` it is class attention, and has as many weights as `attend`.
    `bias` stands for the biases of all maps. Taps: `query` is (B, heads, N, p), `key` and `value` are (B, heads, M, p);
    `attention` is (B, heads, N, M), a row for each token that asks.
    """

    word: ClassVar[str] = "cross_attend"
    formula: ClassVar[str] = (
        r"W_O \operatorname{concat}_h\!\left(V_h \operatorname{softmax}(K_h^\top Q_h / \sqrt{p})\right) + b_O,\quad "
        r"Q = W_Q Y + b_Q,\ [K; V] = W Z + b"
    )
    source: ClassVar[str] = (
        "Vaswani et al. 2017, Attention Is All You Need, arXiv 1706.03762, section 3.2.3; class attention: Touvron et "
        "al. 2021 (CaiT), arXiv 2103.17239, section 3"
    )

    heads: Whole
    keys: Port
    mask: Literal["none"] | Port = "none"
    bias: bool = True
    dropout: Fraction01 = 0.0

    def infer(self, *inputs: TensorType) -> Typing:
        (queries,) = inputs
        width = width_of(self.word, queries)
        _check_keys(self.word, queries, self.keys.type, self.mask)
        check_heads(self.heads, width)
        weights: dict[str, Slot | Weight] = {}
        for name, rows in (("query", width), ("key_value", 2 * width), ("out", width)):
            weights[f"{name}_weight"] = Slot((rows, width), linear_initial(width))
            if self.bias:
                weights[f"{name}_bias"] = Slot((rows,), linear_initial(width))
        asking, answering = queries.shape[0].bound, self.keys.type.shape[0].bound
        maps = 2 * (2 * asking + 2 * answering) * width * width
        return Typing((queries,), weights, flops=maps + 2 * 2 * asking * answering * width)


def _check_keys(step: str, queries: TensorType, keys: TensorType, mask: str | Port) -> None:
    """Keys are tokens as wide as those that ask, and a mask has a boolean for each of them. Raises `Mistake`."""
    if keys.kind != "float" or keys.rank != 2 or keys.shape[1] != queries.shape[1]:
        raise Mistake(
            "E0480",
            f"the `keys` of `{step}` are tokens as wide as those that ask, float[tokens, {queries.shape[1]}], but are "
            f"{keys}",
            f"`linear({queries.shape[1]})` brings tokens to that width",
            at="keys",
            label=str(keys),
        )
    if isinstance(mask, Port) and (mask.type.kind != "bool" or mask.type.shape != keys.shape[:1]):
        raise Mistake(
            "E0481",
            f"the mask of `{step}` has a boolean for each of its keys, bool[{keys.shape[0]}], but is given {mask.type}",
            at="mask",
            label=str(mask.type),
        )
