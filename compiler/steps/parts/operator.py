"""Parts of steps: what the compiler writes steps out as, to compute the same with less. None of them has a spelling."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from crate_dsl.compiler.operators import (
    NonNegative,
    Operator,
    OperatorKind,
    Port,
    Positive,
    Slot,
    Typing,
    Whole,
    Zeros,
)
from crate_dsl.compiler.steps.norm.operator import LayerNorm, RmsNorm
from crate_dsl.compiler.types import Dim, Layout, TensorType, grown


class _Part(Operator):
    kind: ClassVar[OperatorKind] = "lowered"


class _Tokenwise(_Part):
    @property
    def tokenwise(self) -> bool:
        return True


class Affine(_Tokenwise):
    """z M + b for each token as a row: (…, in) -> (…, dim). `matrix` is (in, dim), as products read it."""

    word: ClassVar[str] = "affine"
    formula: ClassVar[str] = "z M + b"

    dim: Whole
    bias: bool = True

    def infer(self, *inputs: TensorType) -> Typing:
        (value,) = inputs
        width = value.shape[-1].bound
        weights = {"matrix": Slot((width, self.dim), Zeros())}
        if self.bias:
            weights["bias"] = Slot((self.dim,), Zeros())
        out = replace(value, shape=(*value.shape[:-1], Dim.of(self.dim)))
        return Typing((out,), weights, flops=2 * value.elements * self.dim)


class Standardise(_Tokenwise):
    """A norm without its scale and shift."""

    word: ClassVar[str] = "standardise"
    formula: ClassVar[str] = r"(z - \operatorname{mean} z) / \sqrt{\operatorname{var} z + \epsilon}"

    by: LayerNorm | RmsNorm

    def infer(self, *inputs: TensorType) -> Typing:
        (value,) = inputs
        return Typing((value,), flops=3 * value.elements)


class Leak(_Tokenwise):
    """z where it is positive, `slope` times it elsewhere."""

    word: ClassVar[str] = "leak"
    formula: ClassVar[str] = r"\max(z, 0) + a \min(z, 0)"

    slope: Positive

    def infer(self, *inputs: TensorType) -> Typing:
        (value,) = inputs
        return Typing((value,), flops=value.elements)


class Shrink(_Tokenwise):
    """Soft thresholding: towards zero by `threshold`, and no further than zero."""

    word: ClassVar[str] = "shrink"
    formula: ClassVar[str] = r"\operatorname{sign}(z) \max(|z| - \tau, 0)"

    threshold: NonNegative

    def infer(self, *inputs: TensorType) -> Typing:
        (value,) = inputs
        return Typing((value,), flops=2 * value.elements)


class Offset(_Part):
    """A fixed vector for each place, added: (N, d) -> (N, d)."""

    word: ClassVar[str] = "offset"
    formula: ClassVar[str] = "z_i + t_i"

    def infer(self, *inputs: TensorType) -> Typing:
        (tokens,) = inputs
        shape = tuple(dim.bound for dim in tokens.shape)
        return Typing((tokens,), {"table": Slot(shape, Zeros())}, flops=tokens.elements)


class Attention(_Part):
    """Multi-head attention: queries (N, m), keys and values (M, m) -> (N, m). `mask` (M,) is true where keys count.

    A causal one is aligned to the first query, or, `before`, to the last: then M - N keys came before all queries.
    """

    word: ClassVar[str] = "attention"
    formula: ClassVar[str] = r"\operatorname{softmax}(s\,Q_h K_h^\top) V_h"

    heads: Whole
    scale: float
    causal: bool = False
    before: bool = False
    mask: Port | None = None

    def infer(self, *inputs: TensorType) -> Typing:
        queries, keys, values = inputs
        count, width = queries.shape[0].bound, values.shape[1].bound
        out = queries.with_shape(queries.shape[0], width, layout=queries.layout)
        return Typing((out,), flops=2 * 2 * count * keys.shape[0].bound * width)


class Join(_Part):
    """Rows that are held, and those of the next tokens: (M, d), (N, d) -> (M + N, d)."""

    word: ClassVar[str] = "join"
    formula: ClassVar[str] = r"[H,\, Z]"

    def infer(self, *inputs: TensorType) -> Typing:
        rows, tokens = inputs
        return Typing((grown(rows, tokens),))


class Take(_Part):
    """Tokens by their places, counted from the end below zero: (N, d) -> (k, d). `layout` is the result's."""

    word: ClassVar[str] = "take"
    formula: ClassVar[str] = r"(z_i)_{i \in S}"

    places: tuple[int, ...]
    layout: Layout | None = None

    def infer(self, *inputs: TensorType) -> Typing:
        (tokens,) = inputs
        return Typing((tokens.with_shape(len(self.places), tokens.shape[1], layout=self.layout),))


class Only(_Part):
    """The one token that there is: (1, d) -> (d,)."""

    word: ClassVar[str] = "only"
    formula: ClassVar[str] = "z_1"

    def infer(self, *inputs: TensorType) -> Typing:
        (token,) = inputs
        assert token.shape[0].static == 1
        return Typing((replace(token.with_shape(token.shape[1]), flat=False),), facts=token.flat)


class Flatten(_Part):
    """The tokens of all samples as rows of one matrix: (B, N, d) -> (B N, d)."""

    word: ClassVar[str] = "flatten"
    formula: ClassVar[str] = r"[Z_1, \dots, Z_B]"

    def infer(self, *inputs: TensorType) -> Typing:
        (tokens,) = inputs
        return Typing((replace(tokens, flat=True),))


class Unflatten(_Part):
    """The rows as tokens of their samples again: (B N, d) -> (B, N, d); N is that of `like` where it is not known."""

    word: ClassVar[str] = "unflatten"
    formula: ClassVar[str] = r"Z_1, \dots, Z_B"

    like: Port | None = None

    def infer(self, *inputs: TensorType) -> Typing:
        (rows,) = inputs
        return Typing((replace(rows, flat=False),), facts=rows.shape[0].static)
