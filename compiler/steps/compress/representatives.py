"""Representatives in torch: how tokens meet in CBSA. Axes: B batch, K subspaces, N tokens, M of them, p rank."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from crate_dsl.compiler.steps.attend.module import attention
from crate_dsl.compiler.steps.compress.pooling import Pool
from crate_dsl.compiler.steps.position.operator import Patches


def pooled(w_bnm: Tensor, pool: Pool, patches: Patches) -> Tensor:
    """Means of the patches over cells of their grid: (B, N, m) -> (B, M, m), where m is K p."""
    grid_bnm = w_bnm[:, patches.start : patches.start + patches.count]
    grid_bmrc = grid_bnm.unflatten(1, (patches.rows, patches.columns)).permute(0, 3, 1, 2)
    return F.adaptive_avg_pool2d(grid_bmrc, (pool.rows, pool.columns)).flatten(2).mT


def by_way_of(
    r_bkmp: Tensor, w_bknp: Tensor, scale: float, representatives_step_k: Tensor, tokens_step_k: Tensor
) -> tuple[Tensor, Tensor]:
    """What representatives make of the tokens, (B, K, N, p), and their attention A, (B, K, M, N)."""
    assignment_bkmn = (scale * r_bkmp @ w_bknp.mT).softmax(-1)
    # A step towards what they find; contracted among themselves; back to the tokens along Aᵀ.
    moved_bkmp = r_bkmp + representatives_step_k[:, None, None] * (assignment_bkmn @ w_bknp)
    contracted_bkmp = attention(moved_bkmp, moved_bkmp, moved_bkmp, scale=scale)
    return assignment_bkmn.mT @ (tokens_step_k[:, None, None] * contracted_bkmp), assignment_bkmn
