"""Affine maps in fewer bits, in torch. `…` are any axes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from crate_dsl.compiler.modules import StepModule


class HalfAffine(StepModule):
    """(…, in) -> (…, dim). The product is in the type that the matrix has been given, all sums are in float32."""

    matrix: Tensor

    def forward(self, z: Tensor) -> Tensor:
        product = F.linear(z.to(self.matrix.dtype), self.matrix.T).float()
        out = _completed(self, z, product, getattr(self, "bias", None))
        return out.to(self.matrix.dtype) if self.operator.attended else out


class Int8Affine(StepModule):
    """(…, in) -> (…, dim): what whole numbers would give, in floating point."""

    matrix: Tensor
    step: Tensor
    origin: Tensor
    steps: Tensor

    def forward(self, z: Tensor) -> Tensor:
        quantised = torch.round(z / self.step + self.origin).clamp(0, 255) - self.origin
        scale = self.step * self.steps
        bias: Tensor | None = getattr(self, "bias", None)
        bias = None if bias is None else bias * scale
        return _completed(self, z, quantised @ self.matrix * scale, bias)


def _completed(step: StepModule, z: Tensor, product: Tensor, bias: Tensor | None) -> Tensor:
    out = product if bias is None else product + bias
    return out + z if step.operator.near else out
