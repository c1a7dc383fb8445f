"""Steps for the next tokens in torch. Axes: B batch, N next tokens, M all tokens, d width, K subspaces or heads, p
their width, i = K p.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from crate_dsl.compiler.modules import check_places
from crate_dsl.compiler.operators import Typing
from crate_dsl.compiler.steps.attend.module import Attend, attention, pairs_of
from crate_dsl.compiler.steps.cached.operator import Mask, alternatives_of
from crate_dsl.compiler.steps.cached.operator import PositionStep as PositionStepOperator
from crate_dsl.compiler.steps.compress.module import SubspaceModule
from crate_dsl.compiler.steps.position.module import Position
from crate_dsl.compiler.steps.rotary.module import rotated


def seen(mask: Mask, before: int, tokens_bnd: Tensor) -> Tensor:
    """Which of all tokens each of the next ones attends to, (N, M), where so many came before them."""
    count, device = tokens_bnd.shape[1], tokens_bnd.device
    return pairs_of(alternatives_of(mask), None, before + count, device, first=before)


class CompressStep(SubspaceModule):
    """Z + F(Z) of the next tokens, (B, N, d), given W of those before, (B, M - N, i); and W of all, (B, M, i)."""

    def forward(
        self, z_bnd: Tensor, past_b: Tensor, before_bmi: Tensor, **given: Tensor
    ) -> tuple[Tensor, Tensor]:
        before = before_bmi.shape[1]
        x_bnd = self._normalised(z_bnd, given)
        w_bmi = torch.cat([before_bmi, self._projected(x_bnd, given)], dim=1)
        w_bkmp = self._heads(w_bmi)
        compared_bkmp = self._placed(w_bkmp)
        mask_nm = seen(self.operator.mask, before, z_bnd)
        heads_bknp = self._attended(compared_bkmp[:, :, before:], compared_bkmp, w_bkmp, given, mask=mask_nm)
        branch_bnd = self._led_back(x_bnd, heads_bknp, self._rate(z_bnd, given), given)
        return z_bnd + self._dropped(branch_bnd), w_bmi


class AttendStep(Attend):
    """(B, N, d), and keys and values of the tokens before, (B, M - N, d) -> (B, N, d) and those of all, (B, M, d)."""

    def forward(  # type: ignore[override]
        self, z_bnd: Tensor, past_b: Tensor, keys_bmd: Tensor, values_bmd: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        op, before = self.operator, keys_bmd.shape[1]
        qkv_bni = F.linear(z_bnd, self.qkv_weight, getattr(self, "qkv_bias", None))
        query_bnd, new_keys_bnd, new_values_bnd = qkv_bni.chunk(3, dim=-1)
        keys_bmd, values_bmd = (
            torch.cat(both, dim=1) for both in ((keys_bmd, new_keys_bnd), (values_bmd, new_values_bnd))
        )
        query_bhnp, key_bhmp, value_bhmp = (
            z.unflatten(-1, (op.heads, -1)).transpose(1, 2) for z in (query_bnd, keys_bmd, values_bmd)
        )
        if op.positions != "none":
            first_b = torch.full((z_bnd.shape[0],), before, device=z_bnd.device)
            query_bhnp = rotated(query_bhnp, op.positions.base, first_b)
            key_bhmp = rotated(key_bhmp, op.positions.base)
        mask_nm = seen(op.mask, before, z_bnd)
        return self._out(attention(query_bhnp, key_bhmp, value_bhmp, mask=mask_nm)), keys_bmd, values_bmd


class PositionStep(Position):
    """Adds the positions of the next tokens: (B, N, d), and how many were before, (B,) -> (B, N, d)."""

    def __init__(self, operator: PositionStepOperator, typing: Typing) -> None:
        super().__init__(operator.of, typing)

    def forward(self, z_bnd: Tensor, past_b: Tensor, **given: Tensor) -> Tensor:  # type: ignore[override]
        table_ld = self.weight_of("table", given)
        assert table_ld is not None
        places_bn = past_b[:, None] + torch.arange(z_bnd.shape[1], device=z_bnd.device)
        check_places(places_bn, len(table_ld))
        return z_bnd + F.embedding(places_bn, table_ld)
