"""`denoise` in torch. Axes: B batch, N tokens, d width, K subspaces, p rank."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from crate_dsl.compiler.modules import StepModule


class Denoise(StepModule):
    """(B, N, d) -> (B, N, d)."""

    def forward(self, z_bnd: Tensor, **given: Tensor) -> Tensor:
        return self.explain(z_bnd, **given)["out"]

    def explain(self, z_bnd: Tensor, **given: Tensor) -> dict[str, Tensor]:
        op, subspaces_md = self.operator, self.weight_of("subspaces", given)
        assert subspaces_md is not None
        time = self.scalar("time", given.get("time"))
        w_bnkp = F.linear(z_bnd, subspaces_md).unflatten(-1, (op.subspaces, op.rank))
        # w = softmax_k( ‖U_k^T x‖² / (2 t² (1 + t²)) )
        energy_bnk = w_bnkp.square().sum(-1) / (2 * time**2 * (1 + time**2))
        posterior_bnk = energy_bnk.softmax(-1)
        heads_bnm = (posterior_bnk[..., None] * w_bnkp).flatten(-2)
        return {
            "projection": w_bnkp.transpose(1, 2),
            "posterior": posterior_bnk,
            "out": heads_bnm @ subspaces_md / (1 + time**2),
        }
