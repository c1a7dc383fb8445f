"""What `attend` consists of: queries, keys and values, attention, and the way out."""

from __future__ import annotations

import numpy as np

from crate_dsl.compiler.draft import Draft
from crate_dsl.compiler.graph import Node, Value
from crate_dsl.compiler.masks import Rule
from crate_dsl.compiler.steps.attend.operator import Attend
from crate_dsl.compiler.steps.parts.operator import Attention, Join
from crate_dsl.compiler.steps.parts.write import affine
from crate_dsl.compiler.steps.rotary.operator import Rotary, Rotate


def attend(d: Draft, node: Node) -> Value | None:
    """Softmax attention with three maps in; left whole where its mask is a rule."""
    found = attended(d, node)
    return None if found is None else found[0]


def attended(
    d: Draft, node: Node, held: tuple[Value, Value] | None = None
) -> tuple[Value, Value, Value] | None:
    """The same, with keys and values. `held` are those of tokens that came before: then the two are of all tokens, and
    the step's second input says how many came before.
    """
    op = node.operator
    assert isinstance(op, Attend)
    if isinstance(op.mask, Rule):
        return None
    matrices = np.split(d.array(node, "qkv_weight"), 3)
    biases = np.split(d.array(node, "qkv_bias"), 3) if op.bias else [None] * 3
    queries, keys, values = (
        affine(d, node, part, node.inputs[0], matrix.T, bias)
        for part, matrix, bias in zip(("queries", "keys", "values"), matrices, biases, strict=True)
    )
    if held is not None:
        keys = d.add(node, "held_keys", Join(), held[0], keys)
        values = d.add(node, "held_values", Join(), held[1], values)
    compared = keys
    if isinstance(op.positions, Rotary):
        rotate = Rotate(heads=op.heads, base=op.positions.base)
        past = {} if held is None else {"past": node.inputs[1]}
        queries = d.add(node, "rotation", rotate, queries, ports=past)
        compared = d.add(node, "rotation", rotate, keys)
    scale = (len(matrices[0]) // op.heads) ** -0.5
    attention = Attention(heads=op.heads, scale=scale, causal=op.mask == "causal", before=held is not None)
    heads = d.add(node, "attention", attention, queries, compared, values, ports=node.ports)
    bias = d.array(node, "out_bias") if op.bias else None
    return affine(d, node, "out", heads, d.array(node, "out_weight").T, bias), keys, values
