"""`patchify` and `unpatchify` in torch. Axes: B batch, C channels, h x w patches of p x q pixels, m = p q C."""

from __future__ import annotations

from torch import Tensor

from crate_dsl.compiler.modules import StepModule
from crate_dsl.compiler.steps.patches.operator import CUT_TO_TOKENS, TOKENS_TO_CUT


class Patchify(StepModule):
    """Cuts pictures into patches: (B, C, H, W) -> (B, N, m)."""

    def forward(self, x_bchw: Tensor) -> Tensor:
        patch = self.operator.patch
        cut_bchpwq = x_bchw.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))
        return cut_bchpwq.permute(CUT_TO_TOKENS[self.operator.order]).flatten(3).flatten(1, 2)


class Unpatchify(StepModule):
    """Puts patches together: (B, N, m) -> (B, C, H, W)."""

    def forward(self, z_bnm: Tensor) -> Tensor:
        grid = self.facts
        square = (grid.patch, grid.patch)
        inner = (*square, grid.channels) if grid.order == "pqc" else (grid.channels, *square)
        tokens = z_bnm.unflatten(2, inner).unflatten(1, (grid.rows, grid.columns))
        return tokens.permute(TOKENS_TO_CUT[grid.order]).flatten(4).flatten(2, 3)
