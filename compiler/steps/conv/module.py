"""`conv` and `batch_norm` in torch. Axes: B batch, C channels, H x W pixels."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from crate_dsl.compiler.modules import StepModule


class Conv(StepModule):
    """(B, C, H, W) -> (B, dim, H', W')."""

    weight: Tensor

    def forward(self, x_bchw: Tensor) -> Tensor:
        op, bias = self.operator, getattr(self, "bias", None)
        return F.conv2d(x_bchw, self.weight, bias, stride=op.stride, padding=op.around)


class BatchNorm(StepModule):
    """(B, C, H, W) -> the same."""

    weight: Tensor
    bias: Tensor
    mean: Tensor
    variance: Tensor

    def forward(self, x_bchw: Tensor) -> Tensor:
        op = self.operator
        # A scale that takes no gradient is that of a frozen network, or of a slow copy: its averages stay, too.
        learning = self.training and self.weight.requires_grad
        return F.batch_norm(
            x_bchw,
            self.mean.detach(),
            self.variance.detach(),
            self.weight,
            self.bias,
            training=learning,
            momentum=op.momentum,
            eps=op.eps,
        )
