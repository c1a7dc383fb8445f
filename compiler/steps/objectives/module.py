"""Objectives in torch: tensors by name in, the mean over the batch out, shape ()."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from crate_dsl.compiler.modules import StepModule, precise
from crate_dsl.compiler.rates import rate_reduction, sparse_rate_reduction, unit_tokens

#: What is added to the variance of a patch, as published: a patch of one colour has none.
EPS = 1e-6


class Mse(StepModule):
    """Two tensors (B, …) -> (). Of tokens, (B, N, d): those that `on` (B, N) marks, or all but `except_` (B, k)."""

    def forward(
        self, *, output: Tensor, target: Tensor, on: Tensor | None = None, except_: Tensor | None = None
    ) -> Tensor:
        output, target = precise(output), precise(target)
        if self.operator.normalize == "patch":
            target = normalized(target)
        if except_ is not None:
            on = torch.ones_like(output[..., 0], dtype=torch.bool).scatter(1, except_, value=False)
        if on is None:
            return F.mse_loss(output, target)
        error_bn = F.mse_loss(output, target, reduction="none").mean(dim=-1)
        # A mean over no token is 0 / 0. Nothing is to be completed there, and nothing is wrong: the loss is 0, and so
        # is its gradient. The count is a whole number, so that the bound changes no other mean.
        return (error_bn * on).sum() / on.sum().clamp(min=1)


def normalized(target_bnd: Tensor) -> Tensor:
    """Each token with mean 0 and variance 1 over its entries; the variance is the unbiased one, as published."""
    variance_bn1, mean_bn1 = torch.var_mean(target_bnd, dim=-1, keepdim=True)
    return (target_bnd - mean_bn1) / (variance_bn1 + EPS).sqrt()


class SparseRate(StepModule):
    """Tokens (B, N, d) against bases (K p, d) -> ()."""

    def forward(self, *, of: Tensor, bases: Tensor) -> Tensor:
        op = self.operator
        rms_bnd = unit_tokens(precise(of)) * of.shape[-1] ** 0.5
        bases_kpd = bases.unflatten(0, (op.subspaces, -1))
        return -sparse_rate_reduction(rms_bnd, bases_kpd, op.penalty, op.eps).mean()


class RateReduction(StepModule):
    """Features (B, d), and classes (B) or shares of classes (B, C) -> ()."""

    def forward(self, *, features: Tensor, membership: Tensor) -> Tensor:
        features = precise(features)
        classes = self.operator.membership.type.classes
        if classes is not None:  # shares of 0 and 1: no shape depends on who is in the batch
            membership = F.one_hot(membership, classes).to(features.dtype)
        return -rate_reduction(unit_tokens(features), membership, self.operator.eps)
