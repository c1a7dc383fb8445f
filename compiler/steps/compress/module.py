"""`compress` in torch. Axes: B batch, N tokens, d width, K subspaces, p rank."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from crate_dsl.compiler.modules import StepModule
from crate_dsl.compiler.steps.norm.module import normalise


class Compress(StepModule):
    """Z + κ MSSA(norm Z | U) as published, or Z - κα (X - U-combination of softmax heads) as derived: (B, N,
    d) -> (B, N, d).
    """

    subspaces: Tensor
    out_weight: Tensor

    def forward(
        self,
        z_bnd: Tensor,
        *,
        mask: Tensor | None = None,
        step: Tensor | None = None,
        scale: Tensor | None = None,
    ) -> Tensor:
        op = self.operator
        x_bnd = normalise(
            op.norm, z_bnd, getattr(self, "norm_weight", None), getattr(self, "norm_bias", None)
        )
        # U_k^T X for every subspace at once; tokens are rows here.
        w_bnm = F.linear(x_bnd, self.subspaces)
        # A softmax scale that is a number is left to the kernel; one that is a tensor multiplies the queries.
        fixed = op.scale is None or isinstance(op.scale, float)
        query_bnm = w_bnm if fixed else w_bnm * self.scalar("scale", scale)
        w_bknp = self._heads(w_bnm)
        heads_bknp = F.scaled_dot_product_attention(
            w_bknp if fixed else self._heads(query_bnm),
            w_bknp,
            w_bknp,
            attn_mask=None if mask is None else mask[:, None, None, :],
            is_causal=op.mask == "causal",
            scale=op.softmax_scale if fixed else 1.0,
        )
        heads_bnm = heads_bknp.transpose(1, 2).flatten(-2)
        if op.gradient == "softmax":
            # eq. 33: (1 - κα) X + κα MSSA(X), with α = p / (N ε²) and MSSA itself carrying a factor α.
            alpha = op.rank / (z_bnd.shape[1] * op.eps**2)
            mssa_bnd = alpha * (heads_bnm @ self.subspaces)
            kappa = 0.5 / alpha if op.step is None else self.scalar("step", step)
            return z_bnd + kappa * alpha * (mssa_bnd - x_bnd)
        out_bnd = (
            heads_bnm @ self.subspaces
            if op.tied
            else F.linear(heads_bnm, self.out_weight, getattr(self, "out_bias", None))
        )
        out_bnd = F.dropout(out_bnd, op.dropout, self.training)
        return z_bnd + (out_bnd if op.step is None else self.scalar("step", step) * out_bnd)

    def _heads(self, w_bnm: Tensor) -> Tensor:
        """(B, N, K p) -> (B, K, N, p)."""
        return w_bnm.unflatten(-1, (self.operator.subspaces, self.operator.rank)).transpose(1, 2)
