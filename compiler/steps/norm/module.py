"""`norm` in torch."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from crate_dsl.compiler.modules import StepModule
from crate_dsl.compiler.steps.norm.operator import LayerNorm, NormForm, RmsNorm


def normalise(form: NormForm, z_bnd: Tensor, weight_d: Tensor | None, bias_d: Tensor | None) -> Tensor:
    """A norm with its weights, over the last axis."""
    if isinstance(form, LayerNorm):
        return F.layer_norm(z_bnd, z_bnd.shape[-1:], weight_d, bias_d, form.eps)
    if isinstance(form, RmsNorm):
        return F.rms_norm(z_bnd, z_bnd.shape[-1:], weight_d, form.eps)
    return z_bnd


class Norm(StepModule):
    """Normalises each token: (B, N, d) or (B, d) -> the same."""

    weight: Tensor

    def forward(self, z_bnd: Tensor) -> Tensor:
        return normalise(self.operator.form, z_bnd, self.weight, getattr(self, "bias", None))
