"""What `cross_compress` and `cross_attend` consist of: norm, projections, attention, and the way back."""

from __future__ import annotations

import numpy as np

from crate_dsl.compiler.draft import Array, Draft
from crate_dsl.compiler.graph import Node, Value
from crate_dsl.compiler.operators import Port
from crate_dsl.compiler.steps.arithmetic.operator import Add
from crate_dsl.compiler.steps.cross.operator import CrossAttend, CrossCompress
from crate_dsl.compiler.steps.norm.parts import normalised
from crate_dsl.compiler.steps.parts.operator import Attention
from crate_dsl.compiler.steps.parts.write import affine, combine


def cross_compress(d: Draft, node: Node) -> Value | None:
    """Q + F(Q, Z); None where a factor is another one for each sample, or no factor of a softmax."""
    op = node.operator
    assert isinstance(op, CrossCompress)
    if isinstance(op.step, Port) or isinstance(op.scale, Port):
        return None
    scale = d.number(node, "scale") if "scale" in node.weights else op.softmax_scale
    if np.size(scale) != 1 or scale <= 0:  # ONNX has no attention with such a scale
        return None
    rate: float | Array = 1.0 if op.step is None else d.number(node, "step")
    (queries,), keys = node.inputs, node.ports["keys"]
    subspaces = d.array(node, "subspaces")
    asking = normalised(d, node, op.norm, queries) if op.norm_queries else queries
    query = affine(d, node, "query", asking, subspaces.T)
    key = affine(d, node, "key", normalised(d, node, op.norm, keys), subspaces.T)
    heads = _attention(d, node, op.subspaces, float(scale), query, key, key)
    if op.out == "tied":
        out = affine(d, node, "out", heads, subspaces * rate)
    else:
        bias = d.array(node, "out_bias") * rate if op.biased else None
        out = affine(d, node, "out", heads, d.array(node, "out_weight").T * rate, bias)
    return combine(d, node, "sum", Add, queries, out)


def cross_attend(d: Draft, node: Node) -> Value:
    """Softmax attention with three maps in."""
    op = node.operator
    assert isinstance(op, CrossAttend)
    matrices = [d.array(node, "query_weight"), *np.split(d.array(node, "key_value_weight"), 2)]
    biases = (
        [d.array(node, "query_bias"), *np.split(d.array(node, "key_value_bias"), 2)]
        if op.bias
        else [None] * 3
    )
    values = (node.inputs[0], node.ports["keys"], node.ports["keys"])
    query, key, value = (
        affine(d, node, part, tokens, matrix.T, bias)
        for part, tokens, matrix, bias in zip(
            ("query", "key", "value"), values, matrices, biases, strict=True
        )
    )
    scale = (len(matrices[0]) // op.heads) ** -0.5
    heads = _attention(d, node, op.heads, scale, query, key, value)
    bias = d.array(node, "out_bias") if op.bias else None
    return affine(d, node, "out", heads, d.array(node, "out_weight").T, bias)


def _attention(
    d: Draft, node: Node, heads: int, scale: float, query: Value, key: Value, value: Value
) -> Value:
    mask = {name: given for name, given in node.ports.items() if name == "mask"}
    return d.add(node, "attention", Attention(heads=heads, scale=scale), query, key, value, ports=mask)
