"""`sparsify` in ONNX: two products for each step. Axes: B batch, N tokens, d width, s codes."""

from __future__ import annotations

from crate_dsl.compiler.functions import Body
from crate_dsl.compiler.operators import Typing
from crate_dsl.compiler.steps.norm.onnx import normalise
from crate_dsl.compiler.steps.sparsify.operator import Leaky, ProxForm, Soft, Sparsify


def proximal(b: Body, form: ProxForm, a_bns: str, threshold: str) -> str:
    """The proximal map of the penalty, with `threshold` = step · penalty."""
    shrunk_bns = b("Sub", a_bns, threshold)
    if isinstance(form, Soft):
        return b("Sub", b("Relu", shrunk_bns), b("Relu", b("Sub", b("Neg", a_bns), threshold)))
    if isinstance(form, Leaky):
        return b("LeakyRelu", shrunk_bns, alpha=form.slope)
    return b("Relu", shrunk_bns)


def sparsify(
    b: Body,
    op: Sparsify,
    typing: Typing,
    z_bnd: str,
    *,
    dictionary: str,
    decode: str | None = None,
    norm_weight: str | None = None,
    norm_bias: str | None = None,
    step: str | None = None,
    penalty: str | None = None,
) -> str:
    y_bnd = normalise(b, op.norm, z_bnd, norm_weight, norm_bias)
    eta = b.scalar(op, "step", step)
    if isinstance(op.step, float) and isinstance(op.penalty, float):
        threshold = b.number(op.step * op.penalty)
    else:
        threshold = b("Mul", eta, b.scalar(op, "penalty", penalty))
    synthesis_sd = b("Transpose", dictionary, perm=[1, 0])
    a_bns: str | None = y_bnd if op.start == "input" else None
    for _ in range(op.iterations):
        residue_bnd = y_bnd if a_bns is None else b("Sub", y_bnd, b("MatMul", a_bns, synthesis_sd))
        ascent_bns = b("Mul", eta, b("MatMul", residue_bnd, dictionary))
        a_bns = proximal(b, op.prox, ascent_bns if a_bns is None else b("Add", a_bns, ascent_bns), threshold)
    assert a_bns is not None
    out_bnd = a_bns
    if op.decode == "tied":
        out_bnd = b("MatMul", a_bns, synthesis_sd)
    elif decode is not None:
        out_bnd = b("MatMul", a_bns, b("Transpose", decode, perm=[1, 0]))
    return b("Add", z_bnd, out_bnd) if op.residual else out_bnd
