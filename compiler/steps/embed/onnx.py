"""`embed` and `transpose` in ONNX."""

from __future__ import annotations

from crate_dsl.compiler.functions import Body
from crate_dsl.compiler.operators import Typing
from crate_dsl.compiler.steps.classic.onnx import affine
from crate_dsl.compiler.steps.embed.operator import Embed, Transpose


def embed(b: Body, op: Embed, typing: Typing, numbers_bn: str, *, weight: str) -> str:
    return b("Gather", weight, numbers_bn, axis=0)


def transpose(b: Body, op: Transpose, typing: Typing, z: str, *, weight: str) -> str:
    return affine(b, z, weight, None) if op.of == "embed" else b("MatMul", z, weight)
