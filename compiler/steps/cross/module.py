"""`cross_compress` and `cross_attend` in torch.

Axes: B batch, N tokens that ask, M keys, d width, K subspaces or heads, p their width, m = K p.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional as F

from crate_dsl.compiler.modules import StepModule
from crate_dsl.compiler.steps.attend.module import attention, weights
from crate_dsl.compiler.steps.norm.module import normalise


def _split(w_bnm: Tensor, heads: int) -> Tensor:
    """(B, N, m) -> (B, K, N, p)."""
    return w_bnm.unflatten(-1, (heads, -1)).transpose(1, 2)


def _joined(w_bknp: Tensor) -> Tensor:
    """(B, K, N, p) -> (B, N, m)."""
    return w_bknp.transpose(1, 2).flatten(-2)


def _mask(mask_bm: Tensor | None) -> Tensor | None:
    """Which keys are attended to: (B, 1, 1, M)."""
    return None if mask_bm is None else mask_bm[:, None, None, :]


class CrossCompress(StepModule):
    """(B, N, d), with keys (B, M, d) -> (B, N, d). `mask` (B, M) is false for keys that nobody attends to."""

    def forward(self, q_bnd: Tensor, *, keys: Tensor, mask: Tensor | None = None, **given: Tensor) -> Tensor:
        query_bknp, key_bkmp, scale = self._asked(q_bnd, keys, given)
        heads_bknp = attention(query_bknp, key_bkmp, key_bkmp, mask=_mask(mask), scale=scale)
        return q_bnd + self._led_back(heads_bknp, given)

    def explain(
        self, q_bnd: Tensor, *, keys: Tensor, mask: Tensor | None = None, **given: Tensor
    ) -> dict[str, Tensor]:
        query_bknp, key_bkmp, scale = self._asked(q_bnd, keys, given)
        attention_bknm = weights(query_bknp * scale, key_bkmp, mask=_mask(mask))
        return {
            "query": query_bknp,
            "key": key_bkmp,
            "value": key_bkmp,
            "attention": attention_bknm,
            "out": q_bnd + self._led_back(attention_bknm @ key_bkmp, given),
        }

    def _asked(
        self, q_bnd: Tensor, z_bmd: Tensor, given: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor, float]:
        """U_kᵀ norm Q and U_kᵀ norm Z for every subspace, and what their products are multiplied by."""
        op = self.operator
        weight, bias = self.weight_of("norm_weight", given), self.weight_of("norm_bias", given)
        x_bmd = normalise(op.norm, z_bmd, weight, bias)
        asking_bnd = normalise(op.norm, q_bnd, weight, bias) if op.norm_queries else q_bnd
        bases_md = self._bases(given)
        query_bnm = F.linear(asking_bnd, bases_md)
        fixed = op.scale is None or isinstance(op.scale, float)
        if not fixed:  # a scale that is a tensor multiplies the queries
            query_bnm = query_bnm * self.scalar("scale", given.get("scale"))
        key_bkmp = _split(F.linear(x_bmd, bases_md), op.subspaces)
        return _split(query_bnm, op.subspaces), key_bkmp, op.softmax_scale if fixed else 1.0

    def _led_back(self, heads_bknp: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        """What is added: (B, K, N, p) -> (B, N, d)."""
        op, heads_bnm = self.operator, _joined(heads_bknp)
        if op.out == "tied":
            out_bnd = heads_bnm @ self._bases(given)
        else:
            weight = self.weight_of("out_weight", given)
            assert weight is not None
            out_bnd = F.linear(heads_bnm, weight, self.weight_of("out_bias", given))
        if op.step is not None:
            out_bnd = self.scalar("step", given.get("step")) * out_bnd
        return F.dropout(out_bnd, op.dropout, self.training)

    def _bases(self, given: Mapping[str, Tensor]) -> Tensor:
        """U, its vectors as rows: (m, d)."""
        bases = self.weight_of("subspaces", given)
        assert bases is not None
        return bases


class CrossAttend(StepModule):
    """(B, N, d), with keys (B, M, d) -> (B, N, d). `mask` (B, M) is false for keys that nobody attends to."""

    query_weight: Tensor
    key_value_weight: Tensor
    out_weight: Tensor

    def forward(self, q_bnd: Tensor, *, keys: Tensor, mask: Tensor | None = None) -> Tensor:
        query_bhnp, key_bhmp, value_bhmp = self._heads(q_bnd, keys)
        return self._out(attention(query_bhnp, key_bhmp, value_bhmp, mask=_mask(mask)))

    def explain(self, q_bnd: Tensor, *, keys: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        query_bhnp, key_bhmp, value_bhmp = self._heads(q_bnd, keys)
        attention_bhnm = weights(query_bhnp * query_bhnp.shape[-1] ** -0.5, key_bhmp, mask=_mask(mask))
        return {
            "query": query_bhnp,
            "key": key_bhmp,
            "value": value_bhmp,
            "attention": attention_bhnm,
            "out": self._out(attention_bhnm @ value_bhmp),
        }

    def _heads(self, q_bnd: Tensor, z_bmd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, h, N, p), keys and values (B, h, M, p)."""
        heads = self.operator.heads
        query_bnd = F.linear(q_bnd, self.query_weight, getattr(self, "query_bias", None))
        both_bmd = F.linear(z_bmd, self.key_value_weight, getattr(self, "key_value_bias", None))
        key_bmd, value_bmd = both_bmd.chunk(2, dim=-1)
        return _split(query_bnd, heads), _split(key_bmd, heads), _split(value_bmd, heads)

    def _out(self, heads_bhnp: Tensor) -> Tensor:
        """(B, h, N, p) -> (B, N, d)."""
        out_bnd = F.linear(_joined(heads_bhnp), self.out_weight, getattr(self, "out_bias", None))
        return F.dropout(out_bnd, self.operator.dropout, self.training)
