"""Parts of steps in torch. Axes: B batch, N queries, M keys, m = h p width of all heads; `…` are any axes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from crate_dsl.compiler.masks import CAUSAL
from crate_dsl.compiler.modules import StepModule
from crate_dsl.compiler.steps.attend.module import pairs_of
from crate_dsl.compiler.steps.norm.module import normalise


class Affine(StepModule):
    """(…, in) -> (…, dim)."""

    matrix: Tensor

    def forward(self, z: Tensor) -> Tensor:
        return F.linear(z, self.matrix.T, getattr(self, "bias", None))


class Standardise(StepModule):
    """(…, d) -> the same."""

    def forward(self, z: Tensor) -> Tensor:
        return normalise(self.operator.by, z, None, None)


class Leak(StepModule):
    """(…, d) -> the same."""

    def forward(self, z: Tensor) -> Tensor:
        return F.leaky_relu(z, self.operator.slope)


class Shrink(StepModule):
    """(…, d) -> the same."""

    def forward(self, z: Tensor) -> Tensor:
        return F.softshrink(z, self.operator.threshold)


class Offset(StepModule):
    """(B, N, d) -> (B, N, d)."""

    table: Tensor

    def forward(self, z_bnd: Tensor) -> Tensor:
        return z_bnd + self.table


class Attention(StepModule):
    """(B, N, m), (B, M, m), (B, M, m) -> (B, N, m). `mask` (B, M) is false for keys that nobody attends to."""

    def forward(
        self, queries_bnm: Tensor, keys_bmm: Tensor, values_bmm: Tensor, *, mask: Tensor | None = None
    ) -> Tensor:
        op, causal = self.operator, self.operator.causal
        mask = None if mask is None else mask[:, None, None, :]
        if causal and op.before:
            assert mask is None
            keys, first = keys_bmm.shape[1], keys_bmm.shape[1] - queries_bnm.shape[1]
            mask, causal = pairs_of(((CAUSAL,),), None, keys, keys_bmm.device, first), False
        queries_bhnp, keys_bhmp, values_bhmp = (
            z.unflatten(-1, (op.heads, -1)).transpose(1, 2) for z in (queries_bnm, keys_bmm, values_bmm)
        )
        out_bhnp = F.scaled_dot_product_attention(
            queries_bhnp,
            keys_bhmp,
            values_bhmp,
            attn_mask=mask,
            is_causal=causal,
            scale=op.scale,
        )
        return out_bhnp.transpose(1, 2).flatten(-2)


class Join(StepModule):
    """(B, M, d), (B, N, d) -> (B, M + N, d)."""

    def forward(self, rows_bmd: Tensor, z_bnd: Tensor) -> Tensor:
        return torch.cat([rows_bmd, z_bnd], dim=1)


class Take(StepModule):
    """(B, N, d) -> (B, k, d)."""

    def forward(self, z_bnd: Tensor) -> Tensor:
        first, *others = places = self.operator.places
        if list(others) == list(range(first + 1, first + len(places))) and not first < 0 <= places[-1]:
            return z_bnd[:, first : places[-1] + 1 or None]
        return z_bnd[:, list(places)]


class Only(StepModule):
    """(B, 1, d) or, flat, (B, d) -> (B, d)."""

    def forward(self, z: Tensor) -> Tensor:
        return z if self.facts else z[:, 0]


class Flatten(StepModule):
    """(B, N, d) -> (B N, d)."""

    def forward(self, z_bnd: Tensor) -> Tensor:
        return z_bnd.flatten(0, 1)


class Unflatten(StepModule):
    """(B N, d) -> (B, N, d)."""

    def forward(self, z_rd: Tensor, *, like: Tensor | None = None) -> Tensor:
        if like is None:
            return z_rd.unflatten(0, (-1, self.facts))
        return z_rd.unflatten(0, like.shape[:2])
