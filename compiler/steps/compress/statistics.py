"""Token statistics in torch: how tokens meet in ToST. Axes: B batch, K subspaces, N tokens, p rank."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from crate_dsl.compiler.modules import check_places
from crate_dsl.compiler.steps.compress.operator import ALL_SQUARES, MEMBERSHIPS, SQUARES_SO_FAR


@dataclass(frozen=True, slots=True)
class Sums:
    """What the language form knows of the tokens before: Σ w² and Σ π w², (B, K, p); Σ π, (B, K)."""

    squares: Tensor
    weighted: Tensor
    memberships: Tensor


def of_all(w_bknp: Tensor, temperature_k: Tensor, kept_bn: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The vision form: -(Π W) / (1 + m), (B, K, N, p), and Π, (B, K, N).

    Tokens for which `kept_bn` is false are as if they were zero and belonged nowhere.
    """
    w_bknp = _where(kept_bn, w_bknp)
    squares_bknp = w_bknp.square()
    # Π = softmax over subspaces of τ_k Σ_j w_j² / ‖W_j‖², where W_j is channel j of all tokens (eq. 10).
    all_bk1p = squares_bknp.sum(2, keepdim=True).clamp_min(ALL_SQUARES)
    membership_bkn = _where(kept_bn, _membership((squares_bknp / all_bk1p).sum(-1), temperature_k))
    shares_bkn = membership_bkn / (membership_bkn.sum(-1, keepdim=True) + MEMBERSHIPS)
    moments_bk1p = shares_bkn[:, :, None] @ squares_bknp
    return _damped(w_bknp, membership_bkn, moments_bk1p), membership_bkn


def so_far(
    w_bknp: Tensor,
    temperature_k: Tensor,
    bias: Tensor,
    before: Sums | None = None,
    *,
    kept_bn: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The language form: -(Π W) / (1 + m), (B, K, N, p), and Π, (B, K, N).

    `bias`, (K, N) or (B, K, N), is that of these tokens' places; `before` are the sums over the tokens before them.
    Tokens for which `kept_bn` is false are as if they were zero and belonged nowhere.
    """
    w_bknp = _where(kept_bn, w_bknp)
    squares_bknp = w_bknp.square()
    all_bknp = squares_bknp.cumsum(2)
    if before is not None:
        all_bknp = all_bknp + before.squares[:, :, None]
    # A channel's bias is added to each of p shares.
    shares_bkn = (squares_bknp / all_bknp.clamp_min(SQUARES_SO_FAR)).sum(-1)
    membership_bkn = _where(kept_bn, _membership(shares_bkn + w_bknp.shape[-1] * bias, temperature_k))
    weighted_bknp = (membership_bkn[..., None] * squares_bknp).cumsum(2)
    memberships_bkn = membership_bkn.cumsum(2)
    if before is not None:
        weighted_bknp = weighted_bknp + before.weighted[:, :, None]
        memberships_bkn = memberships_bkn + before.memberships[:, :, None]
    moments_bknp = weighted_bknp / (memberships_bkn + MEMBERSHIPS)[..., None]
    return _damped(w_bknp, membership_bkn, moments_bknp), membership_bkn


def next_so_far(
    w_bknp: Tensor, temperature_k: Tensor, bias_bkn: Tensor, sums_b2kq: Tensor
) -> tuple[Tensor, Tensor]:
    """The language form of the next tokens, given the sums over those before: -(Π W) / (1 + m), and the sums with them.

    The two are a number as float32 has it, and the rest; q = 2 p + 1 are Σ w², Σ π w² and Σ π.
    """
    dtype, rank = sums_b2kq.dtype, w_bknp.shape[-1]
    squares_bkp, weighted_bkp, memberships_bk1 = sums_b2kq[:, 0].split([rank, rank, 1], dim=-1)
    before = Sums(squares_bkp, weighted_bkp, memberships_bk1[..., 0])
    heads_bknp, membership_bkn = so_far(w_bknp, temperature_k, bias_bkn, before)
    squares_bknp, membership_bkn1 = w_bknp.square(), membership_bkn[..., None]
    added_bknq = torch.cat([squares_bknp, membership_bkn1 * squares_bknp, membership_bkn1], dim=-1)
    after_bkq = sums_b2kq.double().sum(1) + added_bknq.sum(2)
    first_bkq = after_bkq.to(dtype)
    return heads_bknp, torch.stack([first_bkq, (after_bkq - first_bkq).to(dtype)], dim=1)


def biases_at(energy_bias_kl: Tensor, past_b: Tensor, count: int) -> Tensor:
    """The biases of `count` tokens that have so many before them: (B, K, N).

    Raises:
        UserError: there are not so many places.
    """
    places_bn = past_b[:, None] + torch.arange(count, device=past_b.device)
    check_places(places_bn, energy_bias_kl.shape[1])
    return energy_bias_kl[:, places_bn].transpose(0, 1)


def _where(kept_bn: Tensor | None, values: Tensor) -> Tensor:
    """Values of tokens, (B, K, N, …): zero for those that do not count."""
    if kept_bn is None:
        return values
    kept_b1n = kept_bn[:, None]
    return values.masked_fill(~(kept_b1n if values.dim() == 3 else kept_b1n[..., None]), 0.0)


def _membership(energies_bkn: Tensor, temperature_k: Tensor) -> Tensor:
    return (temperature_k[:, None] * energies_bkn).softmax(1)


def _damped(w_bknp: Tensor, membership_bkn: Tensor, moments: Tensor) -> Tensor:
    return w_bknp * membership_bkn[..., None] / (-1 - moments)
