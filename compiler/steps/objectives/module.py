"""Objectives in torch: tensors by name in, the mean over the batch out, shape ()."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from crate_dsl.compiler.modules import StepModule


class CrossEntropy(StepModule):
    """Logits (B, C) and labels (B), or (B, N, C) and (B, N) -> ()."""

    def forward(self, *, logits: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(
            logits.flatten(0, -2), label.flatten(), label_smoothing=self.operator.smoothing
        )


class Mse(StepModule):
    """Two tensors (B, …) -> ()."""

    def forward(self, *, output: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(output, target)
