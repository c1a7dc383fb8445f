"""`sparsify` in torch. Axes: B batch, N tokens, d width, s codes (s = d unless `expand`)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from crate_dsl.compiler.modules import StepModule
from crate_dsl.compiler.steps.norm.module import normalise
from crate_dsl.compiler.steps.sparsify.operator import Leaky, ProxForm, Soft

#: D' - D'D costs d tokens' worth of products, once. At twice as many tokens it has paid for itself.
MANY = 2


def proximal(form: ProxForm, a_bns: Tensor, threshold: Tensor | float) -> Tensor:
    """The proximal map of the penalty, with `threshold` = step · penalty."""
    shrunk_bns = a_bns - threshold
    if isinstance(form, Soft):
        return F.relu(shrunk_bns) - F.relu(-a_bns - threshold)
    if isinstance(form, Leaky):
        return F.leaky_relu(shrunk_bns, form.slope)
    return F.relu(shrunk_bns)


class Sparsify(StepModule):
    """A sparse code of each token, or what it stands for: (B, N, d) -> (B, N, d)."""

    dictionary: Tensor
    decode: Tensor

    def forward(self, z_bnd: Tensor, *, step: Tensor | None = None, penalty: Tensor | None = None) -> Tensor:
        op = self.operator
        y_bnd = normalise(
            op.norm, z_bnd, getattr(self, "norm_weight", None), getattr(self, "norm_bias", None)
        )
        eta = self.scalar("step", step)
        threshold = eta * self.scalar("penalty", penalty)
        # A_{t+1} = prox(A_t + η D'(Y - D A_t)), row by row.
        if op.start == "input":
            a_bns = proximal(op.prox, y_bnd + self._first_ascent(y_bnd, eta), threshold)
        else:
            a_bns = proximal(op.prox, eta * (y_bnd @ self.dictionary), threshold)
        for _ in range(op.iterations - 1):
            residue_bnd = y_bnd - F.linear(a_bns, self.dictionary)
            a_bns = proximal(op.prox, a_bns + eta * (residue_bnd @ self.dictionary), threshold)
        if op.decode == "none":
            out_bnd = a_bns
        else:
            out_bnd = F.linear(a_bns, self.dictionary if op.decode == "tied" else self.decode)
        return z_bnd + out_bnd if op.residual else out_bnd

    def _first_ascent(self, y_bnd: Tensor, eta: Tensor | float) -> Tensor:
        """η D'(Y - D Y), with one product for each token instead of two where there are many more tokens than channels.

        The identity stays out of the matrix, so that the tokens keep their precision under autocast. A step for each
        sample would need a matrix for each, and an exported program must not depend on the size of its example.
        """
        each_sample = isinstance(eta, Tensor) and eta.dim() == 3
        if (
            torch.compiler.is_exporting()
            or each_sample
            or y_bnd.shape[0] * y_bnd.shape[1] < MANY * y_bnd.shape[2]
        ):
            return eta * ((y_bnd - F.linear(y_bnd, self.dictionary)) @ self.dictionary)
        return y_bnd @ (eta * (self.dictionary - self.dictionary.T @ self.dictionary))
