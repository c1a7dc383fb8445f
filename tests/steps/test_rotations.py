"""`rotations`: each turn pixel by pixel, in torch and in ONNX, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from crate_dsl.compiler.operators import LearnedInverse, Mistake, NoInverse
from crate_dsl.compiler.steps.rotations.operator import Rotations
from crate_dsl.compiler.types import Dim, Symbol, TensorType, floats
from tests.steps.harness import step

CHANNELS, SIZE = 2, 5
N = Dim.symbolic(Symbol("n", 64))


@pytest.mark.parametrize("batch", [1, 3])
def test_each_turn_is_a_quarter_more(batch: int) -> None:
    item = step(Rotations(), floats(CHANNELS, SIZE, SIZE))
    x = torch.randn(batch, CHANNELS, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    turned = item.module(x)
    assert turned.shape[1:] == (4, CHANNELS, SIZE, SIZE) == tuple(d.static for d in item.typing.output.shape)
    wanted = x
    for quarters in range(4):
        assert torch.equal(turned[:, quarters], wanted)
        # (T x)_ij = x_{j, S - 1 - i}: the right-hand column becomes the top row.
        after = torch.empty_like(wanted)
        for i in range(SIZE):
            for j in range(SIZE):
                after[..., i, j] = wanted[..., j, SIZE - 1 - i]
        wanted = after
    assert torch.equal(wanted, x), "four quarters are a whole"
    (exported,) = item.onnx(x)
    assert np.array_equal(exported, turned.numpy())


def test_exports_with_a_dynamic_batch() -> None:
    module = step(Rotations(), floats(CHANNELS, SIZE, SIZE)).module
    x = torch.randn(2, CHANNELS, SIZE, SIZE)
    program = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    assert torch.equal(program.module()(torch.cat([x, x])), module(torch.cat([x, x])))


def test_it_has_no_inverse() -> None:
    assert isinstance(Rotations().inverse(LearnedInverse(), floats(CHANNELS, SIZE, SIZE)), NoInverse)


@pytest.mark.parametrize(
    ("code", "given"),
    [
        ("E0478", floats(3, 8, 9)),
        ("E0478", floats(3, N, 9)),
        ("E0401", floats(8, 8)),
        ("E0402", floats(3, N, N)),
    ],
)
def test_mistakes(code: str, given: TensorType) -> None:
    with pytest.raises(Mistake) as found:
        Rotations().infer(given)
    assert found.value.code == code
