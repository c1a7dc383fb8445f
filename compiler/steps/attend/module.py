"""`attend` in torch. Axes: B batch, N tokens, d width, h heads, p width of a head."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from crate_dsl.compiler.modules import StepModule


class Attend(StepModule):
    """(B, N, d) -> (B, N, d). `mask` (B, N) is false for tokens that nobody attends to."""

    qkv_weight: Tensor
    out_weight: Tensor

    def forward(self, z_bnd: Tensor, *, mask: Tensor | None = None) -> Tensor:
        query_bhnp, key_bhnp, value_bhnp = self._heads(z_bnd)
        heads_bhnp = F.scaled_dot_product_attention(
            query_bhnp,
            key_bhnp,
            value_bhnp,
            attn_mask=None if mask is None else mask[:, None, None, :],
            is_causal=self.operator.mask == "causal",
        )
        return self._out(heads_bhnp)

    def explain(self, z_bnd: Tensor, *, mask: Tensor | None = None) -> dict[str, Tensor]:
        query_bhnp, key_bhnp, value_bhnp = self._heads(z_bnd)
        logits_bhnn = query_bhnp @ key_bhnp.mT * query_bhnp.shape[-1] ** -0.5
        if mask is not None:
            logits_bhnn = logits_bhnn.masked_fill(~mask[:, None, None, :], -torch.inf)
        if self.operator.mask == "causal":
            later_nn = torch.ones(logits_bhnn.shape[-2:], dtype=torch.bool, device=z_bnd.device).triu(1)
            logits_bhnn = logits_bhnn.masked_fill(later_nn, -torch.inf)
        attention_bhnn = logits_bhnn.softmax(-1)
        return {
            "query": query_bhnp,
            "key": key_bhnp,
            "value": value_bhnp,
            "attention": attention_bhnn,
            "out": self._out(attention_bhnn @ value_bhnp),
        }

    def _heads(self, z_bnd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of every head: (B, h, N, p) each."""
        qkv_bnm = F.linear(z_bnd, self.qkv_weight, getattr(self, "qkv_bias", None))
        query, key, value = (
            qkv_bnm.unflatten(-1, (3, self.operator.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        )
        return query, key, value

    def _out(self, heads_bhnp: Tensor) -> Tensor:
        """(B, h, N, p) -> (B, N, d)."""
        heads_bnd = heads_bhnp.transpose(1, 2).flatten(-2)
        out_bnd = F.linear(heads_bnd, self.out_weight, getattr(self, "out_bias", None))
        return F.dropout(out_bnd, self.operator.dropout, self.training)
