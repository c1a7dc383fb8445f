"""`each` in torch. Axes: B batch, V items; `…` are the axes of an item."""

from __future__ import annotations

from torch import Tensor

from crate_dsl.compiler.modules import StepModule


class Fold(StepModule):
    """(B, V, …) -> (B V, …)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(0, 1)


class Unfold(StepModule):
    """(B V, …) -> (B, V, …), as in `like`, (B, V, …)."""

    def forward(self, x: Tensor, *, like: Tensor) -> Tensor:
        return x.unflatten(0, like.shape[:2])
