"""Objectives against their formulas in float64."""

from __future__ import annotations

import pytest
import torch

from crate_dsl.compiler.operators import Mistake, Operator, Port, ports
from crate_dsl.compiler.steps.objectives.operator import CrossEntropy, Mse
from crate_dsl.compiler.types import Dim, Symbol, TensorType, floats
from tests.steps.harness import step

#: Float64 sums of some hundred numbers of size one, in two orders.
FLOAT64 = 1e-13
CLASSES, TOKENS = 7, 5
N = Dim.symbolic(Symbol("n", TOKENS))


def labels(*shape: int | Dim, classes: int = CLASSES) -> TensorType:
    return TensorType("index", tuple(Dim.of(dim) for dim in shape), classes)


def cross_entropy(logits: TensorType, label: TensorType, smoothing: float = 0.0) -> CrossEntropy:
    return CrossEntropy(logits=Port(logits), label=Port(label), smoothing=smoothing)


def mse(output: TensorType, target: TensorType) -> Mse:
    return Mse(output=Port(output), target=Port(target))


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("tokens", [(), (TOKENS,)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy(batch: int, tokens: tuple[int, ...], smoothing: float) -> None:
    dims = (N,) if tokens else ()
    item = step(cross_entropy(floats(*dims, CLASSES), labels(*dims), smoothing))
    generator = torch.Generator().manual_seed(batch)
    logits = 3 * torch.randn(batch, *tokens, CLASSES, dtype=torch.float64, generator=generator)
    label = torch.randint(CLASSES, (batch, *tokens), generator=generator)
    log_p = logits - logits.exp().sum(-1, keepdim=True).log()
    mass = (1 - smoothing) * torch.eye(CLASSES, dtype=torch.float64)[label] + smoothing / CLASSES
    loss = item.module(logits=logits, label=label)
    assert loss.shape == () == item.typing.output.shape
    torch.testing.assert_close(loss, -(mass * log_p).sum(-1).mean(), rtol=0, atol=FLOAT64)


@pytest.mark.parametrize("batch", [1, 3])
def test_mse(batch: int) -> None:
    item = step(mse(floats(N, 4), floats(N, 4)))
    output, target = torch.randn(
        2, batch, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(batch)
    )
    loss = item.module(output=output, target=target)
    assert loss.shape == () == item.typing.output.shape
    torch.testing.assert_close(loss, (output - target).pow(2).sum() / (batch * 12), rtol=0, atol=FLOAT64)


def test_tensors_come_by_argument() -> None:
    assert list(ports(cross_entropy(floats(CLASSES), labels()))) == ["logits", "label"]
    assert list(ports(mse(floats(3), floats(3)))) == ["output", "target"]


@pytest.mark.parametrize(
    ("code", "operator"),
    [
        ("E0440", cross_entropy(floats(10), labels(classes=12))),
        ("E0442", cross_entropy(floats(5, 10), labels(classes=10))),
        ("E0442", cross_entropy(floats(5, 10), labels(4, classes=10))),
        ("E0442", cross_entropy(floats(10), floats())),
        ("E0442", cross_entropy(labels(10), labels())),
        ("E0402", cross_entropy(floats(N), labels())),
        ("E0441", mse(floats(3), floats(4))),
        ("E0441", mse(floats(3, 4), floats(4))),
        ("E0441", mse(labels(), labels())),
    ],
)
def test_mistakes(code: str, operator: Operator) -> None:
    with pytest.raises(Mistake) as found:
        operator.infer()
    assert found.value.code == code


def test_both_numbers_of_classes_are_named() -> None:
    with pytest.raises(Mistake, match="logits of 10 classes, but labels of 12"):
        cross_entropy(floats(10), labels(classes=12)).infer()
