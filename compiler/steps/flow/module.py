"""`flow` in torch. Axes: B batch, N tokens, d width, K subspaces, p rank, m = K p."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from crate_dsl.compiler.modules import StepModule, precise
from crate_dsl.compiler.steps.compress.module import damped
from crate_dsl.compiler.steps.flow.operator import OMEGA_STEPS, POLISHING_STEPS

Slope = Callable[[Tensor], Tensor]


def euler(slope: Slope, z: Tensor, h: float) -> Tensor:
    """A step of first order."""
    return z + h * slope(z)


def heun(slope: Slope, z: Tensor, h: float) -> Tensor:
    """A step of second order: the mean of the slopes at both ends."""
    first = slope(z)
    return z + h / 2 * (first + slope(z + h * first))


def rk4(slope: Slope, z: Tensor, h: float) -> Tensor:
    """A step of fourth order: slopes at both ends and, twice, in the middle."""
    first = slope(z)
    second = slope(z + h / 2 * first)
    third = slope(z + h / 2 * second)
    return z + h / 6 * (first + 2 * second + 2 * third + slope(z + h * third))


SOLVERS = {"euler": euler, "heun": heun, "rk4": rk4}


class Flow(StepModule):
    """(B, N, d) -> (B, N, d)."""

    def forward(self, z_bnd: Tensor, **given: Tensor) -> Tensor:
        op, subspaces_md = self.operator, self.weight_of("subspaces", given)
        assert subspaces_md is not None
        u_md, alpha = precise(subspaces_md), op.alpha(z_bnd.shape[1])

        def heads(z_bnd: Tensor) -> Tensor:
            """U_k^T Z for every subspace: (B, K, N, p)."""
            return F.linear(z_bnd, u_md).unflatten(-1, (op.subspaces, op.rank)).transpose(1, 2)

        def led_back(w_bknp: Tensor) -> Tensor:
            return w_bknp.transpose(1, 2).flatten(-2) @ u_md

        def descent(z_bnd: Tensor) -> Tensor:
            """-∇Rᶜ(Z)."""
            return -alpha * led_back(damped(heads(z_bnd), alpha))

        # Errors of half precision would add up over the steps.
        with torch.autocast(z_bnd.device.type, enabled=False):
            z_bnd = precise(z_bnd)
            if op.solver == "exact":
                w_bknp = heads(z_bnd)
                factor_bkpp = Decay.apply(alpha * w_bknp.mT @ w_bknp, 2 * alpha * op.time)
                return z_bnd + led_back(w_bknp @ factor_bkpp - w_bknp)
            for _ in range(op.count):
                z_bnd = SOLVERS[op.solver](descent, z_bnd, op.time / op.count)
        return z_bnd


# ------------------------------------------------------------------ the closed form


def log_decay(y: Tensor, span: float) -> Tensor:
    """The logarithm q of ω / y, where ω e^ω = y e^(y - span): by how much y = α s² falls in the time span / 2α.

    In logarithms nothing overflows: ln ω + ω = ln y + y - span. Near y = 0 it is -span.
    """
    y = y.clamp(min=torch.finfo(y.dtype).tiny)
    c = y + y.log() - span
    start = torch.minimum(c, c.clamp(min=1).log())
    for _ in range(OMEGA_STEPS):
        grown = start.exp()
        start = start - (start + grown - c) / (1 + grown)
    q = start - y.log()
    for _ in range(POLISHING_STEPS):
        q = q - (q + y * q.expm1() + span) / (1 + y * q.exp())
    return q


class Decay(torch.autograd.Function):
    """f(Y) = (ω(Y) / Y)^(1/2) of symmetric matrices: what W is multiplied by where Y = α W Wᵀ.

    Its gradient is that of a function of a matrix (Daleckii and Krein 1965), which is smooth where eigenvalues agree;
    that of the eigenvectors is not.
    """

    @staticmethod
    def forward(ctx: Any, y_bkpp: Tensor, span: float) -> Tensor:
        values_bkp, vectors_bkpp = torch.linalg.eigh(y_bkpp)
        values_bkp = values_bkp.clamp(min=0)
        q_bkp = log_decay(values_bkp, span)
        f_bkp = (q_bkp / 2).exp()
        ctx.save_for_backward(values_bkp, vectors_bkpp, q_bkp, f_bkp)
        return (vectors_bkpp * f_bkp[..., None, :]) @ vectors_bkpp.mT

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor, None]:
        values_bkp, vectors_bkpp, q_bkp, f_bkp = ctx.saved_tensors
        # q' = -(e^q - 1) / (1 + y e^q), and f' = f q' / 2.
        slope_bkp = -0.5 * f_bkp * q_bkp.expm1() / (1 + values_bkp * q_bkp.exp())
        apart_bkpp = values_bkp[..., :, None] - values_bkp[..., None, :]
        rise_bkpp = f_bkp[..., :, None] - f_bkp[..., None, :]
        tangent_bkpp = (slope_bkp[..., :, None] + slope_bkp[..., None, :]) / 2
        # The quotient loses digits where eigenvalues agree to half of them: there the mean slope is as good.
        near = apart_bkpp.abs() <= torch.finfo(apart_bkpp.dtype).eps ** 0.5 * (1 + values_bkp[..., None])
        quotient_bkpp = torch.where(near, tangent_bkpp, rise_bkpp / torch.where(near, 1.0, apart_bkpp))
        inner_bkpp = vectors_bkpp.mT @ cotangents[0] @ vectors_bkpp * quotient_bkpp
        return vectors_bkpp @ inner_bkpp @ vectors_bkpp.mT, None
