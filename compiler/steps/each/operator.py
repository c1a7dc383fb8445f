"""What `each { … }` is made of: items as samples of a batch of their own, and back. Neither has a spelling."""

from __future__ import annotations

from typing import ClassVar

from crate_dsl.compiler.operators import Operator, OperatorKind, Port, Typing, Whole
from crate_dsl.compiler.types import TensorType


class Fold(Operator):
    """Every item as a sample: (V, …) -> (…), in a batch V times as large. `count` is V."""

    word: ClassVar[str] = "fold"
    kind: ClassVar[OperatorKind] = "lowered"
    formula: ClassVar[str] = r"x_{bv} \mapsto x_{bV + v}"

    count: Whole

    def items(self, given: int) -> int:
        return given * self.count

    def infer(self, *inputs: TensorType) -> Typing:
        (value,) = inputs
        return Typing((value.with_shape(*value.shape[1:]),))


class Unfold(Operator):
    """The items of each sample along an axis again: (…) -> (V, …), with as many of them as `like` has.

    The axis is that of `like`: where it is one of tokens, they are the same ones.
    """

    word: ClassVar[str] = "unfold"
    kind: ClassVar[OperatorKind] = "lowered"
    formula: ClassVar[str] = r"x_{bV + v} \mapsto x_{bv}"

    like: Port

    @property
    def count(self) -> int:
        """V."""
        return self.like.type.shape[0].bound

    def items(self, given: int) -> int:
        return given // self.count

    def infer(self, *inputs: TensorType) -> Typing:
        (value,) = inputs
        return Typing((value.with_shape(self.count, *value.shape, layout=self.like.type.layout),))
