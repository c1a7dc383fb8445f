"""`attend` in ONNX: the standard `Attention` operator. Axes: B batch, N tokens, d width."""

from __future__ import annotations

from crate_dsl.compiler.functions import Body
from crate_dsl.compiler.masks import Rule
from crate_dsl.compiler.operators import Typing
from crate_dsl.compiler.steps.attend.onnx_masks import of_keys, ruled
from crate_dsl.compiler.steps.attend.operator import Attend
from crate_dsl.compiler.steps.classic.onnx import affine
from crate_dsl.compiler.steps.rotary.onnx import rotated
from crate_dsl.compiler.steps.rotary.operator import Rotary


def attend(
    b: Body,
    op: Attend,
    typing: Typing,
    z_bnd: str,
    *,
    qkv_weight: str,
    out_weight: str,
    qkv_bias: str | None = None,
    out_bias: str | None = None,
    mask: str | None = None,
) -> str:
    query_bnd, key_bnd, value_bnd = b.several(
        "Split", 3, affine(b, z_bnd, qkv_weight, qkv_bias), axis=-1, num_outputs=3
    )
    if isinstance(op.positions, Rotary):
        rank = typing.output.shape[1].bound // op.heads
        query_bnd, key_bnd = (rotated(b, z, op.heads, rank, op.positions.base) for z in (query_bnd, key_bnd))
    arguments = [query_bnd, key_bnd, value_bnd]
    if isinstance(op.mask, Rule):
        arguments.append(ruled(b, op.mask, typing.facts, z_bnd, mask))
    elif mask is not None:
        arguments.append(of_keys(b, mask))
    heads_bnd = b(
        "Attention",
        *arguments,
        q_num_heads=op.heads,
        kv_num_heads=op.heads,
        is_causal=int(op.mask == "causal"),
    )
    return affine(b, heads_bnd, out_weight, out_bias)
