"""`rotations` in torch."""

from __future__ import annotations

import torch
from torch import Tensor

from crate_dsl.compiler.modules import StepModule


class Rotations(StepModule):
    """(B, C, S, S) -> (B, 4, C, S, S)."""

    def forward(self, x_bcss: Tensor) -> Tensor:
        return torch.stack([x_bcss.rot90(quarters, dims=(2, 3)) for quarters in range(4)], dim=1)
