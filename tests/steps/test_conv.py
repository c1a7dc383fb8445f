"""`conv` and `batch_norm` against their formulas in float64 and against ONNX; running averages and who moves them."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import crate_dsl
from crate_dsl.compiler.operators import LearnedInverse, Mistake, NoInverse, Operator
from crate_dsl.compiler.steps.conv.operator import BatchNorm, Conv
from crate_dsl.compiler.types import Dim, Symbol, floats
from tests.steps.harness import step

#: Rounding of float64 over sums of a few dozen terms.
EXACT = 1e-12
#: Rounding of float32 over sums of a few dozen terms of size 1.
SINGLE = 2e-5

C, H, W = 3, 7, 10
PICTURE = floats(C, H, W)


def convolved(x: Tensor, weight: Tensor, bias: Tensor, stride: int, around: int) -> Tensor:
    """The sum, place by place."""
    kernel = weight.shape[-1]
    padded = torch.zeros(*x.shape[:2], x.shape[2] + 2 * around, x.shape[3] + 2 * around, dtype=x.dtype)
    padded[:, :, around : around + x.shape[2], around : around + x.shape[3]] = x
    rows, columns = ((n - kernel) // stride + 1 for n in padded.shape[2:])
    out = torch.empty(len(x), len(weight), rows, columns, dtype=x.dtype)
    for i in range(rows):
        for j in range(columns):
            seen = padded[:, :, i * stride : i * stride + kernel, j * stride : j * stride + kernel]
            out[:, :, i, j] = (seen[:, None] * weight).sum((2, 3, 4)) + bias
    return out


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize(
    ("operator", "shape"),
    [
        (Conv(dim=5), (5, 7, 10)),
        (Conv(dim=5, stride=2, bias=False), (5, 4, 5)),
        (Conv(dim=2, kernel=4, stride=3, padding=0), (2, 2, 3)),
        (Conv(dim=2, kernel=1, padding=2), (2, 11, 14)),
        (Conv(dim=2, kernel=7, padding=0), (2, 1, 4)),
    ],
)
def test_a_convolution_is_its_sum(operator: Conv, shape: tuple[int, ...], batch: int) -> None:
    item = step(operator, PICTURE)
    assert item.typing.output == floats(*shape)
    assert item.typing.flops == 2 * np.prod(shape) * C * operator.kernel**2
    x = torch.randn(batch, C, H, W, dtype=torch.float64, generator=torch.Generator().manual_seed(batch))
    weight = item.module.weight.detach().double()
    bias = item.module.bias.detach().double() if operator.bias else torch.zeros(operator.dim).double()
    wanted = convolved(x, weight, bias, operator.stride, operator.around)
    assert wanted.shape == (batch, *shape)
    assert (deepcopy(item.module).double()(x) - wanted).abs().max() < EXACT
    (exported,) = item.onnx(x.float())
    assert np.abs(exported - wanted.numpy()).max() < SINGLE


def test_a_batch_is_normalised_and_moves_the_averages() -> None:
    operator = BatchNorm(eps=1e-3, momentum=0.3)
    item = step(operator, PICTURE)
    module = deepcopy(item.module).double().train()
    before = {name: value.detach().clone() for name, value in module.named_parameters()}
    x = 2 + 3 * torch.randn(4, C, H, W, dtype=torch.float64)
    found = module(x)
    count = 4 * H * W
    for c in range(C):
        channel = x[:, c]
        mean = channel.sum() / count
        variance = (channel - mean).square().sum() / count
        wanted = before["weight"][c] * (channel - mean) / (variance + 1e-3).sqrt() + before["bias"][c]
        assert (found[:, c] - wanted).abs().max() < EXACT
        assert abs(module.mean[c] - (0.7 * before["mean"][c] + 0.3 * mean)) < EXACT
        moved = 0.7 * before["variance"][c] + 0.3 * variance * count / (count - 1)
        assert abs(module.variance[c] - moved) < EXACT


def test_afterwards_the_averages_are_used() -> None:
    item = step(BatchNorm(), PICTURE)
    with torch.no_grad():
        item.module.variance.abs_().add_(0.5)
    x = torch.randn(4, C, H, W)
    w = {name: value.detach().double()[:, None, None] for name, value in item.module.named_parameters()}
    wanted = w["weight"] * (x - w["mean"]) / (w["variance"] + 1e-5).sqrt() + w["bias"]
    assert (item.module(x) - wanted).abs().max() < SINGLE
    (exported,) = item.onnx(x)
    assert np.abs(exported - wanted.numpy()).max() < SINGLE


@pytest.mark.parametrize(
    ("operator", "given", "code"),
    [
        (Conv(dim=5), floats(7, 3), "E0401"),
        (BatchNorm(), floats(7), "E0401"),
        (Conv(dim=5), floats(3, 8, Dim.symbolic(Symbol("n", 8))), "E0402"),
        (BatchNorm(), floats(3, Dim.symbolic(Symbol("n", 8)), 8), "E0402"),
        (Conv(dim=5, kernel=8, padding=0), PICTURE, "E0482"),
    ],
)
def test_mistakes(operator: Operator, given: object, code: str) -> None:
    with pytest.raises(Mistake) as caught:
        operator.infer(given)  # type: ignore[arg-type]
    assert caught.value.code == code


def test_they_have_no_inverse() -> None:
    for operator in (Conv(dim=5), BatchNorm()):
        assert isinstance(operator.inverse(LearnedInverse(), PICTURE), NoInverse)


TEXT = """
model stem(dim = 8) {
    input  image : float[2, 12, 12]
    target label : index(3)

    stage front  = conv(dim / 2, stride = 2, bias = false) -> batch_norm -> gelu -> conv(dim, stride = 2) -> batch_norm
    stage second = conv(4) -> batch_norm

    tokens = image -> front -> patchify(1)
    seen   = image -> frozen(second) -> patchify(4) -> pool -> linear(dim)
    logits = ((tokens -> pool) + seen) -> linear(3)

    output logits
    objective cross_entropy(logits, label)
}
"""


@pytest.fixture
def net(tmp_path: Path) -> crate_dsl.Network:
    path = tmp_path / "stem.crate"
    path.write_text(TEXT)
    return crate_dsl.build(crate_dsl.load(str(path)), seed=2)


def test_averages_are_counted_apart_and_moved_in_training_alone(net: crate_dsl.Network) -> None:
    graph = net.graph
    averages = {path for path in graph.slots if path.rpartition(".")[2] in ("mean", "variance")}
    assert averages <= graph.frozen
    stem = 2 * 4 * 9 + 2 * 4 + (4 * 8 * 9 + 8) + 2 * 8
    assert graph.parameters == stem + (64 * 8 + 8) + (8 * 3 + 3)
    before = {path: net.get_parameter(path).clone() for path in averages}
    objective = crate_dsl.Objective(net).train()
    batch = {"image": 1 + torch.randn(6, 2, 12, 12), "label": torch.tensor([0, 1, 2, 0, 1, 2])}
    objective(batch).backward()
    moved = {path for path in averages if not torch.equal(net.get_parameter(path), before[path])}
    # What is frozen keeps its averages, and normalises by them.
    assert moved == {path for path in averages if path.startswith("front.")}
    after = {path: net.get_parameter(path).clone() for path in averages}
    net.eval()
    with torch.no_grad():
        net(batch["image"])
    assert all(torch.equal(net.get_parameter(path), after[path]) for path in averages)


def test_a_trained_stem_is_exported_as_it_is(net: crate_dsl.Network, tmp_path: Path) -> None:
    objective = crate_dsl.Objective(net).train()
    for _ in range(3):
        objective({"image": 1 + torch.randn(6, 2, 12, 12), "label": torch.tensor([0, 1, 2, 0, 1, 2])})
    net.eval()
    assert crate_dsl.export(net.graph, net, tmp_path / "net.onnx").passed
    x = torch.randn(5, 2, 12, 12)
    session = crate_dsl.open_session(tmp_path / "net.onnx", provider="cpu")
    with torch.no_grad():
        assert np.abs(session(image=x.numpy())["logits"] - net(x).numpy()).max() < SINGLE


def test_a_stem_of_nearly_constant_channels_is_proved(net: crate_dsl.Network, tmp_path: Path) -> None:
    """The proof moves weights; a small variance moved below zero would have no root."""
    with torch.no_grad():
        net.front.batch_norm.variance.fill_(1e-4)
    assert crate_dsl.export(net.graph, net.eval(), tmp_path / "net.onnx").passed


def test_a_frozen_use_of_a_trained_stem_leaves_its_averages(tmp_path: Path) -> None:
    """One set of averages, moved by the use that trains and by no other."""
    path = tmp_path / "twice.crate"
    text = """
    model twice {
        input image : float[1, 4, 4]
        input other : float[1, 4, 4]

        stage front = conv(2) -> batch_norm -> patchify(4)
        held  = other -> frozen(front)
        moved = image -> front

        output held
        objective mse(moved, held)
    }
    """
    path.write_text(text)
    net = crate_dsl.build(crate_dsl.load(str(path)))
    images = {"image": torch.randn(5, 1, 4, 4), "other": 9 + torch.randn(5, 1, 4, 4)}
    crate_dsl.Objective(net).train()(images)
    with torch.no_grad():
        mean = net.front.conv(images["image"]).mean((0, 2, 3))
    assert (net.front.batch_norm.mean - 0.1 * mean).abs().max() < SINGLE
