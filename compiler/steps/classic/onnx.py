"""`linear`, `transpose`, `gelu`, `relu`, `silu`, `dropout` and `scale` in ONNX."""

from __future__ import annotations

from crate_dsl.compiler.functions import Body
from crate_dsl.compiler.operators import Port, Typing
from crate_dsl.compiler.steps.classic.operator import Dropout, Gelu, Linear, Relu, Scale, Silu, Transpose


def affine(b: Body, z: str, weight: str, bias: str | None) -> str:
    """W z + b over the last axis, with the weight (out, in) as torch keeps it."""
    mapped = b("MatMul", z, b("Transpose", weight, perm=[1, 0]))
    return mapped if bias is None else b("Add", mapped, bias)


def linear(b: Body, op: Linear, typing: Typing, z: str, *, weight: str, bias: str | None = None) -> str:
    return affine(b, z, weight, bias)


def transpose(b: Body, op: Transpose, typing: Typing, z: str, *, weight: str) -> str:
    return affine(b, z, weight, None) if op.of == "embed" else b("MatMul", z, weight)


def gelu(b: Body, op: Gelu, typing: Typing, z: str) -> str:
    return b("Gelu", z, approximate="none")


def relu(b: Body, op: Relu, typing: Typing, z: str) -> str:
    return b("Relu", z)


def silu(b: Body, op: Silu, typing: Typing, z: str) -> str:
    return b("Mul", z, b("Sigmoid", z))


def dropout(b: Body, op: Dropout, typing: Typing, z: str) -> str:
    return b("Identity", z)


def scale(b: Body, op: Scale, typing: Typing, z: str, *, factor: str | None = None) -> str:
    if factor is None:
        return b("Mul", z, b.scalar(op, "factor", None))
    if isinstance(op.factor, Port):
        factor = b("Reshape", factor, b.integers(-1, *[1] * typing.output.rank))
    return b("Mul", z, factor)
