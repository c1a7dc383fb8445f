"""`position` and `sinusoid`: tables against their formulas, resizing against torch's, in torch and ONNX."""

from __future__ import annotations

from math import cos, pi, sin

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from crate_dsl.compiler.operators import Constant, Inverse, Mistake, Normal, TiedInverse
from crate_dsl.compiler.steps.position.operator import Position, Sinusoid
from crate_dsl.compiler.steps.position.tables import cubic
from crate_dsl.compiler.types import Dim, Grid, Layout, Segment, Symbol, TensorType, floats
from tests.steps.harness import Step, step

#: Fixed tables are kept in float32: half a unit in the last place of a number of size one.
FLOAT32 = 1e-7
#: Float32 products of some ten numbers of size one, against float64.
PRODUCTS = 2e-6
#: Float64 sums of a few numbers, in two orders.
FLOAT64 = 1e-14
#: Rounding of float32 in an addition undone.
SINGLE = 1e-6

WIDTH = 8
N = Dim.symbolic(Symbol("n", 16))
CLASS, EXTRA = Segment("class_token", Dim.of(1)), Segment("extra", Dim.of(2))


def typed(*segments: Segment, width: int = WIDTH) -> TensorType:
    layout = Layout(segments)
    return floats(layout.length, width, layout=layout)


def patches(rows: int, columns: int) -> Segment:
    return Segment("patches", Dim.of(rows * columns), Grid(rows, columns, 4, 3))


def sample(batch: int, tokens: int) -> Tensor:
    generator = torch.Generator().manual_seed(10 * batch + tokens)
    return torch.randn(batch, tokens, WIDTH, dtype=torch.float64, generator=generator)


def agree(item: Step, z: Tensor, positions: Tensor, tolerance: float) -> None:
    """Torch in float64 and ONNX in float32 both add these positions."""
    wanted = z + positions
    (onnx,) = item.onnx(z.float())
    np.testing.assert_allclose(onnx, wanted.float().numpy(), atol=PRODUCTS)
    torch.testing.assert_close(item.module.double()(z), wanted, rtol=0, atol=tolerance)
    item.module.float()


# ------------------------------------------------------------------ learned


@pytest.mark.parametrize("batch", [1, 3])
def test_a_table_over_all_tokens(batch: int) -> None:
    item = step(Position(table="learned"), typed(CLASS, patches(2, 3)))
    assert item.typing.slots["table"].shape == (7, WIDTH)
    assert item.typing.slots["table"].initial == Normal(std=0.02)
    agree(item, sample(batch, 7), item.module.table.detach().double(), FLOAT64)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("n", [1, 5, 16])
def test_a_table_is_cut_to_the_length(batch: int, n: int) -> None:
    item = step(Position(table="learned", length=20, initial=Constant(value=1.0)), floats(N + 1, WIDTH))
    assert item.typing.slots["table"].shape == (20, WIDTH)
    assert item.typing.slots["table"].initial == Constant(value=1.0)
    agree(item, sample(batch, n + 1), item.module.table.detach().double()[: n + 1], FLOAT64)


def test_a_longer_table_of_known_tokens() -> None:
    item = step(Position(table="learned", length=9), floats(7, WIDTH))
    agree(item, sample(2, 7), item.module.table.detach().double()[:7], FLOAT64)


@pytest.mark.parametrize("old", [3, 5, 14])
@pytest.mark.parametrize("new", [1, 2, 5, 7, 20])
def test_the_matrix_is_torchs_interpolation(old: int, new: int) -> None:
    wanted = F.interpolate(
        torch.eye(old, dtype=torch.float64)[:, None, :, None].expand(-1, -1, -1, old),
        size=(new, old),
        mode="bicubic",
        align_corners=False,
    )
    np.testing.assert_allclose(cubic(old, new), wanted[:, 0, :, 0].T.numpy(), atol=FLOAT64)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("new", [(2, 7), (6, 3), (3, 4)])
@pytest.mark.parametrize("around", [((), ()), ((CLASS,), ()), ((CLASS,), (EXTRA,))])
def test_a_table_for_another_grid(
    batch: int, new: tuple[int, int], around: tuple[tuple[Segment, ...], tuple[Segment, ...]]
) -> None:
    old = (3, 4)
    before, after = (sum(segment.length.offset for segment in side) for side in around)
    item = step(
        Position(table="learned", grid=old, resize="bicubic"), typed(*around[0], patches(*new), *around[1])
    )
    table = item.module.table.detach().double()
    assert table.shape == (before + 12 + after, WIDTH)
    grid = table[before : before + 12].reshape(1, *old, WIDTH).permute(0, 3, 1, 2)
    resized = F.interpolate(grid, size=new, mode="bicubic", align_corners=False)[0].flatten(1).T
    positions = torch.cat([table[:before], resized, table[before + 12 :]])
    agree(item, sample(batch, len(positions)), positions, PRODUCTS if new != old else FLOAT64)


def test_a_table_for_the_same_grid_needs_no_resize() -> None:
    item = step(Position(table="learned", grid=(3, 4)), typed(CLASS, patches(3, 4)))
    agree(item, sample(2, 13), item.module.table.detach().double(), FLOAT64)


# ------------------------------------------------------------------ sines and cosines


def sines(place: int, width: int, temperature: float) -> list[float]:
    angles = [place / temperature ** (2 * j / width) for j in range(width // 2)]
    return [sin(angle) for angle in angles] + [cos(angle) for angle in angles]


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("temperature", [10000.0, 50.0])
def test_grids_have_columns_then_rows(batch: int, temperature: float) -> None:
    item = step(Position(table="sincos", temperature=temperature), typed(CLASS, patches(2, 3), EXTRA))
    assert not item.typing.slots and not item.module.state_dict()
    positions = [[0.0] * WIDTH]
    positions += [
        sines(column, WIDTH // 2, temperature) + sines(row, WIDTH // 2, temperature)
        for row in range(2)
        for column in range(3)
    ]
    positions += [[0.0] * WIDTH] * 2
    agree(item, sample(batch, 9), torch.tensor(positions, dtype=torch.float64), FLOAT32)


@pytest.mark.parametrize(
    "given", [floats(N, WIDTH), floats(5, WIDTH), typed(CLASS, Segment("tokens", N + -1))]
)
@pytest.mark.parametrize("length", [None, 40])
def test_sequences_have_their_places(given: TensorType, length: int | None) -> None:
    item = step(Position(table="sincos", length=length), given)
    for n in (2, 5, 16) if given.shape[0].static is None else (5,):
        positions = [sines(place, WIDTH, 10000.0) for place in range(n)]
        agree(item, sample(3, n), torch.tensor(positions, dtype=torch.float64), FLOAT32)


# ------------------------------------------------------------------ a learned map of sines and cosines


def features(place: int, count: int, temperature: float) -> list[float]:
    """XCiT's `PositionalEncodingFourier` of one axis: sine and cosine in turn."""
    found = []
    for i in range(32):
        angle = 2 * pi * (place + 1) / count / temperature ** (2 * (i // 2) / 32)
        found.append(cos(angle) if i % 2 else sin(angle))
    return found


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("temperature", [10000.0, 50.0])
def test_fourier_features_are_mapped(batch: int, temperature: float) -> None:
    item = step(Position(table="fourier", temperature=temperature), typed(CLASS, patches(2, 3), EXTRA))
    assert {name: slot.shape for name, slot in item.typing.slots.items()} == {
        "projection": (WIDTH, 64),
        "bias": (WIDTH,),
    }
    assert set(item.module.state_dict()) == {"projection", "bias"}
    given = [
        features(row, 2, temperature) + features(column, 3, temperature)
        for row in range(2)
        for column in range(3)
    ]
    weights = {name: value.detach().double() for name, value in item.module.named_parameters()}
    mapped = torch.tensor(given, dtype=torch.float64) @ weights["projection"].T + weights["bias"]
    positions = torch.cat([torch.zeros(1, WIDTH), mapped, torch.zeros(2, WIDTH)])
    # 64 features, kept in float32, times weights of size 0.3.
    agree(item, sample(batch, 9), positions, 64 * FLOAT32)


# ------------------------------------------------------------------ of a number


@pytest.mark.parametrize("shape", [(), (5,), (2, 3)])
@pytest.mark.parametrize("operator", [Sinusoid(dim=10), Sinusoid(dim=2), Sinusoid(dim=8, temperature=50)])
def test_a_number_is_embedded(operator: Sinusoid, shape: tuple[int, ...]) -> None:
    item = step(operator, floats(*shape))
    assert item.typing.output == floats(*shape, operator.dim)
    assert not item.module.state_dict()
    t = 9 * torch.randn(3, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    wanted = torch.tensor([sines(float(x), operator.dim, operator.temperature) for x in t.flatten()])
    wanted = wanted.reshape(*t.shape, operator.dim).double()
    # Frequencies are kept in float32, times a number of size 30.
    torch.testing.assert_close(item.module(t.float()).double(), wanted, rtol=0, atol=30 * FLOAT32)
    (onnx,) = item.onnx(t.float())
    np.testing.assert_allclose(onnx, wanted.numpy(), atol=30 * FLOAT32)


def test_a_whole_number_is_embedded() -> None:
    item = step(Sinusoid(dim=6), TensorType("index", (), classes=1000))
    t = torch.tensor([0, 7, 999])
    wanted = np.array([sines(float(x), 6, 10000.0) for x in t])
    np.testing.assert_allclose(item.module(t).numpy(), wanted, atol=1000 * FLOAT32)
    (onnx,) = item.onnx(t)
    np.testing.assert_allclose(onnx, wanted, atol=1000 * FLOAT32)


# ------------------------------------------------------------------ costs, export, mistakes


def test_costs() -> None:
    assert Position(table="learned").infer(floats(7, WIDTH)).flops == 7 * WIDTH
    resized = Position(table="learned", grid=(3, 4), resize="bicubic").infer(typed(patches(2, 7)))
    # (2 x 3) (3 x 4 d), then for both rows (7 x 4) (4 x d): two operations for each product.
    assert resized.flops == 14 * WIDTH + 2 * (2 * 3 * 4 * WIDTH) + 2 * (2 * 7 * 4 * WIDTH)


@pytest.mark.parametrize(
    ("operator", "given", "lengths"),
    [
        (Position(table="learned", length=20), floats(N, WIDTH), (1, 13)),
        (Position(table="sincos"), floats(N, WIDTH), (1, 13)),
        (Position(table="learned", grid=(3, 4), resize="bicubic"), typed(CLASS, patches(2, 3)), (7,)),
    ],
)
def test_exports_with_dynamic_batch_and_length(
    operator: Position, given: TensorType, lengths: tuple[int, ...]
) -> None:
    module = step(operator, given).module
    example = sample(2, 8 if len(lengths) > 1 else lengths[0]).float()
    dynamic = {0: torch.export.Dim("batch")}
    if len(lengths) > 1:
        dynamic[1] = torch.export.Dim("n", min=1, max=16)
    program = torch.export.export(module, (example,), dynamic_shapes=(dynamic,))
    for length in lengths:
        z = sample(5, length).float()
        torch.testing.assert_close(program.module()(z), module(z))


@pytest.mark.parametrize(
    ("code", "at", "operator", "given"),
    [
        ("E0401", None, Position(table="learned"), floats(WIDTH)),
        ("E0322", "table", Position(table="learned"), floats(N, WIDTH)),
        ("E0321", "length", Position(table="learned", length=15), floats(N, WIDTH)),
        ("E0321", "length", Position(table="sincos", length=15), floats(N, WIDTH)),
        ("E0321", "length", Position(table="learned", length=6), floats(7, WIDTH)),
        ("E0432", "grid", Position(table="learned", grid=(3, 4)), typed(patches(4, 3))),
        ("E0433", "grid", Position(table="learned", grid=(3, 4)), floats(12, WIDTH)),
        ("E0438", None, Position(table="sincos"), floats(7, 9)),
        ("E0438", None, Position(table="sincos"), typed(patches(2, 3), width=10)),
        ("E0305", "resize", Position(table="learned", resize="bicubic"), typed(patches(2, 3))),
        ("E0305", "length", Position(table="learned", grid=(2, 3), length=6), typed(patches(2, 3))),
        ("E0305", "length", Position(table="sincos", length=6), typed(patches(2, 3))),
        ("E0305", "grid", Position(table="sincos", grid=(2, 3)), typed(patches(2, 3))),
        ("E0305", "initial", Position(table="sincos", initial=Normal(std=1)), floats(7, WIDTH)),
        ("E0305", "temperature", Position(table="learned", temperature=50), floats(7, WIDTH)),
        ("E0305", "grid", Position(table="fourier", grid=(2, 3)), typed(patches(2, 3))),
        ("E0305", "length", Position(table="fourier", length=6), typed(patches(2, 3))),
        ("E0433", None, Position(table="fourier"), floats(6, WIDTH)),
        ("E0901", None, Position(table="fourier"), typed(patches(2, 3), Segment("text", N))),
        ("E0483", "dim", Sinusoid(dim=9), floats()),
        ("E0401", None, Sinusoid(dim=8), TensorType("bool", ())),
        ("E0901", None, Position(table="sincos"), typed(patches(2, 3), Segment("text", N))),
    ],
)
def test_mistakes(code: str, at: str | None, operator: Position | Sinusoid, given: TensorType) -> None:
    with pytest.raises(Mistake) as found:
        operator.infer(given)
    assert (found.value.code, found.value.at) == (code, at)


@pytest.mark.parametrize(
    ("operator", "given"),
    [
        (Position(table="learned"), floats(7, WIDTH)),
        (Position(table="sincos"), typed(patches(2, 3))),
        (Position(table="fourier"), typed(CLASS, patches(2, 3))),
        (Position(table="learned", grid=(2, 2), resize="bicubic"), typed(patches(2, 3))),
    ],
)
def test_what_was_added_is_subtracted(operator: Position, given: TensorType) -> None:
    """The inverse reads the same table, its own or (as `inverse(stage)` arranges) the other step's."""
    inverse = operator.inverse(TiedInverse(), given)
    assert isinstance(inverse, Inverse)
    there, back = step(operator, given), step(inverse.operator, given)
    back.module.load_state_dict(there.module.state_dict())
    z = torch.randn(2, *(dim.bound for dim in given.shape))
    added = there.module(z).detach()
    assert (back.module(added) - z).abs().max() < SINGLE
    (exported,) = back.onnx(added)
    assert np.abs(exported - z.numpy()).max() < SINGLE
    if inverse.shared:
        shared = {mine: getattr(there.module, theirs) for mine, theirs in inverse.shared.items()}
        assert torch.equal(back.module(added, **shared), back.module(added))
