"""`compress` in torch. Axes: B batch, N tokens, d width, K subspaces, p rank."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from crate_dsl.compiler.modules import StepModule
from crate_dsl.compiler.operators import Port
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
        w_bknp = F.linear(x_bnd, self.subspaces).unflatten(-1, (op.subspaces, op.rank)).transpose(1, 2)
        query_bknp = w_bknp
        if op.scale is not None and not isinstance(op.scale, float):
            factor = self.scalar("scale", scale)
            query_bknp = w_bknp * (factor.unsqueeze(-1) if isinstance(op.scale, Port) else factor)
        heads_bknp = F.scaled_dot_product_attention(
            query_bknp,
            w_bknp,
            w_bknp,
            attn_mask=None if mask is None else mask[:, None, None, :],
            is_causal=op.mask == "causal",
            scale=1.0 if query_bknp is not w_bknp else op.softmax_scale,
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
