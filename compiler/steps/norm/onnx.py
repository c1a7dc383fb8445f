"""`norm` in ONNX."""

from __future__ import annotations

from crate_dsl.compiler.functions import Body
from crate_dsl.compiler.operators import Typing
from crate_dsl.compiler.steps.norm.operator import LayerNorm, Norm, NormForm, RmsNorm


def normalise(b: Body, form: NormForm, z_bnd: str, weight_d: str | None, bias_d: str | None) -> str:
    """A norm with its weights, over the last axis."""
    if isinstance(form, LayerNorm):
        assert weight_d is not None and bias_d is not None
        return b("LayerNormalization", z_bnd, weight_d, bias_d, axis=-1, epsilon=form.eps)
    if isinstance(form, RmsNorm):
        assert weight_d is not None
        return b("RMSNormalization", z_bnd, weight_d, axis=-1, epsilon=form.eps)
    return z_bnd


def norm(b: Body, op: Norm, typing: Typing, z_bnd: str, *, weight: str, bias: str | None = None) -> str:
    return normalise(b, op.form, z_bnd, weight, bias)
