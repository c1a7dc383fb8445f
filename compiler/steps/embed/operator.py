"""`embed`: a learned vector for each whole number; `transpose`: a linear step's weights the other way."""

from __future__ import annotations

from typing import ClassVar, Literal

from crate_dsl.compiler.operators import (
    Inverse,
    Mistake,
    Mode,
    NoInverse,
    Normal,
    Operator,
    Slot,
    Typing,
    Weight,
    Whole,
)
from crate_dsl.compiler.steps.classic.operator import last_width, with_width
from crate_dsl.compiler.types import Layout, Segment, TensorType, floats


class Embed(Operator):
    """A learned vector of width `dim` for each whole number, as `index(vocab)[n] -> float[n, dim]`.

    Numbers in a row become a token axis with one segment, `tokens`, unless they have a layout already.
    """

    word: ClassVar[str] = "embed"
    formula: ClassVar[str] = r"z_i = W_{x_i}"
    transposable: ClassVar[str | None] = "weight"

    dim: Whole

    def infer(self, *inputs: TensorType) -> Typing:
        (numbers,) = inputs
        if numbers.kind != "index":
            raise Mistake("E0411", f"`embed` takes whole numbers, index(vocab)[n], but is given {numbers}")
        assert numbers.classes is not None
        layout = numbers.layout
        if layout is None and numbers.rank == 1:
            layout = Layout((Segment("tokens", numbers.shape[0]),))
        weights = {"weight": Slot((numbers.classes, self.dim), Normal(std=0.02))}
        return Typing((floats(*numbers.shape, self.dim, layout=layout),), weights)

    def inverse(self, mode: Mode, *inputs: TensorType) -> Inverse | NoInverse:
        return NoInverse("its inverse, a linear map back, is not there yet")


class Transpose(Operator):
    """The weights of a linear step, used the other way: `transpose(embedding)` gives a score to each whole number.

    `weight` is borrowed from a step whose word is `of`: an embedding keeps it as (vocab, dim), a linear map as
    (out, in). A bias has no part in it.
    """

    word: ClassVar[str] = "transpose"
    formula: ClassVar[str] = r"W^\top z"
    source: ClassVar[str] = "tied embeddings: Press and Wolf 2017, arXiv 1608.05859"

    weight: Weight
    of: Literal["embed", "linear"]

    def infer(self, *inputs: TensorType) -> Typing:
        (value,) = inputs
        first, last = (dim.bound for dim in self.weight.type.shape)
        wanted, result = (last, first) if self.of == "embed" else (first, last)
        width = last_width(self.word, value)
        if width != wanted:
            raise Mistake(
                "E0412",
                f"`transpose` leads back from width {wanted} to {result}, but is given {value}",
                at="weight",
                label=f"{self.of}: {result} to {wanted}",
            )
        return Typing(
            (with_width(value, result),), {"weight": self.weight}, flops=2 * value.elements * result
        )

    def inverse(self, mode: Mode, *inputs: TensorType) -> Inverse | NoInverse:
        return NoInverse("its inverse, a linear map back, is not there yet")
