"""`embed` and `transpose` against their formulas and against ONNX."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import torch

from crate_dsl.compiler.operators import Mistake, Normal, Weight
from crate_dsl.compiler.steps.classic.operator import Linear, Transpose
from crate_dsl.compiler.steps.embed.operator import Embed
from crate_dsl.compiler.types import Dim, Layout, Segment, Symbol, TensorType, floats
from tests.steps.harness import step

#: Rounding of float64 and float32 over sums of a few terms of size 1.
EXACT, SINGLE = 1e-13, 5e-6

VOCAB, N, D = 11, 5, 6
LENGTH = Dim.symbolic(Symbol("n", 8))
IDS = TensorType("index", (Dim(N),), classes=VOCAB)
IDS_N = TensorType("index", (LENGTH,), classes=VOCAB)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("shape", [(), (N,), (2, N)], ids=str)
def test_embed_reads_rows(shape: tuple[int, ...], batch: int) -> None:
    item = step(Embed(dim=D), TensorType("index", tuple(map(Dim.of, shape)), classes=VOCAB))
    ids = torch.randint(VOCAB, (batch, *shape))
    wanted = torch.nn.functional.one_hot(ids, VOCAB).float() @ item.module.weight.detach()
    assert torch.equal(item.module(ids), wanted)
    (exported,) = item.onnx(ids)
    assert np.array_equal(exported, wanted.numpy())
    assert item.typing.output == floats(*shape, D)


def test_embed_makes_tokens_and_keeps_a_layout() -> None:
    typing = Embed(dim=D).infer(IDS_N)
    assert typing.output == floats(LENGTH, D)
    assert typing.output.layout == Layout((Segment("tokens", LENGTH),))
    assert typing.slots["weight"].shape == (VOCAB, D) and typing.slots["weight"].initial == Normal(std=0.02)
    assert typing.flops == 0
    layout = Layout((Segment("text", Dim(N)),))
    given = TensorType("index", (Dim(N),), classes=VOCAB, layout=layout)
    assert Embed(dim=D).infer(given).output.layout == layout


def test_embed_takes_whole_numbers() -> None:
    with pytest.raises(Mistake) as caught:
        Embed(dim=D).infer(floats(N))
    assert caught.value.code == "E0411"


@pytest.mark.parametrize("batch", [1, 3])
def test_transposing_an_embedding_scores_each_number(batch: int) -> None:
    item = step(
        Transpose(weight=Weight("embedding.embed.weight", floats(VOCAB, D)), of="embed"), floats(N, D)
    )
    z, weight = torch.randn(batch, N, D), torch.randn(VOCAB, D)
    wanted = torch.einsum("bnd,vd->bnv", z.double(), weight.double())
    check_transpose(item, z, weight, wanted)
    assert item.typing.output == floats(N, VOCAB)
    assert item.typing.flops == 2 * N * D * VOCAB and not item.typing.slots


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("shape", [(7,), (N, 7)], ids=str)
def test_transposing_a_linear_map_leads_back(shape: tuple[int, ...], batch: int) -> None:
    item = step(Transpose(weight=Weight("f.linear.weight", floats(7, D)), of="linear"), floats(*shape))
    z, weight = torch.randn(batch, *shape), torch.randn(7, D)
    check_transpose(item, z, weight, torch.einsum("...o,oi->...i", z.double(), weight.double()))
    assert item.typing.output == floats(*shape[:-1], D)


def check_transpose(item, z, weight, wanted) -> None:  # type: ignore[no-untyped-def]
    assert (deepcopy(item.module).double()(z.double(), weight=weight.double()) - wanted).abs().max() < EXACT
    assert (item.module(z, weight=weight) - wanted).abs().max() < SINGLE
    (exported,) = item.onnx(z, weight=weight)
    assert np.abs(exported - wanted.numpy()).max() < SINGLE


def test_a_linear_map_and_its_transpose_are_adjoint() -> None:
    """⟨W x, y⟩ = ⟨x, W' y⟩."""
    forward = step(Linear(dim=7, bias=False), floats(N, D))
    weight = forward.module.weight.detach()
    back = step(Transpose(weight=Weight("f.linear.weight", floats(7, D)), of="linear"), floats(N, 7))
    x, y = torch.randn(2, N, D), torch.randn(2, N, 7)
    left = (forward.module(x).detach() * y).sum()
    assert left.item() == pytest.approx((x * back.module(y, weight=weight)).sum().item(), abs=1e-4)


@pytest.mark.parametrize(("of", "width"), [("embed", VOCAB), ("linear", D)])
def test_transpose_needs_the_width_it_leads_back_from(of: str, width: int) -> None:
    operator = Transpose.model_validate({"weight": Weight("w", floats(VOCAB, D)), "of": of})
    with pytest.raises(Mistake) as caught:
        operator.infer(floats(N, width))
    assert caught.value.code == "E0412"


def test_what_can_be_transposed_says_which_slot() -> None:
    assert Embed.transposable == Linear.transposable == "weight"
    assert Transpose.transposable is None
