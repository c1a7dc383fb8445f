"""What `sparsify` and `densify` consist of: norm, products with the dictionary, and the proximal map."""

from __future__ import annotations

import numpy as np

from crate_dsl.compiler.draft import Array, Draft
from crate_dsl.compiler.graph import Node, Value
from crate_dsl.compiler.operators import ports
from crate_dsl.compiler.steps.arithmetic.operator import Add, Subtract
from crate_dsl.compiler.steps.classic.operator import Relu
from crate_dsl.compiler.steps.norm.parts import normalised
from crate_dsl.compiler.steps.parts.operator import Leak, Shrink
from crate_dsl.compiler.steps.parts.write import affine, combine
from crate_dsl.compiler.steps.sparsify.operator import Densify, DictionaryStep, Leaky, Soft, Sparsify


def sparsify(d: Draft, node: Node) -> Value | None:
    """A_{t+1} = prox(A_t + η D'(Y - D A_t)), decoded and added where that is asked for.

    `soft` is left whole where its threshold is another one for each channel, or learned to be below zero.
    """
    op = node.operator
    assert isinstance(op, Sparsify)
    if ports(op):
        return None
    eta, threshold = _scalars(d, node, op)
    soft = isinstance(op.prox, Soft)
    if soft and (np.size(threshold) != 1 or threshold < 0):
        return None
    y = normalised(d, node, op.norm, node.inputs[0])
    dictionary_ds = d.array(node, "dictionary")
    ascent_ds, shift = dictionary_ds * eta, None if soft else -threshold
    a = y if op.start == "input" else None
    for _ in range(op.iterations):
        rest = y
        if a is not None:
            rest = combine(d, node, "rest", Subtract, y, affine(d, node, "synthesis", a, dictionary_ds.T))
        step = affine(d, node, "ascent", rest, ascent_ds, shift)
        a = _proximal(d, node, op, step if a is None else combine(d, node, "code", Add, a, step), threshold)
    assert a is not None
    if op.decode != "none":
        decoder_ds = dictionary_ds if op.decode == "tied" else d.array(node, "decode")
        a = affine(d, node, "decode", a, decoder_ds.T)
    return combine(d, node, "sum", Add, node.inputs[0], a) if op.residual else a


def densify(d: Draft, node: Node) -> Value | None:
    """E norm Y; or the proximal step of `sparsify` backwards, a linear map of prox⁻¹(Y). A residual is left whole."""
    op = node.operator
    assert isinstance(op, Densify)
    if op.by == "synthesis":
        y = normalised(d, node, op.norm, node.inputs[0])
        return affine(d, node, "synthesis", y, d.array(node, "dictionary").T)
    if ports(op) or op.residual or isinstance(op.prox, Soft):
        return None
    eta, threshold = _scalars(d, node, op)
    dictionary_dd = d.array(node, "dictionary")
    identity_dd, ascent_dd = np.eye(len(dictionary_dd)), dictionary_dd * eta
    # Row by row, the gradient step is X -> X (I + G).
    g_dd = ascent_dd - dictionary_dd.T @ ascent_dd
    if op.repeats == "certified":
        back_dd = np.linalg.inv(identity_dd + g_dd)
    else:
        back_dd = identity_dd
        for _ in range(op.repeats):
            back_dd = identity_dd - back_dd @ g_dd
    y = node.inputs[0]
    if isinstance(op.prox, Leaky):
        y = d.add(node, "unshrunk", Leak(slope=1 / op.prox.slope), y)
    return affine(d, node, "back", y, back_dd, np.broadcast_to(threshold, len(back_dd)) @ back_dd)


def _scalars(d: Draft, node: Node, op: DictionaryStep) -> tuple[float | Array, float | Array]:
    """η, and the threshold ηλ."""
    eta = d.number(node, "step")
    return eta, eta * d.number(node, "penalty")


def _proximal(d: Draft, node: Node, op: DictionaryStep, value: Value, threshold: float | Array) -> Value:
    """The proximal map, where the threshold is taken off already but for `soft`."""
    if isinstance(op.prox, Soft):
        return d.add(node, "prox", Shrink(threshold=float(threshold)), value)
    return d.add(node, "prox", Leak(slope=op.prox.slope) if isinstance(op.prox, Leaky) else Relu(), value)
