"""`embed` in torch."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from crate_dsl.compiler.modules import StepModule


class Embed(StepModule):
    """Whole numbers (B, n) -> (B, n, dim)."""

    weight: Tensor

    def forward(self, numbers_bn: Tensor) -> Tensor:
        return F.embedding(numbers_bn, self.weight)
