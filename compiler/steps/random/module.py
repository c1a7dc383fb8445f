"""Random steps in torch. They draw on the device of what they are given, from torch's own generator for it.

Axes: B batch, n tokens; C channels, H x W pixels, k crops of S x S (s down, t across).
"""

from __future__ import annotations

import torch
from torch import Tensor

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
        rows_bksh, columns_bktw = self._weights(x_bchw)
        with torch.autocast(x_bchw.device.type, enabled=False):
            lines_bkcsw = torch.einsum("bksh,bchw->bkcsw", rows_bksh, precise(x_bchw))
            cut_bkcst = torch.einsum("bkcsw,bktw->bkcst", lines_bkcsw, columns_bktw)
        return cut_bkcst.to(x_bchw.dtype)

    def _weights(self, x_bchw: Tensor) -> tuple[Tensor, Tensor]:
        """Of which rows, and of which columns, the pixels of crops are means: (B, k, S, H) and (B, k, S, W)."""
        op, (batch, _, height, width), device = self.operator, x_bchw.shape, x_bchw.device
        long = width / height
        area, aspect, left, top, flip = torch.rand(batch, op.count, 5, device=device).unbind(-1)
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
        return (
            _triangles(y_bks * height - 0.5, tall * height / op.size, height),
            _triangles(x_bks * width - 0.5, wide * width / op.size, width),
        )


def _triangles(places_bks: Tensor, steps_bk: Tensor, count: int) -> Tensor:
    """Weights of `count` pixels in the means around places, which are a step apart: (B, k, S, count).

    They fall to zero at the distance of one step, but not within one pixel: bilinear interpolation where pixels are
    enlarged, and where they are shrunk a mean over those that one stands for.
    """
    pixels = torch.arange(count, device=places_bks.device)
    reach_bk11 = steps_bk.clamp(min=1)[..., None, None]
    weights = (1 - (pixels - places_bks[..., None]).abs() / reach_bk11).clamp(min=0)
    return weights / weights.sum(-1, keepdim=True)


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
