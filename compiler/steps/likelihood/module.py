"""Cross-entropies in torch: tensors by name in, the mean over what counts in the batch out, shape ().

Axes: B batch, n tokens, V classes or vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from crate_dsl.compiler.modules import StepModule, precise

#: A label that does not count; no class has a number below 0.
LEFT_OUT = -100


def nats(logits: Tensor, label: Tensor, smoothing: float) -> Tensor:
    """The mean of -log p over the labels that count, 0 over none: logits (B, …, V) and labels (B, …) -> ()."""
    # A mean over no label is 0 / 0. Nothing is to be told there, and nothing is wrong: the loss is 0, and so is its
    # gradient. The count is a whole number, so that the bound changes no other mean.
    count = (label != LEFT_OUT).sum().clamp(min=1)
    total = F.cross_entropy(
        precise(logits).flatten(0, -2),
        label.flatten(),
        ignore_index=LEFT_OUT,
        label_smoothing=smoothing,
        reduction="sum",
    )
    return total / count


class CrossEntropy(StepModule):
    """Logits (B, V) and labels (B), or (B, n, V) and (B, n) -> (). `on` is true for labels that count."""

    def forward(self, *, logits: Tensor, label: Tensor, on: Tensor | None = None) -> Tensor:
        if on is None:  # the mean as torch has it
            return F.cross_entropy(
                precise(logits).flatten(0, -2), label.flatten(), label_smoothing=self.operator.smoothing
            )
        return nats(logits, label.masked_fill(~on, LEFT_OUT), self.operator.smoothing)


class NextToken(StepModule):
    """Logits (B, n, V) and tokens (B, n) -> (). `on` (B, n) is true for tokens that count."""

    def forward(self, *, logits: Tensor, ids: Tensor, on: Tensor | None = None) -> Tensor:
        told_bn = ids if on is None else ids.masked_fill(~on, LEFT_OUT)
        # The tokens are moved, not the logits, which are V times as many and would be copied.
        next_bn = F.pad(told_bn[:, 1:], (0, 1), value=LEFT_OUT)
        return nats(logits, next_bn, self.operator.smoothing)


class MaskedToken(StepModule):
    """Logits (B, n, V) and tokens (B, n) -> (). `on` (B, n) is true for tokens that were hidden."""

    def forward(self, *, logits: Tensor, ids: Tensor, on: Tensor) -> Tensor:
        return nats(logits, ids.masked_fill(~on, LEFT_OUT), self.operator.smoothing)


class Rotation(StepModule):
    """Scores (B, 4, 4), of each turn in a row -> ()."""

    def forward(self, *, scores: Tensor) -> Tensor:
        turns_b4 = torch.arange(4, device=scores.device).expand(len(scores), 4)
        return F.cross_entropy(precise(scores).flatten(0, 1), turns_b4.flatten())
