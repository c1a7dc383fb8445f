"""`attend` against its formula in float64 and against ONNX."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import Tensor

from crate_dsl.compiler.operators import Mistake, Port
from crate_dsl.compiler.steps.attend.operator import Attend
from crate_dsl.compiler.types import Dim, Symbol, TensorType, floats
from tests.steps.harness import Step, step

#: Rounding of float64 over sums of a few dozen terms.
EXACT = 1e-12
#: Rounding of float32 over sums of a few dozen terms of size 1.
SINGLE = 1e-5

N, D, HEADS = 5, 12, 3
TOKENS = floats(N, D)
KEPT = Port(TensorType("bool", (Dim(N),)))
VARIANTS = {
    "plain": Attend(heads=HEADS),
    "one_head": Attend(heads=1),
    "heads_of_one": Attend(heads=D),
    "no_bias": Attend(heads=HEADS, bias=False),
    "causal": Attend(heads=HEADS, mask="causal"),
    "kept": Attend(heads=HEADS, mask=KEPT),
    "dropout": Attend(heads=HEADS, dropout=0.5),
}


def reference(item: Step, z: Tensor, mask: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
    """Head by head; also the attention of each, whose rows are queries."""
    op, w = item.operator, {name: value.detach().double() for name, value in item.module.named_parameters()}
    width = z.shape[-1] // op.heads
    qkv = z.double() @ w["qkv_weight"].T + w.get("qkv_bias", 0.0)
    allowed = torch.ones(len(z), z.shape[1], z.shape[1], dtype=torch.bool)
    if op.mask == "causal":
        allowed = allowed.tril()
    if mask is not None:
        allowed = allowed & mask[:, None, :]
    heads, attention = [], []
    for h in range(op.heads):
        q, k, v = (qkv[..., part * z.shape[-1] :][..., h * width : (h + 1) * width] for part in range(3))
        scores = (q @ k.transpose(1, 2) / width**0.5).masked_fill(~allowed, -torch.inf)
        attention.append(scores.softmax(-1))
        heads.append(attention[-1] @ v)
    return torch.cat(heads, -1) @ w["out_weight"].T + w.get("out_bias", 0.0), attention


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("variant", VARIANTS)
def test_module_and_onnx_are_the_formula(variant: str, batch: int) -> None:
    torch.manual_seed(batch)
    item = step(VARIANTS[variant], TOKENS)
    z = torch.randn(batch, N, D)
    given = {"mask": torch.rand(batch, N) < 0.6} if variant == "kept" else {}
    for mask in given.values():
        mask[:, 0] = True
    wanted, attention = reference(item, z, **given)
    for rows in attention:
        assert (rows.sum(-1) - 1).abs().max() < EXACT
    assert (deepcopy(item.module).double()(z.double(), **given) - wanted).abs().max() < EXACT
    assert (item.module(z, **given) - wanted).abs().max() < SINGLE
    (exported,) = item.onnx(z, **given)
    assert np.abs(exported - wanted.numpy()).max() < SINGLE
    taps = deepcopy(item.module).double().explain(z.double(), **given)
    assert set(taps) == {*item.operator.taps, "out"}
    assert (taps["out"] - wanted).abs().max() < EXACT
    assert (taps["attention"] - torch.stack(attention, 1)).abs().max() < EXACT
    assert (taps["attention"] @ taps["value"]).shape == (
        batch,
        item.operator.heads,
        N,
        D // item.operator.heads,
    )


def test_attention_averages() -> None:
    """Rows of attention sum to one: equal values, and nothing but values, come out as they went in."""
    item = step(Attend(heads=HEADS), TOKENS)
    module = item.module
    with torch.no_grad():
        module.qkv_weight[2 * D :] = 0
        module.qkv_bias[2 * D :] = torch.arange(D)
        module.out_weight.copy_(torch.eye(D))
        module.out_bias.zero_()
        out = module(torch.randn(3, N, D))
    assert (out - torch.arange(D)).abs().max() < SINGLE


def test_a_causal_prefix_is_the_prefix() -> None:
    item = step(Attend(heads=HEADS, mask="causal"), TOKENS)
    z = torch.randn(2, N, D)
    whole = item.module(z)
    for n in range(1, N):
        assert (item.module(z[:, :n]) - whole[:, :n]).abs().max() < SINGLE


def test_masked_tokens_are_not_read() -> None:
    item = step(Attend(heads=HEADS, mask=KEPT), TOKENS)
    mask = torch.tensor([[True, True, True, False, False]])
    z = torch.randn(1, N, D)
    changed = z.clone()
    changed[:, 3:] += 1
    before, after = (item.module(value, mask=mask)[:, :3] for value in (z, changed))
    assert torch.equal(before, after)
    assert (item.module(z[:, :3], mask=mask[:, :3]) - before).abs().max() < SINGLE


def test_permuting_tokens_permutes_the_result() -> None:
    item = step(Attend(heads=HEADS), TOKENS)
    z, order = torch.randn(2, N, D), torch.randperm(N)
    assert (item.module(z[:, order]) - item.module(z)[:, order]).abs().max() < SINGLE


def test_dropout_acts_while_training() -> None:
    module = step(Attend(heads=HEADS, dropout=0.5), TOKENS).module.train()
    assert (module(torch.randn(8, N, D)) == 0).any()


def test_weights_and_costs_are_counted() -> None:
    n, d = 197, 192
    typing = Attend(heads=3).infer(floats(n, d))
    assert sum(int(np.prod(slot.shape)) for slot in typing.slots.values()) == 4 * d * d + 4 * d
    bare = Attend(heads=3, bias=False).infer(floats(n, d))
    assert set(bare.slots) == {"qkv_weight", "out_weight"}
    assert typing.flops == bare.flops == 2 * n * d * 4 * d + 2 * 2 * n * n * d
    assert Attend(heads=3).infer(floats(Dim.symbolic(Symbol("n", n)), d)).flops == typing.flops


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(Mistake) as caught:
        Attend(heads=5).infer(TOKENS)
    assert (caught.value.code, caught.value.at) == ("E0312", "heads")
    assert caught.value.help == ("heads that divide 12: 1, 2, 3, 4, 6, 12",)


def test_a_mask_fits_the_tokens() -> None:
    with pytest.raises(Mistake) as caught:
        Attend(heads=3, mask=Port(floats(N))).infer(TOKENS)
    assert (caught.value.code, caught.value.at) == ("E0406", "mask")
