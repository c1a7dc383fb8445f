"""Random steps in torch. They draw on the device of what they are given, from torch's own generator for it.

Axes: B batch, n tokens; C channels, H x W pixels, k crops of S x S.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from crate_dsl.compiler.modules import StepModule, precise


class MaskTokens(StepModule):
    """(B, n) -> (B, n), (B, n). `kept` (B, n) is false for padding."""

    def forward(self, ids_bn: Tensor, *, kept: Tensor | None = None) -> tuple[Tensor, Tensor]:
        op, vocabulary = self.operator, self.facts
        chance_bn = torch.rand(ids_bn.shape, device=ids_bn.device)
        drawn_bn = torch.randint(vocabulary, ids_bn.shape, device=ids_bn.device)
        chosen_bn = chance_bn < op.ratio
        if kept is not None:
            chosen_bn = chosen_bn & kept
        # Of the chosen, the chance is uniform below `ratio`: where it lies there says what becomes of them.
        fate_bn = chance_bn / op.ratio
        hidden_bn = torch.where(fate_bn < op.random, drawn_bn, op.fill)
        stays_bn = ~chosen_bn | (fate_bn >= 1 - op.keep)
        return torch.where(stays_bn, ids_bn, hidden_bn), chosen_bn


class Crops(StepModule):
    """(B, C, H, W) -> (B, k, C, S, S)."""

    def forward(self, x_bchw: Tensor) -> Tensor:
        op = self.operator
        # One crop under the other, as one grid: no picture is copied for each of its crops.
        places = self._places(x_bchw).flatten(1, 2)
        with torch.autocast(x_bchw.device.type, enabled=False):
            cut_bcys = F.grid_sample(precise(x_bchw), places, padding_mode="border", align_corners=False)
        return cut_bcys.unflatten(2, (op.count, op.size)).transpose(1, 2).to(x_bchw.dtype)

    def _places(self, x_bchw: Tensor) -> Tensor:
        """Where pixels of crops lie in a picture whose edges are -1 and 1: (B, k, S, S, 2), across before down."""
        op, device = self.operator, x_bchw.device
        long = x_bchw.shape[3] / x_bchw.shape[2]  # W / H
        area, aspect, left, top, flip = torch.rand(len(x_bchw), op.count, 5, device=device).unbind(-1)
        share = op.scale[0] + (op.scale[1] - op.scale[0]) * area
        # A part of the area s W H with w / h = r fits into the picture where s W/H <= r <= (1/s) W/H.
        low, high = (bound.clamp(*op.ratio).log() for bound in (share * long, long / share))
        ratio = (low + (high - low) * aspect).exp()
        wide, tall = (share * ratio / long).sqrt(), (share / ratio * long).sqrt()  # w / W, h / H
        beyond = torch.maximum(wide, tall).clamp(min=1)  # above 1 where no ratio fits
        wide, tall = wide / beyond, tall / beyond
        middle_s = (torch.arange(op.size, device=device) + 0.5) / op.size
        across_bks = torch.where(flip[..., None] < op.flip, 1 - middle_s, middle_s)
        x_bks = (left * (1 - wide))[..., None] + wide[..., None] * across_bks
        y_bks = (top * (1 - tall))[..., None] + tall[..., None] * middle_s
        places = torch.broadcast_tensors(x_bks[:, :, None, :], y_bks[:, :, :, None])
        return 2 * torch.stack(places, dim=-1) - 1


class Augment(StepModule):
    """(B, C, H, W) -> the same."""

    def forward(self, x_bchw: Tensor) -> Tensor:
        op, (batch, channels, height, width), device = self.operator, x_bchw.shape, x_bchw.device
        flip, down, across, contrast, brightness = torch.rand(batch, 5, device=device).unbind(-1)
        rows_bh = self._moved(height, down)
        columns_bw = self._moved(width, across)
        columns_bw = torch.where(flip[:, None] < op.flip, width - 1 - columns_bw, columns_bw)
        x_bchw = x_bchw.gather(2, rows_bh[:, None, :, None].expand(-1, channels, -1, width))
        x_bchw = x_bchw.gather(3, columns_bw[:, None, None, :].expand(-1, channels, height, -1))
        # A sum would round to eight bits where pixels have no more.
        pixels = precise(x_bchw)
        mean_b111 = pixels.mean(dim=(1, 2, 3), keepdim=True)
        factor, added = (
            (most * (2 * chance - 1)).reshape(-1, 1, 1, 1)
            for most, chance in ((op.contrast, contrast), (op.brightness, brightness))
        )
        return (mean_b111 + (1 + factor) * (pixels - mean_b111) + added).to(x_bchw.dtype)

    def _moved(self, size: int, chance_b: Tensor) -> Tensor:
        """Which row (or column) comes to each place, moved by a whole number up to the share `shift`: (B, size)."""
        most = int(self.operator.shift * size)
        moved_b = (chance_b * (2 * most + 1)).long() - most
        return (torch.arange(size, device=chance_b.device) - moved_b[:, None]).clamp(0, size - 1)
