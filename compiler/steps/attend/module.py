"""`attend` in torch. Axes: B batch, N tokens, d width, h heads, p width of a head."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from crate_dsl.compiler.masks import Alternatives, Columns, Rule, Term
from crate_dsl.compiler.modules import StepModule
from crate_dsl.compiler.steps.rotary.module import rotated


def attention(
    query_bhnp: Tensor,
    key_bhmp: Tensor,
    value_bhmp: Tensor,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """softmax(scale · Q Kᵀ) V of every head, (B, h, N, p); `scale` is p⁻¹ᐟ² unless it is said.

    `mask` (B, 1, 1, M), (N, M) or (B, 1, N, M) is false for keys that are not attended to. By torch's kernel, or
    written out where that is slow; not with a mask, for the kernel knows what to say where it leaves no key: zero.
    """
    if mask is None and _kernel_is_slow(key_bhmp):
        scale = key_bhmp.shape[-1] ** -0.5 if scale is None else scale
        # Where one tensor is keys and values, it is laid out for products once.
        keys_bhmp = key_bhmp.contiguous()
        values_bhmp = keys_bhmp if value_bhmp is key_bhmp else value_bhmp
        queries_bhnp = keys_bhmp if query_bhnp is key_bhmp else query_bhnp
        weights_bhnm = weights(queries_bhnp * scale, keys_bhmp, causal=causal)
        return weights_bhnm.to(values_bhmp.dtype) @ values_bhmp
    return F.scaled_dot_product_attention(
        query_bhnp, key_bhmp, value_bhmp, attn_mask=mask, is_causal=causal, scale=scale
    )


def weights(
    query_bhnp: Tensor, key_bhmp: Tensor, *, mask: Tensor | None = None, causal: bool = False
) -> Tensor:
    """softmax(Q Kᵀ) of every head, written out, (B, h, N, M): what the kernel keeps to itself. `mask` as there."""
    logits_bhnm = query_bhnp @ key_bhmp.mT
    if mask is not None:
        logits_bhnm = logits_bhnm.masked_fill(~mask, -torch.inf)
    if causal:
        logits_bhnm = logits_bhnm.masked_fill(later(logits_bhnm), -torch.inf)
    weights_bhnm = logits_bhnm.softmax(-1)
    # Over no keys a softmax has no value, and the kernel's is zero.
    return weights_bhnm if mask is None else weights_bhnm.masked_fill(~mask, 0.0)


def later(logits_bhnm: Tensor) -> Tensor:
    """Which keys come after a query, (N, M): what a causal mask leaves out."""
    return torch.ones(logits_bhnm.shape[-2:], dtype=torch.bool, device=logits_bhnm.device).triu(1)


_SIGNS = {"==": torch.eq, "!=": torch.ne, "<": torch.lt, "<=": torch.le, ">": torch.gt, ">=": torch.ge}


def ruled(rule: Rule, columns: Columns | None, tokens_bnd: Tensor, kept_bn: Tensor | None) -> Tensor:
    """Which keys each token attends to: (N, N), or with the boolean that the rule reads (B, 1, N, N).

    Without `columns` it reads places alone.
    """

    def pairs(alternatives: Alternatives) -> Tensor:
        # A compiler sees no tensors that it could keep.
        work_out = pairs_of if torch.compiler.is_compiling() else _known_pairs
        return work_out(alternatives, columns, tokens_bnd.shape[1], tokens_bnd.device)

    if kept_bn is None:
        return pairs(rule.alternatives)
    where_kept_b1nn = pairs(rule.where_kept) & kept_bn[:, None, None, :]
    return pairs(rule.alternatives) | where_kept_b1nn if rule.alternatives else where_kept_b1nn


def pairs_of(
    alternatives: Alternatives, columns: Columns | None, count: int, device: torch.device, first: int = 0
) -> Tensor:
    """Alternatives worked out as they are written, for `count` tokens, those from `first` on attending: (N, M)."""

    def side(terms: tuple[Term, ...], given: tuple[tuple[str, tuple[int, ...]], ...]) -> Tensor:
        values = dict(given)
        total_m = torch.zeros(count, dtype=torch.int64, device=device)
        for term in terms:
            if term.attribute == "place":
                attribute_m = torch.arange(count, device=device)
            else:
                attribute_m = torch.tensor(values[term.attribute], device=device)
            total_m = total_m + term.factor * attribute_m
        return total_m

    queries, keys = ((), ()) if columns is None else (columns.queries, columns.keys)
    found_nm = torch.zeros(count - first, count, dtype=torch.bool, device=device)
    for all_of in alternatives:
        mine_nm = torch.ones_like(found_nm)
        for one in all_of:
            left_1m = side(one.keys, keys)[None, :]
            right_n1 = (side(one.queries, queries) + one.constant)[first:, None]
            mine_nm = mine_nm & _SIGNS[one.sign](left_1m, right_n1)
        found_nm = found_nm | mine_nm
    return found_nm


@lru_cache(maxsize=4)
def _known_pairs(
    alternatives: Alternatives, columns: Columns | None, count: int, device: torch.device
) -> Tensor:
    """`pairs_of`, once for all layers and batches of that length. Nobody may write to it."""
    with torch.inference_mode(False):  # so that it may take part in gradients later
        return pairs_of(alternatives, columns, count, device)


def _kernel_is_slow(key_bhmp: Tensor) -> bool:
    """Whether products and a softmax train faster than scaled_dot_product_attention: in half precision on a CPU.

    There the kernel's gradient alone takes longer than all that is written out: on a CPU with 16-bit matrix units, 2.1
    times as long in all at 197 tokens, and 4 to 6.8 times at 50 and 65. In float32 the kernel is as fast (0.8 to 1.07),
    without a gradient mostly faster, and it keeps no N x N matrix.
    """
    return (
        key_bhmp.device.type == "cpu"
        and key_bhmp.dtype in (torch.bfloat16, torch.float16)
        and key_bhmp.requires_grad
        and torch.is_grad_enabled()
        and not torch.compiler.is_exporting()
    )


class Attend(StepModule):
    """(B, N, d) -> (B, N, d). `mask` (B, N) is false for tokens that nobody attends to.

    Where some tokens are `read`, they alone attend: (B, N, d) -> (B, n, d).
    """

    qkv_weight: Tensor
    out_weight: Tensor

    def forward(self, z_bnd: Tensor, *, mask: Tensor | None = None, read: slice | None = None) -> Tensor:
        query_bhnp, key_bhnp, value_bhnp = self._heads(z_bnd)
        heads_bhnp = attention(
            query_bhnp if read is None else query_bhnp[:, :, read],
            key_bhnp,
            value_bhnp,
            mask=self._mask(z_bnd, mask, read),
            causal=self.operator.mask == "causal",
        )
        return self._out(heads_bhnp)

    def explain(self, z_bnd: Tensor, *, mask: Tensor | None = None) -> dict[str, Tensor]:
        query_bhnp, key_bhnp, value_bhnp = self._heads(z_bnd)
        attention_bhnn = weights(
            query_bhnp * query_bhnp.shape[-1] ** -0.5,
            key_bhnp,
            mask=self._mask(z_bnd, mask),
            causal=self.operator.mask == "causal",
        )
        return {
            "query": query_bhnp,
            "key": key_bhnp,
            "value": value_bhnp,
            "attention": attention_bhnn,
            "out": self._out(attention_bhnn @ value_bhnp),
        }

    def _mask(self, z_bnd: Tensor, mask_bn: Tensor | None, read: slice | None = None) -> Tensor | None:
        """What may be attended to: (B, 1, 1, N); by a rule (N, N), or with its boolean (B, 1, N, N).

        A rule has a row for each token that is `read`.
        """
        if isinstance(self.operator.mask, Rule):
            mask_nn = ruled(self.operator.mask, self.facts, z_bnd, mask_bn)
            return mask_nn if read is None else mask_nn[..., read, :]
        return None if mask_bn is None else mask_bn[:, None, None, :]

    def _heads(self, z_bnd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of every head: (B, h, N, p) each."""
        qkv_bnm = F.linear(z_bnd, self.qkv_weight, getattr(self, "qkv_bias", None))
        query, key, value = (
            qkv_bnm.unflatten(-1, (3, self.operator.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        )
        positions = self.operator.positions
        if positions != "none":
            query, key = rotated(query, positions.base), rotated(key, positions.base)
        return query, key, value

    def _out(self, heads_bhnp: Tensor) -> Tensor:
        """(B, h, N, p) -> (B, N, d)."""
        heads_bnd = heads_bhnp.transpose(1, 2).flatten(-2)
        out_bnd = F.linear(heads_bnd, self.out_weight, getattr(self, "out_bias", None))
        return F.dropout(out_bnd, self.operator.dropout, self.training)
