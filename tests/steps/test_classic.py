"""`linear`, `gelu`, `relu`, `silu`, `dropout` and `scale` against their formulas and against ONNX."""

from __future__ import annotations

import math
from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import Tensor

from crate_dsl.compiler.operators import (
    Inverse,
    Learned,
    LearnedInverse,
    Mistake,
    NoInverse,
    Operator,
    Port,
    Weight,
    linear_initial,
)
from crate_dsl.compiler.steps.classic.operator import Dropout, Gelu, Linear, Relu, Scale, Silu
from crate_dsl.compiler.types import Dim, Layout, Segment, Symbol, TensorType, floats
from tests.steps.harness import Step, step

#: Rounding of float64 over sums of a few terms.
EXACT = 1e-13
#: Rounding of float32 over sums of a few terms of size 1.
SINGLE = 5e-6

N, D, OUT = 5, 6, 7
TOKENS = floats(N, D)
SHAPES = {"one": floats(D), "tokens": TOKENS, "leading": floats(4, N, D)}


def check(item: Step, wanted: Tensor, z: Tensor, **given: Tensor) -> None:
    """The module in float64 and float32, and the ONNX function, against the formula's result."""
    exact = deepcopy(item.module).double()(
        z.double(), **{name: value.double() for name, value in given.items()}
    )
    assert exact.shape == wanted.shape
    assert (exact - wanted).abs().max() < EXACT
    assert (item.module(z, **given) - wanted).abs().max() < SINGLE
    (exported,) = item.onnx(z, **given)
    assert np.abs(exported - wanted.detach().numpy()).max() < SINGLE


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("tokens", SHAPES.values(), ids=SHAPES)
def test_linear(tokens: TensorType, bias: bool, batch: int) -> None:
    item = step(Linear(dim=OUT, bias=bias), tokens)
    z = torch.randn(batch, *tokens.sizes({}))
    weight = item.module.weight.detach().double()
    wanted = torch.einsum("...i,oi->...o", z.double(), weight)
    check(item, wanted + item.module.bias.detach().double() if bias else wanted, z)


def test_linear_counts_and_keeps_the_layout() -> None:
    layout = Layout((Segment("class", Dim(1)), Segment("patches", Dim(N - 1))))
    typing = Linear(dim=OUT).infer(floats(N, D, layout=layout))
    assert typing.output == floats(N, OUT) and typing.output.layout == layout
    assert typing.flops == 2 * N * D * OUT
    assert {name: slot.shape for name, slot in typing.slots.items()} == {"weight": (OUT, D), "bias": (OUT,)}
    assert {slot.initial for slot in typing.slots.values()} == {linear_initial(D)}
    length = Dim.symbolic(Symbol("n", 9))
    assert Linear(dim=OUT).infer(floats(length, D)).output.shape[0] == length


@pytest.mark.parametrize(
    ("given", "code"),
    [
        (TensorType("index", (Dim(N),), classes=9), "E0401"),
        (floats(), "E0401"),
        (floats(Dim.symbolic(Symbol("n", 9))), "E0402"),
    ],
)
def test_linear_needs_a_known_width(given: TensorType, code: str) -> None:
    with pytest.raises(Mistake) as caught:
        Linear(dim=OUT).infer(given)
    assert caught.value.code == code


FORMULAS = {
    Gelu(): lambda z: z / 2 * (1 + torch.erf(z / math.sqrt(2))),
    Relu(): lambda z: z * (z > 0),
    Silu(): lambda z: z / (1 + torch.exp(-z)),
    Dropout(p=0.3): lambda z: z,
    Scale(factor=-1.7): lambda z: -1.7 * z,
}


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("tokens", [floats(), *SHAPES.values()], ids=str)
@pytest.mark.parametrize("operator", FORMULAS, ids=lambda operator: operator.word)
def test_elementwise(operator: Operator, tokens: TensorType, batch: int) -> None:
    item = step(operator, tokens)
    z = 2 * torch.randn(batch, *tokens.sizes({}))
    check(item, FORMULAS[operator](z.double()), z)
    assert item.typing.output == tokens
    assert item.typing.flops == (0 if isinstance(operator, Dropout) else tokens.elements)
    assert isinstance(operator.inverse(LearnedInverse(), TOKENS), NoInverse) != isinstance(operator, Scale)


@pytest.mark.parametrize("operator", FORMULAS, ids=lambda operator: operator.word)
def test_elementwise_takes_floats(operator: Operator) -> None:
    with pytest.raises(Mistake) as caught:
        operator.infer(TensorType("bool", (Dim(N),)))
    assert caught.value.code == "E0401"


def test_dropout_drops_while_training_alone() -> None:
    module = step(Dropout(p=0.25), TOKENS).module.train()
    assert Dropout.identity_at_inference
    torch.manual_seed(0)
    dropped = module(torch.ones(200, N, D))
    assert dropped.unique().tolist() == [0.0, pytest.approx(1 / 0.75)]
    # 6000 draws: the share has a standard deviation of 0.0056.
    assert (dropped == 0).float().mean().item() == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("tokens", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("shape", [(), (D,)])
def test_scale_by_a_learned_factor(shape: tuple[int, ...], tokens: TensorType, batch: int) -> None:
    item = step(Scale(factor=Learned(1e-5, shape)), tokens)
    assert item.typing.slots["factor"].shape == shape
    assert item.typing.slots["factor"].initial.value == 1e-5
    z = torch.randn(batch, *tokens.sizes({}))
    check(item, item.module.factor.detach().double() * z.double(), z)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("tokens", SHAPES.values(), ids=SHAPES)
def test_scale_by_a_factor_for_each_sample(tokens: TensorType, batch: int) -> None:
    item = step(Scale(factor=Port(floats())), tokens)
    z, factor = torch.randn(batch, *tokens.sizes({})), torch.randn(batch)
    wanted = torch.stack([f * sample for f, sample in zip(factor.double(), z.double(), strict=True)])
    check(item, wanted, z, factor=factor)


def test_scale_by_a_borrowed_factor() -> None:
    item = step(Scale(factor=Weight("gate", floats(D))), TOKENS)
    z, factor = torch.randn(3, N, D), torch.randn(D)
    assert not item.typing.slots and set(item.typing.weights) == {"factor"}
    check(item, factor.double() * z.double(), z, factor=factor)


@pytest.mark.parametrize(
    ("factor", "code"),
    [
        (Learned(1.0, (N,)), "E0314"),
        (Weight("gate", floats(N, D)), "E0314"),
        (Port(floats(D)), "E0410"),
        (Port(TensorType("bool", ())), "E0410"),
    ],
)
def test_scale_refuses_other_shapes(factor: Learned | Weight | Port, code: str) -> None:
    with pytest.raises(Mistake) as caught:
        Scale(factor=factor).infer(TOKENS)
    assert (caught.value.code, caught.value.at) == (code, "factor")


def test_scale_is_undone_by_the_reciprocal() -> None:
    assert Scale(factor=4.0).inverse(LearnedInverse()) == Inverse(Scale(factor=0.25))
    assert isinstance(Scale(factor=0.0).inverse(LearnedInverse()), NoInverse)
    assert isinstance(Scale(factor=Learned(1.0)).inverse(LearnedInverse()), NoInverse)
