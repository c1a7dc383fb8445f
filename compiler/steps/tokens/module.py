"""Steps on the token axis in torch. Axes: B batch, N tokens, k tokens of a segment, d width."""

from __future__ import annotations

import torch
from torch import Tensor

from crate_dsl.compiler.modules import StepModule


def _for_each_sample(tokens: Tensor, z_bnd: Tensor) -> Tensor:
    """Learned tokens, (k, d) or (d,), in front of no sample yet -> (B, k, d); others have their samples, and stay."""
    return tokens if tokens.dim() == 3 else torch.atleast_2d(tokens).expand(z_bnd.shape[0], -1, -1)


class Prepend(StepModule):
    """Other tokens, then the sample's: (B, N, d) -> (B, k + N, d)."""

    def forward(self, z_bnd: Tensor, *, tokens: Tensor) -> Tensor:
        return torch.cat([_for_each_sample(tokens, z_bnd), z_bnd], dim=1)


class Append(StepModule):
    """The sample's tokens, then others: (B, N, d) -> (B, N + k, d)."""

    def forward(self, z_bnd: Tensor, *, tokens: Tensor) -> Tensor:
        return torch.cat([z_bnd, _for_each_sample(tokens, z_bnd)], dim=1)


class Drop(StepModule):
    """Leaves out a segment: (B, N, d) -> (B, N - k, d)."""

    def forward(self, z_bnd: Tensor) -> Tensor:
        parts = [z_bnd[:, start:stop] for start, stop in self.facts]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


class Keep(StepModule):
    """Takes a segment: (B, N, d) -> (B, k, d)."""

    def forward(self, z_bnd: Tensor) -> Tensor:
        ((start, stop),) = self.facts
        return z_bnd[:, start:stop]


class Select(StepModule):
    """Takes one token: (B, N, d) -> (B, d)."""

    def forward(self, z_bnd: Tensor) -> Tensor:
        return z_bnd[:, self.facts]


class Pool(StepModule):
    """Mean or maximum over all tokens: (B, N, d) -> (B, d)."""

    def forward(self, z_bnd: Tensor) -> Tensor:
        return z_bnd.mean(1) if self.operator.by == "mean" else z_bnd.amax(1)
