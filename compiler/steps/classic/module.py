"""The everyday parts of networks in torch. `…` are any axes between the batch and the last axis."""

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


class Transpose(StepModule):
    """(B, …, dim) -> (B, …, vocab) for an embedding's weight; (B, …, out) -> (B, …, in) for a linear map's."""

    def forward(self, z: Tensor, *, weight: Tensor) -> Tensor:
        return F.linear(z, weight) if self.operator.of == "embed" else z @ weight


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
