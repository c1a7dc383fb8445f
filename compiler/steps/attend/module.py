"""`attend` in torch. Axes: B batch, N tokens, d width, h heads, p width of a head."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from crate_dsl.compiler.modules import StepModule


class Attend(StepModule):
    """(B, N, d) -> (B, N, d). `mask` (B, N) is false for tokens that nobody attends to."""

    qkv_weight: Tensor
    out_weight: Tensor

    def forward(self, z_bnd: Tensor, *, mask: Tensor | None = None) -> Tensor:
        op = self.operator
        qkv_bn3hp = F.linear(z_bnd, self.qkv_weight, getattr(self, "qkv_bias", None)).unflatten(
            -1, (3, op.heads, -1)
        )
        query_bhnp, key_bhnp, value_bhnp = qkv_bn3hp.permute(2, 0, 3, 1, 4).unbind(0)
        heads_bhnp = F.scaled_dot_product_attention(
            query_bhnp,
            key_bhnp,
            value_bhnp,
            attn_mask=None if mask is None else mask[:, None, None, :],
            is_causal=op.mask == "causal",
        )
        out_bnd = F.linear(
            heads_bhnp.transpose(1, 2).flatten(-2), self.out_weight, getattr(self, "out_bias", None)
        )
        return F.dropout(out_bnd, op.dropout, self.training)
