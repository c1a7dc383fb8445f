"""Losses of features in torch: tensors by name in, the mean over the batch out, shape ().

Axes: B batch, d width, V views of the student, W views of the teacher. All of it is computed in float32 or better: what
tells features apart is a small part of them.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from crate_dsl.compiler.modules import StepModule, precise
from crate_dsl.compiler.rates import coding_rate, unit_tokens
from crate_dsl.compiler.steps.contrast.operator import USUAL_TEMPERATURE, Cosine, Distance


class InfoNce(StepModule):
    """Features (B, d) and (B, d) -> ()."""

    def forward(self, *, a: Tensor, b: Tensor, temperature: Tensor | None = None) -> Tensor:
        a_bd, b_bd = precise(a), precise(b)
        with torch.autocast(a.device.type, enabled=False):
            alike_bb = self._kernel(a_bd, b_bd, temperature)
        own_b = torch.arange(len(a), device=a.device)
        return (F.cross_entropy(alike_bb, own_b) + F.cross_entropy(alike_bb.mT, own_b)) / 2

    def _kernel(self, a_bd: Tensor, b_bd: Tensor, temperature: Tensor | None) -> Tensor:
        """k(a_i, b_j)."""
        op = self.operator
        if isinstance(op.kernel, Cosine):
            cosines_bb = unit_tokens(a_bd) @ unit_tokens(b_bd).mT
            return cosines_bb / (
                temperature if temperature is not None else op.temperature or USUAL_TEMPERATURE
            )
        return -half_squared(a_bd, b_bd) / op.kernel.sigma**2


class Match(StepModule):
    """Student (B, V, d) or (B, d), teacher (B, W, d) or (B, d) -> ()."""

    def forward(self, *, student: Tensor, teacher: Tensor) -> Tensor:
        s_bvd, t_bwd = _with_views(precise(student)), _with_views(precise(teacher.detach()))
        with torch.autocast(student.device.type, enabled=False):
            apart_bwv = self._apart(s_bvd, t_bwd)
        if self.operator.except_ == "same":
            apart_bwv = apart_bwv.tril(-1) + apart_bwv.triu(1)  # all but the diagonal
        return apart_bwv.sum() / (len(student) * self.operator.pairs)

    def _apart(self, s_bvd: Tensor, t_bwd: Tensor) -> Tensor:
        """How far each view of the teacher is from each of the student: (B, W, V)."""
        by = self.operator.by
        if isinstance(by, Distance):
            return half_squared(unit_tokens(t_bwd), unit_tokens(s_bvd))
        centred_bwd = t_bwd - t_bwd.mean(dim=(0, 1))
        told_bwd = (centred_bwd / by.teacher).softmax(dim=-1)
        return -told_bwd @ (s_bvd / by.student).log_softmax(dim=-1).mT


class Rate(StepModule):
    """Features (B, d) or (B, V, d) -> ()."""

    def forward(self, *, features: Tensor) -> Tensor:
        z_vbd = _with_views(unit_tokens(precise(features))).transpose(0, 1)
        return coding_rate(z_vbd, self.operator.eps).mean()


def _with_views(z: Tensor) -> Tensor:
    """(B, d) as one view: (B, 1, d)."""
    return z[:, None] if z.dim() == 2 else z


def half_squared(x: Tensor, y: Tensor) -> Tensor:
    """½ ‖x_i - y_j‖²: (…, n, d) and (…, m, d) -> (…, n, m), from differences: products lose what is small in them."""
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square() / 2
