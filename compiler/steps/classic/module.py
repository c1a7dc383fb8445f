"""`linear`, `gelu`, `relu`, `silu`, `dropout` and `scale` in torch. `…` are any axes between batch and last axis."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from crate_dsl.compiler.modules import StepModule
from crate_dsl.compiler.operators import Port


class Linear(StepModule):
    """(B, …, d) -> (B, …, dim)."""

    weight: Tensor

    def forward(self, z: Tensor) -> Tensor:
        return F.linear(z, self.weight, getattr(self, "bias", None))


class Gelu(StepModule):
    """Any shape -> the same."""

    def forward(self, z: Tensor) -> Tensor:
        return F.gelu(z)


class Relu(StepModule):
    """Any shape -> the same."""

    def forward(self, z: Tensor) -> Tensor:
        return F.relu(z)


class Silu(StepModule):
    """Any shape -> the same."""

    def forward(self, z: Tensor) -> Tensor:
        return F.silu(z)


class Dropout(StepModule):
    """Any shape -> the same."""

    def forward(self, z: Tensor) -> Tensor:
        return F.dropout(z, self.operator.p, self.training)


class Scale(StepModule):
    """(B, …, d) -> the same. A factor handed over has shape (B,)."""

    def forward(self, z: Tensor, *, factor: Tensor | None = None) -> Tensor:
        if factor is not None and isinstance(self.operator.factor, Port):
            return z * factor.reshape(-1, *[1] * (z.dim() - 1))
        return z * self.scalar("factor", factor)
