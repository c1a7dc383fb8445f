"""`embed` in ONNX."""

from __future__ import annotations

from crate_dsl.compiler.functions import Body
from crate_dsl.compiler.operators import Typing
from crate_dsl.compiler.steps.embed.operator import Embed


def embed(b: Body, op: Embed, typing: Typing, numbers_bn: str, *, weight: str) -> str:
    return b("Gather", weight, numbers_bn, axis=0)
