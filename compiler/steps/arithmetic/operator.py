"""Arithmetic: `x + y`, `x - y`, `2 * x`, `x / y`, `-x`, `steps[1]`. The compiler makes these steps from expressions.

They have no `module.py`: generated code holds them as plain Python, which `python(…)` writes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from crate_dsl.compiler.operators import (
    Inverse,
    Mistake,
    Mode,
    NoInverse,
    Operator,
    OperatorKind,
    Port,
    Typing,
    Weight,
    ports,
)
from crate_dsl.compiler.types import TensorType, floats

#: An operand: a value of the network (with a batch axis in front), a learned tensor (without), or a number.
Operand = Port | Weight | float


def type_of(operand: Operand) -> TensorType:
    """The type of one sample; numbers combine like tensors without axes."""
    return floats() if isinstance(operand, float) else operand.type


def borrowed(operator: Operator) -> dict[str, Weight]:
    """The operands that are learned tensors."""
    fields = {name: getattr(operator, name) for name in type(operator).model_fields}
    return {name: value for name, value in fields.items() if isinstance(value, Weight)}


def inserted_axes(operand: Operand, rank: int) -> int:
    """How many axes an operand needs behind its batch axis to combine with `rank` axes. Weights have no batch axis."""
    return rank - operand.type.rank if isinstance(operand, Port) else 0


def _need_data(operator: Operator, sign: str) -> None:
    """Every result has a batch axis, so that one operand must have one."""
    if not ports(operator):
        raise Mistake(
            "E0901",
            f"`{sign}` on learned tensors and numbers alone is not there yet",
            "combine one of them with a value that depends on an input",
        )


def _need_floats(sign: str, **operands: Operand) -> None:
    for name, operand in operands.items():
        kind = type_of(operand)
        if kind.kind != "float":
            raise Mistake(
                "E0413",
                f"`{sign}` takes float tensors and numbers, but is given {kind}",
                at=name,
                label=str(kind),
            )


class _Binary(Operator):
    """An operation on two operands whose shapes are equal, or one of which has a shape that ends the other's."""

    kind: ClassVar[OperatorKind] = "expression"
    sign: ClassVar[str]

    left: Operand
    right: Operand

    @property
    def tokenwise(self) -> bool:
        """Two values of the same tokens; or tokens with a number, or with a learned one for each channel."""
        values = {port.type.shape for port in ports(self).values()}
        learned = max((weight.type.rank for weight in borrowed(self).values()), default=0)
        return len(values) == 1 and learned <= 1 and max(map(len, values)) >= 1

    def infer(self, *inputs: TensorType) -> Typing:
        _need_floats(self.sign, left=self.left, right=self.right)
        left, right = type_of(self.left), type_of(self.right)
        longer, shorter = (left, right) if left.rank >= right.rank else (right, left)
        if longer.shape[longer.rank - shorter.rank :] != shorter.shape:
            raise Mistake(
                "E0407",
                f"`{self.sign}` cannot combine {left} with {right}",
                "tensors combine if their shapes are equal, or if one's shape is the end of the other's",
                at="right",
                label=str(right),
            )
        _need_data(self, self.sign)
        layout = longer.layout or (shorter.layout if shorter.rank == longer.rank else None)
        return Typing((replace(longer, layout=layout),), borrowed(self), flops=longer.elements)

    def python(self, **names: str) -> str:
        """The expression in Python: `z + y`, `g[:, None, None] * z`. `names` are those of the operands but numbers."""
        rank = max(type_of(self.left).rank, type_of(self.right).rank)
        left, right = (_text(getattr(self, name), names.get(name), rank) for name in ("left", "right"))
        return f"{left} {self.sign} {right}"

    def inverse(self, mode: Mode, *inputs: TensorType) -> Inverse | NoInverse:
        return NoInverse("arithmetic on several values cannot be undone")


def _text(operand: Operand, name: str | None, rank: int) -> str:
    """One operand in Python, its axes lined up with those of a value of `rank` axes."""
    if isinstance(operand, float):
        return repr(operand) if operand >= 0 else f"({operand!r})"
    assert name is not None
    inserted = inserted_axes(operand, rank)
    return name + (f"[:{', None' * inserted}]" if inserted else "")


class Add(_Binary):
    """The sum."""

    word: ClassVar[str] = "add"
    sign: ClassVar[str] = "+"
    formula: ClassVar[str] = "x + y"


class Subtract(_Binary):
    """The difference."""

    word: ClassVar[str] = "subtract"
    sign: ClassVar[str] = "-"
    formula: ClassVar[str] = "x - y"


class Multiply(_Binary):
    """The product, number by number."""

    word: ClassVar[str] = "multiply"
    sign: ClassVar[str] = "*"
    formula: ClassVar[str] = r"x \odot y"


class Divide(_Binary):
    """The quotient, number by number."""

    word: ClassVar[str] = "divide"
    sign: ClassVar[str] = "/"
    formula: ClassVar[str] = "x / y"

    def infer(self, *inputs: TensorType) -> Typing:
        if self.right == 0.0:
            raise Mistake("E0313", "this divides by zero", at="right")
        return super().infer(*inputs)


class Negative(Operator):
    """The negative."""

    word: ClassVar[str] = "negative"
    kind: ClassVar[OperatorKind] = "expression"
    formula: ClassVar[str] = "-x"

    value: Port | Weight

    @property
    def tokenwise(self) -> bool:
        return True

    def infer(self, *inputs: TensorType) -> Typing:
        _need_floats("-", value=self.value)
        _need_data(self, "-")
        return Typing((self.value.type,), borrowed(self), flops=self.value.type.elements)

    def python(self, **names: str) -> str:
        """The expression in Python: `-z`."""
        return f"-{names['value']}"

    def inverse(self, mode: Mode, *inputs: TensorType) -> Inverse | NoInverse:
        return NoInverse("it stands in an expression, not in a stage")


class Item(Operator):
    """One item of the first axis: `steps[1]`. Items are counted from 0."""

    word: ClassVar[str] = "item"
    kind: ClassVar[OperatorKind] = "expression"
    formula: ClassVar[str] = "x_i"

    value: Port | Weight
    index: int

    def infer(self, *inputs: TensorType) -> Typing:
        given = self.value.type
        length = given.shape[0].static if given.rank else None
        if length is None:
            raise Mistake(
                "E0415",
                f"items are taken of an axis of known length, and {given} starts with none",
                at="value",
            )
        if not 0 <= self.index < length:
            raise Mistake(
                "E0414",
                f"{given} has {length} items, and no item {self.index}",
                f"items are counted from 0 to {length - 1}",
                at="index",
            )
        _need_data(self, "[ ]")
        return Typing((replace(given, shape=given.shape[1:], layout=None),), borrowed(self))

    def python(self, **names: str) -> str:
        """The expression in Python: `z[:, 0]`."""
        return f"{names['value']}[:, {self.index}]"

    def inverse(self, mode: Mode, *inputs: TensorType) -> Inverse | NoInverse:
        return NoInverse("it discards the other items")
