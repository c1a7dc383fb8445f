"""`cross_compress` and `cross_attend` in ONNX: the standard `Attention` operator. Axes as in the torch face."""

from __future__ import annotations

from crate_dsl.compiler.functions import Body
from crate_dsl.compiler.operators import Typing
from crate_dsl.compiler.steps.attend.onnx_masks import of_keys
from crate_dsl.compiler.steps.classic.onnx import affine
from crate_dsl.compiler.steps.cross.operator import CrossAttend, CrossCompress
from crate_dsl.compiler.steps.norm.onnx import normalise


def _attention(
    b: Body, heads: int, scale: float, queries_bnm: str, keys_bmm: str, values_bmm: str, mask_bm: str | None
) -> str:
    """softmax(scale · Q Kᵀ) V of every head: (B, N, m)."""
    arguments = [queries_bnm, keys_bmm, values_bmm]
    if mask_bm is not None:
        arguments.append(of_keys(b, mask_bm, queries_bnm))
    return b("Attention", *arguments, q_num_heads=heads, kv_num_heads=heads, scale=scale)


def cross_compress(
    b: Body,
    op: CrossCompress,
    typing: Typing,
    q_bnd: str,
    *,
    keys: str,
    subspaces: str,
    norm_weight: str | None = None,
    norm_bias: str | None = None,
    out_weight: str | None = None,
    out_bias: str | None = None,
    mask: str | None = None,
    step: str | None = None,
    scale: str | None = None,
) -> str:
    x_bmd = normalise(b, op.norm, keys, norm_weight, norm_bias)
    asking_bnd = normalise(b, op.norm, q_bnd, norm_weight, norm_bias) if op.norm_queries else q_bnd
    query_bnm, key_bmm = affine(b, asking_bnd, subspaces, None), affine(b, x_bmd, subspaces, None)
    if scale is not None:
        query_bnm = b("Mul", query_bnm, b.scalar(op, "scale", scale))
    factor = op.softmax_scale if scale is None else 1.0
    heads_bnm = _attention(b, op.subspaces, factor, query_bnm, key_bmm, key_bmm, mask)
    if out_weight is None:
        out_bnd = b("MatMul", heads_bnm, subspaces)
    else:
        out_bnd = affine(b, heads_bnm, out_weight, out_bias)
    if op.step is not None:
        out_bnd = b("Mul", b.scalar(op, "step", step), out_bnd)
    return b("Add", q_bnd, out_bnd)


def cross_attend(
    b: Body,
    op: CrossAttend,
    typing: Typing,
    q_bnd: str,
    *,
    keys: str,
    query_weight: str,
    key_value_weight: str,
    out_weight: str,
    query_bias: str | None = None,
    key_value_bias: str | None = None,
    out_bias: str | None = None,
    mask: str | None = None,
) -> str:
    query_bnd = affine(b, q_bnd, query_weight, query_bias)
    both_bmd = affine(b, keys, key_value_weight, key_value_bias)
    key_bmd, value_bmd = b.several("Split", 2, both_bmd, axis=-1, num_outputs=2)
    scale = (typing.output.shape[1].bound // op.heads) ** -0.5
    return affine(
        b, _attention(b, op.heads, scale, query_bnd, key_bmd, value_bmd, mask), out_weight, out_bias
    )
