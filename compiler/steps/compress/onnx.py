"""`compress` in ONNX: the standard `Attention` operator with q = k = v. Axes: B batch, N tokens, d width, m = K p."""

from __future__ import annotations

from crate_dsl.compiler.functions import Body
from crate_dsl.compiler.operators import Typing
from crate_dsl.compiler.steps.compress.operator import Compress
from crate_dsl.compiler.steps.norm.onnx import normalise


def square_mask(b: Body, mask_bn: str) -> str:
    """A boolean mask of keys, as `Attention` takes it: onnxruntime does not broadcast (B, N) to (B, 1, N, N)."""
    batch, tokens = b("Shape", mask_bn, start=0, end=1), b("Shape", mask_bn, start=1, end=2)
    shape = b("Concat", batch, b.integers(1), tokens, tokens, axis=0)
    return b("Expand", b("Unsqueeze", mask_bn, b.integers(1, 2)), shape)


def compress(
    b: Body,
    op: Compress,
    typing: Typing,
    z_bnd: str,
    *,
    subspaces: str,
    norm_weight: str | None = None,
    norm_bias: str | None = None,
    out_weight: str | None = None,
    out_bias: str | None = None,
    mask: str | None = None,
    step: str | None = None,
    scale: str | None = None,
) -> str:
    x_bnd = normalise(b, op.norm, z_bnd, norm_weight, norm_bias)
    w_bnm = b("MatMul", x_bnd, b("Transpose", subspaces, perm=[1, 0]))
    query_bnm = w_bnm if scale is None else b("Mul", w_bnm, b.scalar(op, "scale", scale))
    arguments = [query_bnm, w_bnm, w_bnm]
    if mask is not None:
        arguments.append(square_mask(b, mask))
    heads_bnm = b(
        "Attention",
        *arguments,
        q_num_heads=op.subspaces,
        kv_num_heads=op.subspaces,
        scale=op.softmax_scale if scale is None else 1.0,
        is_causal=int(op.mask == "causal"),
    )
    if op.gradient == "softmax":
        tokens = b("Cast", b("Shape", z_bnd, start=1, end=2), to=1)
        alpha = b("Div", b.number(op.rank / op.eps**2), tokens)
        mssa_bnd = b("Mul", alpha, b("MatMul", heads_bnm, subspaces))
        direction_bnd = b("Sub", mssa_bnd, x_bnd)
        rate = b.number(0.5) if op.step is None else b("Mul", b.scalar(op, "step", step), alpha)
        return b("Add", z_bnd, b("Mul", rate, direction_bnd))
    if op.tied:
        out_bnd = b("MatMul", heads_bnm, subspaces)
    else:
        assert out_weight is not None
        out_bnd = b("MatMul", heads_bnm, b("Transpose", out_weight, perm=[1, 0]))
        if out_bias is not None:
            out_bnd = b("Add", out_bnd, out_bias)
    if op.step is not None:
        out_bnd = b("Mul", b.scalar(op, "step", step), out_bnd)
    return b("Add", z_bnd, out_bnd)
