"""Completion's steps against loops over tokens, bit for bit, in torch and ONNX; what they do to the layout."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from crate_dsl.compiler.operators import (
    Learned,
    LearnedInverse,
    Mistake,
    NoInverse,
    Operator,
    Port,
    Scalar,
    Tokens,
    Weight,
)
from crate_dsl.compiler.steps.classic.operator import Linear
from crate_dsl.compiler.steps.hidden.operator import Gather, Mask, Scatter
from crate_dsl.compiler.steps.patches.operator import Unpatchify
from crate_dsl.compiler.steps.position.operator import Position
from crate_dsl.compiler.steps.tokens.operator import Drop, Prepend
from crate_dsl.compiler.types import Dim, Grid, Layout, Segment, Symbol, TensorType, floats
from tests.steps.harness import Step, step

WIDTH, PLACES, TAKEN = 5, 6, 4
N = Dim.symbolic(Symbol("n", 32))
K = Dim.symbolic(Symbol("k", PLACES))
PATCHES = Segment("patches", Dim.of(PLACES), Grid(2, 3, 4, 3))
CLASS = Weight("class_token", floats(WIDTH))
#: What `fill` may be, and what it is for each of three samples.
FILLS: dict[str, tuple[Scalar, Tensor | None]] = {
    "number": (0.5, None),
    "learned": (Learned(0.25), None),
    "vector": (Learned(0.25, (WIDTH,)), None),
    "learn": (Weight("mask_token", floats(WIDTH)), torch.linspace(-2, 3, WIDTH)),
    "port": (Port(floats()), torch.tensor([1.5, -2.5, 3.5])),
}


def marks(*shape: int | Dim) -> Port:
    return Port(TensorType("bool", tuple(Dim.of(dim) for dim in shape)))


def places(*shape: int | Dim, of: int = PLACES) -> Port:
    return Port(TensorType("index", tuple(Dim.of(dim) for dim in shape), of))


def typed(*segments: Segment, width: int = WIDTH) -> TensorType:
    layout = Layout(segments)
    return floats(layout.length, width, layout=layout)


def sample(batch: int, tokens: int) -> Tensor:
    return torch.randn(batch, tokens, WIDTH, generator=torch.Generator().manual_seed(10 * batch + tokens))


def chosen(batch: int, taken: int = TAKEN) -> Tensor:
    """Distinct places in random order, for each sample others."""
    scores = torch.rand(batch, PLACES, generator=torch.Generator().manual_seed(batch))
    return scores.argsort(-1)[:, :taken]


def both(item: Step, z: Tensor, **named: Tensor) -> Tensor:
    """The step in torch, after ONNX has given the same bits."""
    result: Tensor = item.module(z, **named)
    (onnx,) = item.onnx(z, **named)
    assert np.array_equal(onnx, result.detach().numpy())
    return result.detach()


def filling(item: Step, given: Tensor | None, batch: int) -> Tensor:
    """What the step fills with, for each sample: (B, d)."""
    fill = item.operator.fill  # type: ignore[attr-defined]
    if isinstance(fill, Port):
        assert given is not None
        return given[:batch, None].expand(batch, WIDTH)
    value = item.module.fill.detach() if isinstance(fill, Learned) else fill if given is None else given
    return torch.as_tensor(value).expand(batch, WIDTH)


# ------------------------------------------------------------------ against loops


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("count", "size"), [(Dim.of(7), 7), (N, 1), (N, 9)])
def test_mask(fill: str, batch: int, count: Dim, size: int) -> None:
    value, given = FILLS[fill]
    item = step(Mask(hidden=marks(count), fill=value), floats(count, WIDTH))
    z = sample(batch, size)
    hidden = torch.rand(batch, size, generator=torch.Generator().manual_seed(size)) < 0.5
    named = {} if given is None else {"fill": given[:batch] if fill == "port" else given}
    wanted, instead = z.clone(), filling(item, given, batch)
    for b, i in hidden.nonzero().tolist():
        wanted[b, i] = instead[b]
    assert torch.equal(both(item, z, hidden=hidden, **named), wanted)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("count", "taken"), [(Dim.of(TAKEN), TAKEN), (K, 1), (K, PLACES)])
def test_gather(batch: int, count: Dim, taken: int) -> None:
    item = step(Gather(visible=places(count)), typed(PATCHES))
    z, visible = sample(batch, PLACES), chosen(batch, taken)
    wanted = torch.stack([torch.stack([z[b, i] for i in row]) for b, row in enumerate(visible.tolist())])
    assert torch.equal(both(item, z, visible=visible), wanted)


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("count", "taken"), [(Dim.of(TAKEN), TAKEN), (K, 1), (K, PLACES)])
def test_scatter(fill: str, batch: int, count: Dim, taken: int) -> None:
    value, given = FILLS[fill]
    item = step(Scatter(visible=places(count), fill=value), floats(count, WIDTH))
    z, visible = sample(batch, taken), chosen(batch, taken)
    named = {} if given is None else {"fill": given[:batch] if fill == "port" else given}
    wanted = filling(item, given, batch)[:, None].repeat(1, PLACES, 1)
    for b, row in enumerate(visible.tolist()):
        for j, i in enumerate(row):
            wanted[b, i] = z[b, j]
    assert torch.equal(both(item, z, visible=visible, **named), wanted)


@pytest.mark.parametrize("batch", [1, 3])
def test_what_is_gathered_and_scattered_is_what_was_not_masked(batch: int) -> None:
    """scatter(gather(z, v), v) = mask(z, not v): the tokens taken come back bit for bit, the others are filled."""
    gather = step(Gather(visible=places(TAKEN)), typed(PATCHES))
    scatter = step(Scatter(visible=places(TAKEN), fill=CLASS), gather.typing.output)
    mask = step(Mask(hidden=marks(PLACES), fill=CLASS), typed(PATCHES))
    z, visible, fill = sample(batch, PLACES), chosen(batch), torch.linspace(-2, 3, WIDTH)
    hidden = torch.ones(batch, PLACES, dtype=torch.bool).scatter(1, visible, value=False)
    back = scatter.module(gather.module(z, visible=visible), visible=visible, fill=fill)
    assert torch.equal(back, mask.module(z, hidden=hidden, fill=fill))
    assert torch.equal(back[~hidden], z[~hidden])


def test_gradients_go_to_what_is_shown_and_to_the_filling() -> None:
    z = sample(2, PLACES).requires_grad_()
    fill = torch.zeros(WIDTH, requires_grad=True)
    hidden = torch.tensor([[True, False, True, False, False, True], [True] + 5 * [False]])
    step(Mask(hidden=marks(PLACES), fill=CLASS), typed(PATCHES)).module(
        z, hidden=hidden, fill=fill
    ).sum().backward()
    assert z.grad is not None and torch.equal(z.grad, (~hidden[..., None]).float().expand_as(z))
    assert fill.grad is not None and torch.equal(fill.grad, torch.full((WIDTH,), 4.0))


def test_half_precision_in_training() -> None:
    """Under autocast a linear step before gives bfloat16, and the filling is a float32 weight."""
    fill = torch.linspace(-2, 3, WIDTH)
    z, visible = sample(2, TAKEN).bfloat16(), chosen(2)
    scatter = step(Scatter(visible=places(TAKEN), fill=CLASS), floats(TAKEN, WIDTH))
    with torch.autocast("cpu", torch.bfloat16):
        filled = scatter.module(z, visible=visible, fill=fill)
    assert filled.dtype == torch.float32
    assert torch.equal(torch.take_along_dim(filled, visible[..., None], 1), z.float())


# ------------------------------------------------------------------ the layout


def test_the_segment_comes_back_with_its_grid() -> None:
    """Also when another segment was put before and dropped, and at another width."""
    tokens = typed(PATCHES)
    chain: list[tuple[Operator, str]] = [
        (Gather(visible=places(TAKEN)), "patches:4/6(2x3)"),
        (Prepend(tokens=CLASS), "class_token:1 patches:4/6(2x3)"),
        (Linear(dim=8), "class_token:1 patches:4/6(2x3)"),
        (Drop(tokens=Tokens("class_token")), "patches:4/6(2x3)"),
        (Scatter(visible=places(TAKEN)), "patches:6(2x3)"),
    ]
    for operator, layout in chain:
        tokens = operator.infer(tokens).output
        assert str(tokens.layout) == layout
    assert tokens.layout == Layout((PATCHES,)) and str(tokens) == "float[6, 8]"
    assert (
        Position(table="sincos").infer(tokens).facts
        == Position(table="sincos").infer(typed(PATCHES, width=8)).facts
    )


def test_tokens_taken_twice_come_back_in_two_steps() -> None:
    once = Gather(visible=places(TAKEN)).infer(typed(PATCHES)).output
    twice = Gather(visible=places(2, of=TAKEN)).infer(once).output
    assert str(twice.layout) == "patches:2/4/6(2x3)"
    back = Scatter(visible=places(2, of=TAKEN)).infer(twice).output
    assert back.layout == once.layout
    assert Scatter(visible=places(TAKEN)).infer(back).output.layout == typed(PATCHES).layout


def test_tokens_that_were_not_gathered_get_places_without_a_grid() -> None:
    assert str(Scatter(visible=places(TAKEN)).infer(floats(TAKEN, WIDTH)).output.layout) == "tokens:6"
    assert str(Scatter(visible=places(K)).infer(floats(K, WIDTH)).output) == "float[6, 5]"


# ------------------------------------------------------------------ export, mistakes


class Chain(torch.nn.Module):
    """Gather, scatter, mask: everything that could freeze a batch or a length."""

    def __init__(self) -> None:
        super().__init__()
        gather = step(Gather(visible=places(K)), typed(PATCHES))
        scatter = step(Scatter(visible=places(K), fill=Learned(0.5, (WIDTH,))), gather.typing.output)
        mask = step(Mask(hidden=marks(PLACES), fill=-1.0), scatter.typing.output)
        self.gather, self.scatter, self.mask = gather.module, scatter.module, mask.module

    def forward(self, z: Tensor, visible: Tensor, hidden: Tensor) -> Tensor:
        filled: Tensor = self.scatter(self.gather(z, visible=visible), visible=visible)
        masked: Tensor = self.mask(filled, hidden=hidden)
        return masked


def test_exports_with_dynamic_batch_and_length() -> None:
    def given(batch: int, taken: int) -> tuple[Tensor, Tensor, Tensor]:
        return sample(batch, PLACES), chosen(batch, taken), sample(batch, PLACES)[..., 0] > 0

    net = Chain()
    # Taking all tokens is a case of its own for torch's tracing; exported files are not traced.
    batch, k = torch.export.Dim("batch"), torch.export.Dim("k", min=1, max=PLACES - 1)
    program = torch.export.export(net, given(2, 3), dynamic_shapes=({0: batch}, {0: batch, 1: k}, {0: batch}))
    for sizes in ((1, 1), (5, PLACES - 1)):
        assert torch.equal(program.module()(*given(*sizes)), net(*given(*sizes)))


GATHERED = Segment("patches", Dim.of(TAKEN), whole=PATCHES)


@pytest.mark.parametrize(
    ("code", "operator", "given"),
    [
        ("E0401", Mask(hidden=marks(3)), floats(3, 4, 4)),
        ("E0443", Mask(hidden=marks(PLACES)), floats(PLACES + 1, WIDTH)),
        ("E0443", Mask(hidden=marks(N)), floats(PLACES, WIDTH)),
        ("E0443", Mask(hidden=Port(floats(PLACES))), floats(PLACES, WIDTH)),
        ("E0314", Mask(hidden=marks(PLACES), fill=Weight("wide", floats(WIDTH + 1))), floats(PLACES, WIDTH)),
        ("E0410", Mask(hidden=marks(PLACES), fill=Port(floats(WIDTH))), floats(PLACES, WIDTH)),
        ("E0401", Gather(visible=places(TAKEN)), floats(PLACES)),
        ("E0444", Gather(visible=places(TAKEN, of=7)), typed(PATCHES)),
        ("E0444", Gather(visible=places(2, 2)), typed(PATCHES)),
        ("E0444", Gather(visible=marks(PLACES)), typed(PATCHES)),
        ("E0444", Gather(visible=places(TAKEN, of=32)), floats(N, WIDTH)),
        ("E0445", Gather(visible=places(TAKEN, of=7)), typed(Segment("class_token", Dim.of(1)), PATCHES)),
        ("E0401", Scatter(visible=places(TAKEN)), floats(TAKEN)),
        ("E0445", Scatter(visible=places(5)), typed(Segment("class_token", Dim.of(1)), GATHERED)),
        ("E0446", Scatter(visible=places(5)), typed(GATHERED)),
        ("E0446", Scatter(visible=places(TAKEN, of=7)), typed(GATHERED)),
        ("E0446", Scatter(visible=marks(TAKEN)), typed(GATHERED)),
        ("E0314", Scatter(visible=places(TAKEN), fill=Learned(0.0, (2,))), typed(GATHERED)),
        ("E0433", Unpatchify(), typed(GATHERED, width=48)),
        ("E0449", Position(table="learned"), typed(GATHERED)),
        ("E0449", Position(table="sincos"), typed(Segment("class_token", Dim.of(1)), GATHERED)),
    ],
)
def test_mistakes(code: str, operator: Operator, given: TensorType) -> None:
    with pytest.raises(Mistake) as found:
        operator.infer(given)
    assert found.value.code == code


@pytest.mark.parametrize(
    ("operator", "given", "message"),
    [
        (
            Gather(visible=places(TAKEN, of=7)),
            typed(PATCHES),
            "indices of these 6 tokens are index(6)[k], but `gather` is given index(7)[4]",
        ),
        (
            Scatter(visible=places(TAKEN, of=7)),
            typed(GATHERED),
            "these tokens were taken from 6 places, but are to be put into 7",
        ),
    ],
)
def test_both_numbers_are_named(operator: Operator, given: TensorType, message: str) -> None:
    with pytest.raises(Mistake) as found:
        operator.infer(given)
    assert found.value.message == message


def test_what_is_lost_has_no_inverse() -> None:
    for operator in (
        Mask(hidden=marks(PLACES)),
        Gather(visible=places(TAKEN)),
        Scatter(visible=places(TAKEN)),
    ):
        assert isinstance(operator.inverse(LearnedInverse(), typed(PATCHES)), NoInverse)
