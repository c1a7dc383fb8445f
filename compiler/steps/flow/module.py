"""`flow` in torch. Axes: B batch, N tokens, d width, K subspaces, p rank, m = K p."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from crate_dsl.compiler.modules import StepModule
from crate_dsl.compiler.steps.compress.module import damped, precise

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
        u_md, alpha = precise(subspaces_md), op.rank / (z_bnd.shape[1] * op.eps**2)

        def descent(z_bnd: Tensor) -> Tensor:
            """-∇Rᶜ(Z)."""
            w_bknp = F.linear(z_bnd, u_md).unflatten(-1, (op.subspaces, op.rank)).transpose(1, 2)
            return -alpha * damped(w_bknp, alpha).transpose(1, 2).flatten(-2) @ u_md

        # Errors of half precision would add up over the steps.
        with torch.autocast(z_bnd.device.type, enabled=False):
            z_bnd = precise(z_bnd)
            for _ in range(op.steps):
                z_bnd = SOLVERS[op.solver](descent, z_bnd, op.time / op.steps)
        return z_bnd
