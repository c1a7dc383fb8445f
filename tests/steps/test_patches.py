"""`patchify` and `unpatchify`: against slices of the picture, against each other, and in ONNX, all bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from crate_dsl.compiler.operators import Inverse, LearnedInverse, Mistake, NoInverse
from crate_dsl.compiler.steps.patches.operator import Patchify, Unpatchify
from crate_dsl.compiler.types import Dim, Grid, Layout, Segment, Symbol, floats
from tests.steps.harness import step

CHANNELS, HEIGHT, WIDTH, PATCH = 3, 8, 12, 4
IMAGE = floats(CHANNELS, HEIGHT, WIDTH)
ORDERS = ["pqc", "cpq"]


def pictures(batch: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(
        batch, CHANNELS, HEIGHT, WIDTH, dtype=dtype, generator=torch.Generator().manual_seed(batch)
    )


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("batch", [1, 3])
def test_each_token_is_one_patch(order: str, batch: int) -> None:
    x = pictures(batch, torch.float64)
    tokens = step(Patchify(patch=PATCH, order=order), IMAGE).module.double()(x)
    patches = [
        x[:, :, i : i + PATCH, j : j + PATCH].permute(0, 2, 3, 1)
        if order == "pqc"
        else x[:, :, i : i + PATCH, j : j + PATCH]
        for i in range(0, HEIGHT, PATCH)
        for j in range(0, WIDTH, PATCH)
    ]
    assert torch.equal(tokens, torch.stack([patch.flatten(1) for patch in patches], 1))


def test_cpq_is_the_order_of_convolutions() -> None:
    x = pictures(2)
    tokens = step(Patchify(patch=PATCH, order="cpq"), IMAGE).module(x)
    assert torch.equal(tokens, F.unfold(x, PATCH, stride=PATCH).transpose(1, 2))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("batch", [1, 3])
def test_there_and_back_bit_for_bit(order: str, batch: int) -> None:
    x = pictures(batch)
    there = step(Patchify(patch=PATCH, order=order), IMAGE)
    back = step(Unpatchify(), there.typing.output)
    assert back.typing.output == IMAGE
    assert torch.equal(back.module(there.module(x)), x)
    (tokens,) = there.onnx(x)
    assert np.array_equal(tokens, there.module(x).numpy())
    (rebuilt,) = back.onnx(torch.from_numpy(tokens))
    assert np.array_equal(rebuilt, x.numpy())


def test_the_tokens_know_their_grid() -> None:
    (tokens,) = Patchify(patch=PATCH, order="cpq").infer(IMAGE).outputs
    assert str(tokens) == "float[6, 48]"
    assert tokens.layout == Layout((Segment("patches", Dim.of(6), Grid(2, 3, 4, 3, "cpq")),))


def test_each_undoes_the_other() -> None:
    there = Patchify(patch=PATCH, order="cpq")
    assert there.inverse(LearnedInverse()) == Inverse(Unpatchify())
    assert Unpatchify().inverse(LearnedInverse(), there.infer(IMAGE).output) == Inverse(there)
    assert isinstance(Unpatchify().inverse(LearnedInverse()), NoInverse)


def test_exports_with_a_dynamic_batch() -> None:
    there = step(Patchify(patch=PATCH), IMAGE)
    net = torch.nn.Sequential(there.module, step(Unpatchify(), there.typing.output).module)
    program = torch.export.export(net, (pictures(2),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    assert torch.equal(program.module()(pictures(5)), pictures(5))


def test_sizes_that_do_not_divide() -> None:
    with pytest.raises(Mistake) as found:
        Patchify(patch=5).infer(floats(3, 28, 24))
    mistake = found.value
    assert mistake.code == "E0320" and mistake.at == "patch"
    assert mistake.message == "a picture of 28 x 24 does not divide into patches of 5 x 5"
    assert mistake.help == ("patch sizes that divide both: 1, 2, 4",)


def tokens_with(*segments: Segment, width: int = 48):  # type: ignore[no-untyped-def]
    layout = Layout(segments)
    return floats(layout.length, width, layout=layout)


PATCHES = Segment("patches", Dim.of(6), Grid(2, 3, 4, 3))


@pytest.mark.parametrize(
    ("code", "operator", "given"),
    [
        ("E0401", Patchify(patch=4), floats(8, 12)),
        ("E0402", Patchify(patch=4), floats(3, Dim.symbolic(Symbol("n", 8)), 12)),
        ("E0402", Patchify(patch=4), floats(3, 8, Dim.symbolic(Symbol("n", 8)))),
        ("E0401", Unpatchify(), floats(48)),
        ("E0433", Unpatchify(), floats(6, 48)),
        ("E0433", Unpatchify(), tokens_with(Segment("queries", Dim.of(6)))),
        ("E0434", Unpatchify(), tokens_with(Segment("class_token", Dim.of(1)), PATCHES)),
        ("E0435", Unpatchify(), tokens_with(PATCHES, width=50)),
    ],
)
def test_mistakes(code: str, operator: Patchify | Unpatchify, given) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(Mistake) as found:
        operator.infer(given)
    assert found.value.code == code
