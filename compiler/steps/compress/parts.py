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
from crate_dsl.compiler.steps.parts.operator import Attention
from crate_dsl.compiler.steps.parts.write import affine, combine
from crate_dsl.compiler.steps.rotary.operator import Rotary, Rotate


def compress(d: Draft, node: Node) -> Value | None:
    """Z + F(Z)."""
    assert isinstance(node.operator, Compress)
    branch = _branch(d, node, node.operator)
    return None if branch is None else combine(d, node, "sum", Add, node.inputs[0], branch)


def decompress(d: Draft, node: Node) -> Value | None:
    """Y - F(Y); more iterations are left whole, as a loop."""
    assert isinstance(node.operator, Decompress)
    if node.operator.iterations != 1:
        return None
    branch = _branch(d, node, node.operator)
    return None if branch is None else combine(d, node, "difference", Subtract, node.inputs[0], branch)


def _branch(d: Draft, node: Node, op: SubspaceStep) -> Value | None:
    """F(Z), where it is attention. None where it is not, where its mask is a rule, or where a factor is another one for
    each sample or length.
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
    w = affine(d, node, "projection", x, subspaces.T)
    attention = Attention(heads=op.subspaces, scale=float(scale), causal=op.mask == "causal")
    compared = w
    if isinstance(op.positions, Rotary):
        compared = d.add(node, "rotation", Rotate(heads=op.subspaces, base=op.positions.base), w)
    heads = d.add(node, "attention", attention, compared, compared, w, ports=node.ports)
    if derived:
        # eq. 33: κα (α MSSA(X) - X).
        assert tokens is not None
        mssa = affine(d, node, "out", heads, subspaces * (rate * op.alpha(tokens)))
        if np.size(rate) == 1:
            shrunk = d.add(node, "shrinkage", Scale(factor=float(rate)), x)
        else:
            shrunk = affine(d, node, "shrinkage", x, rate * np.eye(subspaces.shape[1]))
        return combine(d, node, "branch", Subtract, mssa, shrunk)
    if op.tied:
        return affine(d, node, "out", heads, subspaces * rate)
    bias = d.array(node, "out_bias") * rate if op.biased else None
    return affine(d, node, "out", heads, d.array(node, "out_weight").T * rate, bias)
