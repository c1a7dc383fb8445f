"""`embed`: a learned vector for each whole number."""

from __future__ import annotations

from typing import ClassVar

from crate_dsl.compiler.operators import (
    Inverse,
    LearnedInverse,
    Mistake,
    Mode,
    NoInverse,
    Normal,
    Operator,
    Slot,
    TiedInverse,
    Typing,
    Weight,
    Whole,
)
from crate_dsl.compiler.steps.classic.operator import Linear, Transpose
from crate_dsl.compiler.types import Layout, Segment, TensorType, floats


class Embed(Operator):
    """A learned vector of width `dim` for each whole number, as `index(vocab)[n] -> float[n, dim]`.

    Numbers in a row become a token axis with one segment, `tokens`, unless they have a layout already.
    """

    word: ClassVar[str] = "embed"
    formula: ClassVar[str] = r"z_i = W_{x_i}"
    transposable: ClassVar[str | None] = "weight"

    dim: Whole

    @property
    def tokenwise(self) -> bool:
        return True

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
        (numbers,) = inputs
        assert numbers.classes is not None
        if isinstance(mode, LearnedInverse):
            return Inverse(Linear(dim=numbers.classes, bias=False))
        if isinstance(mode, TiedInverse):
            weight = Weight("weight", floats(numbers.classes, self.dim))
            return Inverse(Transpose(weight=weight, of="embed"), {"weight": "weight"})
        return NoInverse("numbers become vectors, of which most stand for none", "mode = learned, or tied")
