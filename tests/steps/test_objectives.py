"""Objectives against their formulas in float64."""

from __future__ import annotations

from math import sqrt
from typing import Literal

import pytest
import torch
from torch import Tensor

from crate_dsl.compiler.operators import Mistake, Operator, Port, ports
from crate_dsl.compiler.steps.objectives.operator import Mse
from crate_dsl.compiler.types import Dim, Symbol, TensorType, floats
from tests.steps.harness import step

#: Float64 sums of some hundred numbers of size one, in two orders.
FLOAT64 = 1e-13
TOKENS = 5
N = Dim.symbolic(Symbol("n", TOKENS))


def labels(*shape: int | Dim, classes: int = 7) -> TensorType:
    return TensorType("index", tuple(Dim.of(dim) for dim in shape), classes)


def mse(
    output: TensorType,
    target: TensorType,
    on: TensorType | None = None,
    omitted: TensorType | None = None,
    normalize: Literal["none", "patch"] = "none",
) -> Mse:
    return Mse(
        output=Port(output),
        target=Port(target),
        on=None if on is None else Port(on),
        except_=None if omitted is None else Port(omitted),
        normalize=normalize,
    )


def marks(*shape: int | Dim) -> TensorType:
    return TensorType("bool", tuple(Dim.of(dim) for dim in shape))


@pytest.mark.parametrize("batch", [1, 3])
def test_mse(batch: int) -> None:
    item = step(mse(floats(N, 4), floats(N, 4)))
    output, target = torch.randn(
        2, batch, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(batch)
    )
    loss = item.module(output=output, target=target)
    assert loss.shape == () == item.typing.output.shape
    torch.testing.assert_close(loss, (output - target).pow(2).sum() / (batch * 12), rtol=0, atol=FLOAT64)


def completed(
    output: Tensor, target: Tensor, marked: list[list[int]], normalize: Literal["none", "patch"]
) -> float:
    """The published loss, token by token: the mean over the marked tokens of the whole batch."""
    losses = []
    for b, row in enumerate(marked):
        for i in row:
            patch = target[b, i].tolist()
            if normalize == "patch":
                mean = sum(patch) / len(patch)
                variance = sum((x - mean) ** 2 for x in patch) / (len(patch) - 1)
                patch = [(x - mean) / sqrt(variance + 1e-6) for x in patch]
            squares = [(y - x) ** 2 for y, x in zip(output[b, i].tolist(), patch, strict=True)]
            losses.append(sum(squares) / len(squares))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("normalize", ["none", "patch"])
def test_mse_over_some_tokens(batch: int, normalize: Literal["none", "patch"]) -> None:
    """By marks, of which each sample has another number, by the indices of the others, and over all."""
    tokens = floats(TOKENS, 4)
    generator = torch.Generator().manual_seed(batch)
    output, target = torch.randn(2, batch, TOKENS, 4, dtype=torch.float64, generator=generator)
    target = 3 * target + 1
    on = torch.rand(batch, TOKENS, generator=generator) < torch.linspace(0.3, 0.9, batch)[:, None]
    seen = torch.rand(batch, TOKENS, generator=generator).argsort(-1)[:, :2]
    everywhere = [list(range(TOKENS))] * batch
    by_marks = [row.nonzero().flatten().tolist() for row in on]
    by_indices = [[i for i in range(TOKENS) if i not in row] for row in seen.tolist()]
    for operator, marked, given in (
        (mse(floats(N, 4), floats(N, 4), on=marks(N), normalize=normalize), by_marks, {"on": on}),
        (
            mse(tokens, tokens, omitted=labels(2, classes=TOKENS), normalize=normalize),
            by_indices,
            {"except_": seen},
        ),
        (mse(tokens, tokens, normalize=normalize), everywhere, {}),
    ):
        loss = step(operator).module(output=output, target=target, **given)
        assert loss.shape == ()
        assert abs(float(loss) - completed(output, target, marked, normalize)) < FLOAT64


def test_over_no_token_the_loss_is_zero_and_moves_nothing() -> None:
    item = step(mse(floats(TOKENS, 4), floats(TOKENS, 4), on=marks(TOKENS)))
    output = torch.randn(3, TOKENS, 4, requires_grad=True)
    loss = item.module(
        output=output, target=torch.zeros(3, TOKENS, 4), on=torch.zeros(3, TOKENS, dtype=torch.bool)
    )
    loss.backward()
    assert float(loss.detach()) == 0
    assert output.grad is not None and not output.grad.any()


def test_a_patch_of_one_colour_has_a_finite_loss() -> None:
    item = step(mse(floats(TOKENS, 4), floats(TOKENS, 4), normalize="patch"))
    assert float(item.module(output=torch.ones(2, TOKENS, 4), target=torch.full((2, TOKENS, 4), 0.7))) == 1


def test_tensors_come_by_argument() -> None:
    assert list(ports(mse(floats(3), floats(3)))) == ["output", "target"]


@pytest.mark.parametrize(
    ("code", "operator"),
    [
        ("E0441", mse(floats(3), floats(4))),
        ("E0441", mse(floats(3, 4), floats(4))),
        ("E0441", mse(labels(), labels())),
        ("E0305", mse(floats(3, 4, 4), floats(3, 4, 4), on=marks(3))),
        ("E0305", mse(floats(4), floats(4), omitted=labels(2))),
        ("E0305", mse(floats(4), floats(4), normalize="patch")),
        ("E0305", mse(floats(7, 4), floats(7, 4), on=marks(7), omitted=labels(2))),
        ("E0443", mse(floats(7, 4), floats(7, 4), on=marks(6))),
        ("E0443", mse(floats(7, 4), floats(7, 4), on=labels(7))),
        ("E0444", mse(floats(6, 4), floats(6, 4), omitted=labels(2))),
        ("E0444", mse(floats(N, 4), floats(N, 4), omitted=labels(2))),
        ("E0444", mse(floats(7, 4), floats(7, 4), omitted=marks(7))),
        ("E0447", mse(floats(7, 4), floats(7, 4), omitted=labels(7))),
        ("E0448", mse(floats(7, 1), floats(7, 1), normalize="patch")),
        ("E0402", mse(floats(7, N), floats(7, N), normalize="patch")),
    ],
)
def test_mistakes(code: str, operator: Operator) -> None:
    with pytest.raises(Mistake) as found:
        operator.infer()
    assert found.value.code == code


def test_in_half_precision_it_is_the_loss_of_float32() -> None:
    item = step(mse(floats(TOKENS, 4), floats(TOKENS, 4), normalize="patch"))
    output, target = torch.randn(2, 3, TOKENS, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    loss = item.module(output=output, target=target)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, item.module(output=output.float(), target=target.float()))
