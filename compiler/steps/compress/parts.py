"""What `compress` and `decompress` consist of: norm, projection, attention within the subspaces, and the way back."""

from __future__ import annotations

import numpy as np

from crate_dsl.compiler.draft import Array, Draft
from crate_dsl.compiler.graph import Node, Value
from crate_dsl.compiler.masks import Rule
from crate_dsl.compiler.operators import Port
from crate_dsl.compiler.steps.arithmetic.operator import Add, Subtract
from crate_dsl.compiler.steps.classic.operator import Scale
from crate_dsl.compiler.steps.compress.operator import Compress, Decompress, SubspaceStep
from crate_dsl.compiler.steps.norm.parts import normalised
from crate_dsl.compiler.steps.parts.operator import Attention, Join
from crate_dsl.compiler.steps.parts.write import affine, combine
from crate_dsl.compiler.steps.rotary.operator import Rotary, Rotate


def compress(d: Draft, node: Node) -> Value | None:
    """Z + F(Z)."""
    assert isinstance(node.operator, Compress)
    found = branch(d, node, node.operator)
    return None if found is None else combine(d, node, "sum", Add, node.inputs[0], found[0])


def decompress(d: Draft, node: Node) -> Value | None:
    """Y - F(Y); more iterations are left whole, as a loop."""
    assert isinstance(node.operator, Decompress)
    if node.operator.iterations != 1:
        return None
    found = branch(d, node, node.operator)
    return None if found is None else combine(d, node, "difference", Subtract, node.inputs[0], found[0])


def branch(d: Draft, node: Node, op: SubspaceStep, held: Value | None = None) -> tuple[Value, Value] | None:
    """F(Z), where it is attention, and W. None where it is not, where its mask is a rule, or where a factor is another
    one for each sample or length.

    `held` is W of tokens that came before; the second value is then W of all, and the step's second input says how many
    they are.
    """
    tokens = d.type_of(node.inputs[0]).shape[0].static
    derived = op.gradient == "softmax"
    if (
        not op.attends
        or isinstance(op.mask, Rule)
        or isinstance(op.step, Port)
        or isinstance(op.scale, Port)
        or (derived and tokens is None)
    ):
        return None
    scale = d.number(node, "scale") if "scale" in node.weights else op.softmax_scale
    if np.size(scale) != 1 or scale <= 0:  # ONNX has no attention with such a scale
        return None
    rate: float | Array
    if op.step is None:
        rate = 0.5 if derived else 1.0
    else:
        rate = d.number(node, "step") * (op.alpha(tokens) if derived and tokens else 1.0)
    x = normalised(d, node, op.norm, node.inputs[0])
    subspaces = d.array(node, "subspaces")
    w = queries = affine(d, node, "projection", x, subspaces.T)
    if held is not None:
        w = d.add(node, "held", Join(), held, w)
    keys = w
    if isinstance(op.positions, Rotary):
        rotate = Rotate(heads=op.subspaces, base=op.positions.base)
        keys = d.add(node, "rotation", rotate, w)
        if held is None:
            queries = keys
        else:
            queries = d.add(node, "query_rotation", rotate, queries, ports={"past": node.inputs[1]})
    attention = Attention(
        heads=op.subspaces, scale=float(scale), causal=op.mask == "causal", before=held is not None
    )
    heads = d.add(node, "attention", attention, queries, keys, w, ports=node.ports)
    if derived:
        # eq. 33: κα (α MSSA(X) - X).
        assert tokens is not None
        mssa = affine(d, node, "out", heads, subspaces * (rate * op.alpha(tokens)))
        if np.size(rate) == 1:
            shrunk = d.add(node, "shrinkage", Scale(factor=float(rate)), x)
        else:
            shrunk = affine(d, node, "shrinkage", x, rate * np.eye(subspaces.shape[1]))
        return combine(d, node, "branch", Subtract, mssa, shrunk), w
    if op.tied:
        return affine(d, node, "out", heads, subspaces * rate), w
    bias = d.array(node, "out_bias") * rate if op.biased else None
    return affine(d, node, "out", heads, d.array(node, "out_weight").T * rate, bias), w
