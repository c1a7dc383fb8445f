"""Rotation by place in torch. Axes: B batch, K subspaces or heads, N tokens, p their width, h = p / 2 planes."""

from __future__ import annotations

import torch
from torch import Tensor

from crate_dsl.compiler.modules import StepModule


def rotated(w_bknp: Tensor, base: float, past_b: Tensor | None = None) -> Tensor:
    """Each token rotated by its place, which is counted from `past`, for each sample: (B, K, N, p) -> the same.

    Angles are too fine for half precision: there they are in float32.
    """
    half = w_bknp.shape[-1] // 2
    dtype = w_bknp.dtype if w_bknp.dtype == torch.float64 else torch.float32
    with torch.autocast(w_bknp.device.type, enabled=False):
        places_n = torch.arange(w_bknp.shape[-2], dtype=dtype, device=w_bknp.device)
        places_b1n = places_n if past_b is None else places_n + past_b.to(dtype)[:, None, None]
        turns_h = torch.tensor([base ** (-j / half) for j in range(half)], dtype=dtype, device=w_bknp.device)
        angles_b1nh = places_b1n[..., None] * turns_h
        cos, sin = angles_b1nh.cos(), angles_b1nh.sin()
        first, second = w_bknp.to(dtype).chunk(2, dim=-1)
        turned_bknp = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return turned_bknp.to(w_bknp.dtype)


class Rotate(StepModule):
    """(B, N, m) -> the same; `past` (B,) is each sample's place of its first token."""

    def forward(self, z_bnm: Tensor, *, past: Tensor | None = None) -> Tensor:
        heads_bknp = z_bnm.unflatten(-1, (self.operator.heads, -1)).transpose(1, 2)
        return rotated(heads_bknp, self.operator.base, past).transpose(1, 2).flatten(-2)
