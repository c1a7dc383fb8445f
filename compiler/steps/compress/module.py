"""`compress` and `decompress` in torch. Axes: B batch, N tokens, d width, K subspaces, p rank, m = K p."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from crate_dsl.compiler.masks import Rule
from crate_dsl.compiler.modules import Bound, StepModule, precise
from crate_dsl.compiler.operators import Port
from crate_dsl.compiler.steps.attend.module import attention, ruled, weights
from crate_dsl.compiler.steps.compress.operator import LOST
from crate_dsl.compiler.steps.compress.representatives import by_way_of, pooled
from crate_dsl.compiler.steps.compress.statistics import biases_at, next_so_far, of_all, so_far
from crate_dsl.compiler.steps.norm.module import normalise
from crate_dsl.compiler.steps.rotary.module import rotated
from crate_dsl.compiler.types import TensorType


def damped(w_bknp: Tensor, alpha: float) -> Tensor:
    """(I + α W Wᵀ)⁻¹ W for every subspace, where tokens are columns of W and rows here.

    The p x p matrices are positive definite. Where α‖W‖² exceeds what the arithmetic can hold beside 1, the identity is
    raised to what it does hold, so that they stay so for tokens of every size.
    """
    gram_bkpp = w_bknp.mT @ w_bknp
    with torch.no_grad():
        size_bk = alpha * gram_bkpp.diagonal(dim1=-2, dim2=-1).sum(-1)
        floor_bk = (LOST * torch.finfo(w_bknp.dtype).eps * size_bk).clamp(min=1)
    identity_pp = torch.eye(w_bknp.shape[-1], dtype=w_bknp.dtype, device=w_bknp.device)
    factor_bkpp, _ = torch.linalg.cholesky_ex(alpha * gram_bkpp + floor_bk[..., None, None] * identity_pp)
    return torch.cholesky_solve(w_bknp.mT, factor_bkpp).mT


def series(w_bknp: Tensor, alpha: float) -> Tensor:
    """W - α W WᵀW: the same, to first order in α W Wᵀ."""
    return w_bknp - alpha * w_bknp @ (w_bknp.mT @ w_bknp)


@torch.no_grad()
def squared_norm(subspaces_md: Tensor) -> Tensor:
    """‖U‖₂²: the largest eigenvalue of the smaller of U Uᵀ and UᵀU."""
    u_md = precise(subspaces_md)
    gram = u_md @ u_md.T if u_md.shape[0] <= u_md.shape[1] else u_md.T @ u_md
    return torch.linalg.eigvalsh(gram)[-1]


class SubspaceModule(StepModule):
    """The branch F of `compress` and `decompress`.

    `given` are tensors by name: those handed over by argument, and the weights that are another's.
    """

    temperature: Tensor
    energy_bias: Tensor
    representatives_step: Tensor
    tokens_step: Tensor

    def _rate(self, z_bnd: Tensor, given: Mapping[str, Tensor]) -> Tensor | float:
        """What the branch is multiplied by: κ with attention as published, κα in derived steps."""
        op = self.operator
        if op.fraction is not None:
            # κα‖U‖² = c: α cancels, and orthonormal bases have ‖U‖ = 1.
            if op.constraint == "orthonormal":
                return float(op.fraction)
            with torch.autocast(z_bnd.device.type, enabled=False):
                return op.fraction / squared_norm(self._bases(given))
        if op.step is None:
            return 0.5 if op.derived else 1.0
        kappa = self.scalar("step", given.get("step"))
        return kappa * op.alpha(z_bnd.shape[1]) if op.derived else kappa

    def _branch(
        self,
        z_bnd: Tensor,
        rate: Tensor | float,
        given: Mapping[str, Tensor],
        read: slice | None = None,
    ) -> Tensor:
        """F(Z): (B, N, d) -> (B, N, d); of the tokens that are `read` alone, where that is said."""
        op = self.operator
        x_bnd = self._normalised(z_bnd, given)
        w_bnm = self._projected(x_bnd, given)
        if op.spectral:
            return self._dropped(-rate * self._spectral(w_bnm, given))
        if not op.attends:
            heads_bknp, _ = self._summarised(w_bnm, given)
            heads_bknp = heads_bknp if read is None else heads_bknp[:, :, read]
            return self._dropped(self._led_back(x_bnd, heads_bknp, rate, given))
        w_bknp = self._heads(w_bnm)
        compared_bknp = self._placed(w_bknp)
        heads_bknp = self._attended(
            compared_bknp if read is None else compared_bknp[:, :, read],
            compared_bknp,
            w_bknp,
            given,
            mask=self._mask(z_bnd, given, read),
            causal=op.mask == "causal",
        )
        return self._dropped(self._led_back(x_bnd, heads_bknp, rate, given))

    def _attended(
        self,
        query_bknp: Tensor,
        key_bkmp: Tensor,
        value_bkmp: Tensor,
        given: Mapping[str, Tensor],
        *,
        mask: Tensor | None,
        causal: bool = False,
    ) -> Tensor:
        """Attention within the subspaces, (B, K, N, p)."""
        # A softmax scale that is a number is left to the kernel; one that is a tensor multiplies the queries.
        scale = self.operator.scale
        if scale is None or isinstance(scale, float):
            scale = self.operator.softmax_scale
        else:
            query_bknp, scale = self._scaled(query_bknp, self.scalar("scale", given.get("scale"))), 1.0
        return attention(query_bknp, key_bkmp, value_bkmp, mask=mask, causal=causal, scale=scale)

    def _dropped(self, branch_bnd: Tensor) -> Tensor:
        return F.dropout(branch_bnd, self.operator.dropout, self.training)

    def _spectral(self, w_bnm: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        """∇Rᶜ / α, exactly or to first order: eqs. 31 and 32."""
        op = self.operator
        with torch.autocast(w_bnm.device.type, enabled=False):
            w_bknp, alpha = self._heads(precise(w_bnm)), op.alpha(w_bnm.shape[1])
            g_bknp = damped(w_bknp, alpha) if op.gradient == "exact" else series(w_bknp, alpha)
        return self._joined(g_bknp) @ self._bases(given)

    def _summarised(self, w_bnm: Tensor, given: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """What statistics or representatives make of the projected tokens, (B, K, N, p), and the taps."""
        op, w_bknp = self.operator, self._heads(w_bnm)
        if op.gradient == "representatives":
            r_bkmp = w_bknp if op.pool is None else self._heads(pooled(w_bnm, op.pool, self.facts))
            heads_bknp, assignment_bkmn = by_way_of(
                r_bkmp, w_bknp, op.softmax_scale, self.representatives_step, self.tokens_step
            )
            return heads_bknp, {"representatives": r_bkmp, "assignment": assignment_bkmn}
        # Sums over all tokens are too long for half precision.
        with torch.autocast(w_bnm.device.type, enabled=False):
            temperature_k = precise(self.temperature)
            if op.running:
                bias_kn = precise(self.energy_bias)[:, : w_bnm.shape[1]]
                heads_bknp, membership_bkn = so_far(
                    precise(w_bknp), temperature_k, bias_kn, kept_bn=given.get("mask")
                )
            else:
                heads_bknp, membership_bkn = of_all(precise(w_bknp), temperature_k, given.get("mask"))
        return heads_bknp.to(w_bnm.dtype), {"membership": membership_bkn}

    def _led_back(
        self, x_bnd: Tensor, heads_bknp: Tensor, rate: Tensor | float, given: Mapping[str, Tensor]
    ) -> Tensor:
        """What the heads amount to: (B, K, N, p) -> (B, N, d)."""
        op, heads_bnm = self.operator, self._joined(heads_bknp)
        if op.gradient == "softmax":
            # eq. 33: (1 - κα) X + κα MSSA(X), with α = p / (N ε²) and MSSA itself carrying a factor α.
            return rate * (op.alpha(x_bnd.shape[1]) * (heads_bnm @ self._bases(given)) - x_bnd)
        if op.tied:
            out_bnd = heads_bnm @ self._bases(given)
        else:
            weight = self.weight_of("out_weight", given)
            assert weight is not None
            out_bnd = F.linear(heads_bnm, weight, self.weight_of("out_bias", given))
        return out_bnd if op.step is None else rate * out_bnd

    # -------------------------------------------------------------- what can be seen

    def _explained(self, z_bnd: Tensor, given: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """F(Z) and the taps, the softmax written out."""
        op, rate = self.operator, self._rate(z_bnd, given)
        x_bnd = self._normalised(z_bnd, given)
        w_bnm = self._projected(x_bnd, given)
        w_bknp = self._heads(w_bnm)
        taps = {"norm": x_bnd, "projection": w_bknp}
        alpha = op.alpha(z_bnd.shape[1])
        if op.spectral:
            ascent_bnd = self._spectral(w_bnm, given)
            return self._dropped(-rate * ascent_bnd), taps | {"gradient": alpha * ascent_bnd}
        if not op.attends:
            heads_bknp, inside = self._summarised(w_bnm, given)
            return self._dropped(self._led_back(x_bnd, heads_bknp, rate, given)), taps | inside
        fixed = op.scale is None or isinstance(op.scale, float)
        compared_bknp = self._placed(w_bknp)
        scale = op.softmax_scale if fixed else self.scalar("scale", given.get("scale"))
        attention_bknn = weights(
            self._scaled(compared_bknp, scale),
            compared_bknp,
            mask=self._mask(z_bnd, given),
            causal=op.mask == "causal",
        )
        branch_bnd = self._led_back(x_bnd, attention_bknn @ w_bknp, rate, given)
        taps["attention"] = attention_bknn
        if op.gradient == "softmax":
            taps["gradient"] = -alpha * self._led_back(x_bnd, attention_bknn @ w_bknp, 1.0, given)
        return self._dropped(branch_bnd), taps

    @torch.no_grad()
    def bound(self, *inputs: TensorType, **given: Tensor) -> Bound:
        """κα‖U‖₂² for the exact gradient of tokens as they are: the slope of its spectral function is at most α."""
        op = self.operator
        if op.gradient != "exact":
            return Bound(
                None, f"`gradient = {op.gradient}` has no Lipschitz constant that holds for every input"
            )
        if op.norm.word != "none":
            return Bound(
                None, "the norm in the branch stretches tokens that are nearly constant without bound"
            )
        if op.fraction is not None:
            return Bound(float(op.fraction), f"κα‖U‖₂² = {op.fraction:g}, by its relative step")
        if isinstance(op.step, Port):
            return Bound(None, "its step is handed over, sample by sample")
        learned = self.weight_of("step", given)
        kappa = float(op.step if learned is None else learned.abs().max())
        # α is largest where there are fewest tokens.
        dim = inputs[0].shape[0]
        fewest = dim.offset + (dim.scale if dim.symbol else 0)
        alpha, norm = op.alpha(fewest), float(squared_norm(self._bases(given)))
        found = kappa * alpha * norm
        return Bound(found, f"κα‖U‖₂² = {kappa:.3g} · {alpha:.3g} · {norm:.3g}")

    # -------------------------------------------------------------- pieces

    def _bases(self, given: Mapping[str, Tensor]) -> Tensor:
        """U, its vectors as rows: (m, d)."""
        bases = self.weight_of("subspaces", given)
        assert bases is not None
        return bases

    def _projected(self, x_bnd: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        """W: U_kᵀ X for every subspace at once, where tokens are rows: (B, N, d) -> (B, N, m)."""
        return F.linear(x_bnd, self._bases(given), getattr(self, "projection_bias", None))

    def _normalised(self, z_bnd: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        weight, bias = self.weight_of("norm_weight", given), self.weight_of("norm_bias", given)
        return normalise(self.operator.norm, z_bnd, weight, bias)

    def _mask(self, z_bnd: Tensor, given: Mapping[str, Tensor], read: slice | None = None) -> Tensor | None:
        """What is attended to: (B, 1, 1, N); by a rule (N, N), or with its boolean (B, 1, N, N).

        A rule has a row for each token that is `read`.
        """
        if isinstance(self.operator.mask, Rule):
            mask_nn = ruled(self.operator.mask, self.facts, z_bnd, given.get("mask"))
            return mask_nn if read is None else mask_nn[..., read, :]
        return given["mask"][:, None, None, :] if "mask" in given else None

    def _scaled(self, w_bknp: Tensor, scale: Tensor | float) -> Tensor:
        """Queries times a scale, which may be one for each channel of all heads: (B, K, N, p) -> the same."""
        return self._heads(self._joined(w_bknp) * scale)

    def _placed(self, w_bknp: Tensor) -> Tensor:
        """What is compared: W, rotated by its places where that is asked for."""
        positions = self.operator.positions
        return w_bknp if positions == "none" else rotated(w_bknp, positions.base)

    def _heads(self, w_bnm: Tensor) -> Tensor:
        """(B, N, m) -> (B, K, N, p)."""
        return w_bnm.unflatten(-1, (self.operator.subspaces, self.operator.rank)).transpose(1, 2)

    @staticmethod
    def _joined(w_bknp: Tensor) -> Tensor:
        """(B, K, N, p) -> (B, N, m)."""
        return w_bknp.transpose(1, 2).flatten(-2)


class Compress(SubspaceModule):
    """Z + F(Z): (B, N, d) -> (B, N, d); where some tokens are `read`, of those alone."""

    def forward(self, z_bnd: Tensor, *, read: slice | None = None, **given: Tensor) -> Tensor:
        branch_bnd = self._branch(z_bnd, self._rate(z_bnd, given), given, read)
        return (z_bnd if read is None else z_bnd[:, read]) + branch_bnd

    def explain(self, z_bnd: Tensor, **given: Tensor) -> dict[str, Tensor]:
        branch_bnd, taps = self._explained(z_bnd, given)
        return taps | {"out": z_bnd + branch_bnd}


class Decompress(SubspaceModule):
    """X where X + F(X) = Y, by iteration from Y: (B, N, d) -> (B, N, d)."""

    def forward(self, y_bnd: Tensor, **given: Tensor) -> Tensor:
        return self._iterated(y_bnd, self._sweeps(y_bnd), given)

    def explain(self, y_bnd: Tensor, **given: Tensor) -> dict[str, Tensor]:
        before_bnd = self._iterated(y_bnd, self._sweeps(y_bnd) - 1, given)
        branch_bnd, taps = self._explained(before_bnd, given)
        return taps | {"out": y_bnd - branch_bnd}

    def _iterated(self, y_bnd: Tensor, times: int, given: Mapping[str, Tensor]) -> Tensor:
        rate, x_bnd = self._rate(y_bnd, given), y_bnd
        for _ in range(times):
            x_bnd = y_bnd - self._branch(x_bnd, rate, given)
        return x_bnd

    def _sweeps(self, y_bnd: Tensor) -> int:
        times: int = self.operator.sweeps(torch.finfo(y_bnd.dtype).eps)
        return times


class StatisticsStep(SubspaceModule):
    """Z + F(Z) of the next tokens, (B, N, d), given how many were before, (B,), and their sums, (B, 2, K, 2 p + 1); and
    the sums with them.
    """

    def forward(
        self, z_bnd: Tensor, past_b: Tensor, sums_b2kq: Tensor, **given: Tensor
    ) -> tuple[Tensor, Tensor]:
        x_bnd = self._normalised(z_bnd, given)
        w_bnm = self._projected(x_bnd, given)
        with torch.autocast(z_bnd.device.type, enabled=False):
            bias_bkn = biases_at(precise(self.energy_bias), past_b, z_bnd.shape[1])
            heads_bknp, after_b2kq = next_so_far(
                precise(self._heads(w_bnm)), precise(self.temperature), bias_bkn, sums_b2kq
            )
        branch_bnd = self._led_back(x_bnd, heads_bknp.to(w_bnm.dtype), self._rate(z_bnd, given), given)
        return z_bnd + self._dropped(branch_bnd), after_b2kq
