"""`patchify` and `unpatchify` in ONNX. Axes: B batch, C channels, h x w patches of p x q pixels, m = p q C."""

from __future__ import annotations

from crate_dsl.compiler.functions import Body
from crate_dsl.compiler.operators import Typing
from crate_dsl.compiler.steps.patches.operator import CUT_TO_TOKENS, TOKENS_TO_CUT, Patchify, Unpatchify
from crate_dsl.compiler.types import Grid


def patchify(b: Body, op: Patchify, typing: Typing, x_bchw: str) -> str:
    g: Grid = typing.facts
    # A size of 0 keeps the input's: the batch.
    cut_bchpwq = b("Reshape", x_bchw, b.integers(0, g.channels, g.rows, g.patch, g.columns, g.patch))
    tokens = b("Transpose", cut_bchpwq, perm=list(CUT_TO_TOKENS[g.order]))
    return b("Reshape", tokens, b.integers(0, g.rows * g.columns, g.patch**2 * g.channels))


def unpatchify(b: Body, op: Unpatchify, typing: Typing, z_bnm: str) -> str:
    g: Grid = typing.facts
    inner = (g.patch, g.patch, g.channels) if g.order == "pqc" else (g.channels, g.patch, g.patch)
    tokens = b("Reshape", z_bnm, b.integers(0, g.rows, g.columns, *inner))
    cut_bchpwq = b("Transpose", tokens, perm=list(TOKENS_TO_CUT[g.order]))
    return b("Reshape", cut_bchpwq, b.integers(0, g.channels, g.rows * g.patch, g.columns * g.patch))
