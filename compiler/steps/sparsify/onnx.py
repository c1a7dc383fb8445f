"""`sparsify` and `densify` in ONNX: two products for each step. Axes: B batch, N tokens, d width, s codes."""

from __future__ import annotations

from collections.abc import Mapping

from crate_dsl.compiler.functions import Body
from crate_dsl.compiler.operators import FLOAT32_SPACING, Typing
from crate_dsl.compiler.steps.norm.onnx import normalise
from crate_dsl.compiler.steps.sparsify.operator import (
    Densify,
    DictionaryStep,
    Leaky,
    ProxForm,
    Soft,
    Sparsify,
)


def proximal(b: Body, form: ProxForm, a_bns: str, threshold: str) -> str:
    """The proximal map of the penalty, with `threshold` = step · penalty."""
    shrunk_bns = b("Sub", a_bns, threshold)
    if isinstance(form, Soft):
        return b("Sub", b("Relu", shrunk_bns), b("Relu", b("Sub", b("Neg", a_bns), threshold)))
    if isinstance(form, Leaky):
        return b("LeakyRelu", shrunk_bns, alpha=form.slope)
    return b("Relu", shrunk_bns)


def unshrunk(b: Body, form: ProxForm, a_bns: str, threshold: str) -> str:
    """What the proximal map took to `a_bns`: with `leaky` for certain, else as far as it is active."""
    if isinstance(form, Soft):
        return b("Add", a_bns, b("Mul", b("Sign", a_bns), threshold))
    if isinstance(form, Leaky):
        a_bns = b("LeakyRelu", a_bns, alpha=1 / form.slope)
    return b("Add", a_bns, threshold)


def scalars(b: Body, op: DictionaryStep, given: Mapping[str, str]) -> tuple[str, str]:
    """η, and the threshold ηλ."""
    eta = b.scalar(op, "step", given.get("step"))
    if isinstance(op.step, float) and isinstance(op.penalty, float):
        return eta, b.number(op.step * op.penalty)
    return eta, b("Mul", eta, b.scalar(op, "penalty", given.get("penalty")))


def ascent(b: Body, y_bnd: str, a_bns: str | None, eta: str, dictionary_ds: str, synthesis_sd: str) -> str:
    """η D'(Y - D A)."""
    residue_bnd = y_bnd if a_bns is None else b("Sub", y_bnd, b("MatMul", a_bns, synthesis_sd))
    return b("Mul", eta, b("MatMul", residue_bnd, dictionary_ds))


def coded(b: Body, op: DictionaryStep, z_bnd: str, given: Mapping[str, str]) -> str:
    """What the proximal steps make of tokens: their code, decoded where that is asked for."""
    dictionary = given["dictionary"]
    y_bnd = normalise(b, op.norm, z_bnd, given.get("norm_weight"), given.get("norm_bias"))
    eta, threshold = scalars(b, op, given)
    synthesis_sd = b("Transpose", dictionary, perm=[1, 0])
    a_bns: str | None = y_bnd if op.start == "input" else None
    for _ in range(op.iterations):
        ascent_bns = ascent(b, y_bnd, a_bns, eta, dictionary, synthesis_sd)
        a_bns = proximal(b, op.prox, ascent_bns if a_bns is None else b("Add", a_bns, ascent_bns), threshold)
    assert a_bns is not None
    if op.decode == "none":
        return a_bns
    if op.decode == "tied":
        return b("MatMul", a_bns, synthesis_sd)
    return b("MatMul", a_bns, b("Transpose", given["decode"], perm=[1, 0]))


def sparsify(b: Body, op: Sparsify, typing: Typing, z_bnd: str, **given: str) -> str:
    out_bnd = coded(b, op, z_bnd, given)
    return b("Add", z_bnd, out_bnd) if op.residual else out_bnd


def densify(b: Body, op: Densify, typing: Typing, y_bnd: str, **given: str) -> str:
    dictionary = given["dictionary"]
    if op.by == "synthesis":
        x_bnd = normalise(b, op.norm, y_bnd, given.get("norm_weight"), given.get("norm_bias"))
        return b("MatMul", x_bnd, b("Transpose", dictionary, perm=[1, 0]))
    if op.residual:
        assert isinstance(op.repeats, int)
        return b.repeat(op.repeats, y_bnd, lambda i, x_bnd: i("Sub", y_bnd, coded(i, op, x_bnd, given)))
    eta, threshold = scalars(b, op, given)
    v_bnd = unshrunk(b, op.prox, y_bnd, threshold)
    synthesis_dd = b("Transpose", dictionary, perm=[1, 0])
    if op.repeats == "certified":
        return b("MatMul", v_bnd, step_inverse(b, op, eta, dictionary, synthesis_dd))

    def turn(inner: Body, x_bnd: str) -> str:
        return inner("Sub", v_bnd, ascent(inner, x_bnd, x_bnd, eta, dictionary, synthesis_dd))

    return b.repeat(op.repeats, v_bnd, turn)


def step_inverse(b: Body, op: Densify, eta: str, dictionary_dd: str, synthesis_dd: str) -> str:
    """M⁻¹ of the weight alone, where M = I + η(D - D'D) stands to the right of tokens: X <- X (2 I - M X) from I."""
    identity_dd = b("EyeLike", dictionary_dd, dtype=1)
    gram_dd = b("MatMul", synthesis_dd, dictionary_dd)
    m_dd = b("Add", identity_dd, b("Mul", eta, b("Sub", dictionary_dd, gram_dd)))
    twice_dd = b("Add", identity_dd, identity_dd)
    inverse_dd = identity_dd
    for _ in range(op.newton_steps(FLOAT32_SPACING)):
        inverse_dd = b("MatMul", inverse_dd, b("Sub", twice_dd, b("MatMul", m_dd, inverse_dd)))
    return inverse_dd
