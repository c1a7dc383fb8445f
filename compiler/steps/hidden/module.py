"""Completion in torch. Axes: B batch, N tokens, k tokens taken, d width."""

from __future__ import annotations

import torch
from torch import Tensor

from crate_dsl.compiler.modules import StepModule


class Mask(StepModule):
    """(B, N, d) -> (B, N, d). `hidden` (B, N) is true for tokens that are replaced."""

    def forward(self, z_bnd: Tensor, *, hidden: Tensor, fill: Tensor | None = None) -> Tensor:
        return torch.where(hidden[..., None], self.scalar("fill", fill), z_bnd)


class Gather(StepModule):
    """(B, N, d) -> (B, k, d). `visible` (B, k) are the places."""

    def forward(self, z_bnd: Tensor, *, visible: Tensor) -> Tensor:
        return z_bnd.gather(1, visible[..., None].expand(-1, -1, z_bnd.shape[-1]))


class Scatter(StepModule):
    """(B, k, d) -> (B, N, d). `visible` (B, k) are the places."""

    def forward(self, z_bkd: Tensor, *, visible: Tensor, fill: Tensor | None = None) -> Tensor:
        batch, _, width = z_bkd.shape
        empty_bnd = z_bkd.new_zeros(batch, self.operator.places, width) + self.scalar("fill", fill)
        places_bkd = visible[..., None].expand(-1, -1, width)
        return empty_bnd.scatter(1, places_bkd, z_bkd.to(empty_bnd.dtype))
