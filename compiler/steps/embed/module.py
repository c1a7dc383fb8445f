"""`embed` and `transpose` in torch."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from crate_dsl.compiler.modules import StepModule


class Embed(StepModule):
    """Whole numbers (B, n) -> (B, n, dim)."""

    weight: Tensor

    def forward(self, numbers_bn: Tensor) -> Tensor:
        return F.embedding(numbers_bn, self.weight)


class Transpose(StepModule):
    """(B, …, dim) -> (B, …, vocab) for an embedding's weight; (B, …, out) -> (B, …, in) for a linear map's."""

    def forward(self, z: Tensor, *, weight: Tensor) -> Tensor:
        return F.linear(z, weight) if self.operator.of == "embed" else z @ weight
