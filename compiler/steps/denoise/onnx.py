"""`denoise` in ONNX. Axes: B batch, N tokens, d width, K subspaces, p rank."""

from __future__ import annotations

from crate_dsl.compiler.functions import Body
from crate_dsl.compiler.operators import Typing
from crate_dsl.compiler.steps.denoise.operator import Denoise


def denoise(b: Body, op: Denoise, typing: Typing, z_bnd: str, **given: str) -> str:
    subspaces_md = given["subspaces"]
    time = b.scalar(op, "time", given.get("time"))
    square = b("Mul", time, time)
    spread = b("Add", square, b.number(1.0))
    w_bnm = b("MatMul", z_bnd, b("Transpose", subspaces_md, perm=[1, 0]))
    w_bnkp = b("Reshape", w_bnm, b.integers(0, 0, op.subspaces, op.rank))
    energy_bnk = b("ReduceSumSquare", w_bnkp, b.integers(-1), keepdims=0)
    scaled_bnk = b("Div", energy_bnk, b("Mul", b.number(2.0), b("Mul", square, spread)))
    posterior_bnk1 = b("Unsqueeze", b("Softmax", scaled_bnk, axis=-1), b.integers(-1))
    heads_bnm = b("Reshape", b("Mul", posterior_bnk1, w_bnkp), b.integers(0, 0, op.subspaces * op.rank))
    return b("Div", b("MatMul", heads_bnm, subspaces_md), spread)
