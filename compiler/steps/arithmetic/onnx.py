"""Arithmetic in ONNX."""

from __future__ import annotations

import numpy as np

from crate_dsl.compiler.functions import Body
from crate_dsl.compiler.operators import Typing
from crate_dsl.compiler.steps.arithmetic.operator import (
    Add,
    Divide,
    Item,
    Multiply,
    Negative,
    Operand,
    Subtract,
    inserted_axes,
)


def aligned(b: Body, operand: Operand, name: str | None, rank: int) -> str:
    """One operand, its axes lined up with those of a value of `rank` axes."""
    if isinstance(operand, float):
        return b.number(operand)
    assert name is not None
    inserted = inserted_axes(operand, rank)
    return b("Unsqueeze", name, b.integers(*range(1, 1 + inserted))) if inserted else name


def _binary(
    b: Body,
    op_type: str,
    op: Add | Subtract | Multiply | Divide,
    typing: Typing,
    left: str | None,
    right: str | None,
) -> str:
    rank = typing.output.rank
    return b(op_type, aligned(b, op.left, left, rank), aligned(b, op.right, right, rank))


def add(b: Body, op: Add, typing: Typing, *, left: str | None = None, right: str | None = None) -> str:
    return _binary(b, "Add", op, typing, left, right)


def subtract(
    b: Body, op: Subtract, typing: Typing, *, left: str | None = None, right: str | None = None
) -> str:
    return _binary(b, "Sub", op, typing, left, right)


def multiply(
    b: Body, op: Multiply, typing: Typing, *, left: str | None = None, right: str | None = None
) -> str:
    return _binary(b, "Mul", op, typing, left, right)


def divide(b: Body, op: Divide, typing: Typing, *, left: str | None = None, right: str | None = None) -> str:
    return _binary(b, "Div", op, typing, left, right)


def negative(b: Body, op: Negative, typing: Typing, *, value: str) -> str:
    return b("Neg", value)


def item(b: Body, op: Item, typing: Typing, *, value: str) -> str:
    return b("Gather", value, b.constant(np.asarray(op.index, np.int64)), axis=1)
