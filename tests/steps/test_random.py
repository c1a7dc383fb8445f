"""Random steps: what they give is what the drawn numbers say, and the numbers are drawn as they should be.

Shares are held to five standard deviations of what is drawn: with a fixed seed a test is passed or not for ever, and
another seed passes it but once in a million.
"""

from __future__ import annotations

from collections.abc import Callable
from math import log, sqrt

import pytest
import torch
from torch import Tensor

from crate_dsl.compiler.operators import LearnedInverse, Mistake, NoInverse, Operator, Port
from crate_dsl.compiler.steps.random.operator import Augment, Crops, MaskTokens
from crate_dsl.compiler.types import Dim, Symbol, TensorType, floats
from tests.steps.harness import step

DEVIATIONS = 5
#: Float32 rounding of places of size one, some operations long, in pixels of pictures some twenty wide.
PLACE = 1e-4
VOCABULARY, FILL = 50, 49
N = Dim.symbolic(Symbol("n", 256))
IDS = TensorType("index", (N,), VOCABULARY)
KEPT = Port(TensorType("bool", (N,)))


def drawn(seed: int, draw: Callable[[], Tensor | tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """What is drawn after a seed, the generator of other tests left as it was."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        found = draw()
    return found if isinstance(found, tuple) else (found,)


def is_share(found: Tensor, wanted: float) -> bool:
    """Whether a share of so many draws is what it should be."""
    deviation = sqrt(wanted * (1 - wanted) / found.numel())
    return abs(float(found.double().mean()) - wanted) <= DEVIATIONS * deviation


def is_uniform(found: Tensor, low: float, high: float) -> bool:
    """Kolmogorov and Smirnov: the share below each value is its place between the ends, to 2 / √n."""
    values = found.double().flatten().sort().values
    if not (values[0] >= low - PLACE and values[-1] <= high + PLACE):
        return False
    count = len(values)
    expected = (values - low) / (high - low)
    return float((expected - (torch.arange(count) + 0.5) / count).abs().max()) < 2 / sqrt(count)


# ------------------------------------------------------------------ mask_tokens


def masked(seed: int, ids: Tensor, kept: Tensor | None = None, **arguments: float) -> tuple[Tensor, Tensor]:
    port = {} if kept is None else {"kept": KEPT}
    operator = MaskTokens(ratio=arguments.pop("ratio", 0.15), fill=FILL, **arguments, **port)
    module = step(operator, IDS).module
    hidden, chosen = drawn(seed, lambda: module(ids, **({} if kept is None else {"kept": kept})))
    return hidden, chosen


def test_shares_of_what_is_hidden() -> None:
    ids = torch.randint(FILL, (80, 250), generator=torch.Generator().manual_seed(0))
    hidden, chosen = masked(1, ids, random=0.2, keep=0.3, ratio=0.25)
    assert hidden.dtype == torch.int64 and chosen.dtype == torch.bool
    assert is_share(chosen, 0.25)
    assert torch.equal(hidden[~chosen], ids[~chosen]), "what is not chosen stays"
    became, was = hidden[chosen], ids[chosen]
    # A random token is the old one, or `fill`, once in a vocabulary.
    assert is_share(became == FILL, 0.5 + 0.2 / VOCABULARY)
    assert is_share(became == was, 0.3 + 0.2 / VOCABULARY)
    other = became[(became != was) & (became != FILL)]
    counts = other.bincount(minlength=VOCABULARY)[:FILL].double()
    mean = counts.mean()
    assert ((counts - mean).square().sum() / mean) < FILL - 1 + DEVIATIONS * sqrt(2 * (FILL - 1)), (
        "χ²: all tokens"
    )


@pytest.mark.parametrize(
    ("random", "keep", "became"), [(0.0, 0.0, "fill"), (0.0, 1.0, "same"), (1.0, 0.0, "any")]
)
def test_the_ends_of_shares_are_exact(random: float, keep: float, became: str) -> None:
    ids = torch.randint(FILL, (7, 200), generator=torch.Generator().manual_seed(0))
    hidden, chosen = masked(1, ids, random=random, keep=keep, ratio=1.0)
    assert chosen.all()
    if became == "any":
        assert is_share(hidden == FILL, 1 / VOCABULARY) and is_share(hidden == ids, 1 / VOCABULARY)
    else:
        assert torch.equal(hidden, torch.full_like(ids, FILL) if became == "fill" else ids)


def test_tokens_are_chosen_each_by_itself() -> None:
    """The number of chosen tokens of a text is binomial: its variance is n ρ (1 - ρ), not that of a fixed number, 0."""
    _, chosen = masked(2, torch.zeros(4000, 20, dtype=torch.int64), ratio=0.3)
    counts = chosen.sum(1).double()
    assert abs(float(counts.var()) - 20 * 0.3 * 0.7) < DEVIATIONS * 20 * 0.3 * 0.7 * sqrt(2 / 4000)
    assert is_share(counts == 0, 0.7**20)
    _, chosen = masked(2, torch.zeros(4000, 1, dtype=torch.int64), ratio=0.3)
    assert is_share(chosen, 0.3)


def test_padding_is_never_chosen() -> None:
    ids = torch.randint(FILL, (9, 40), generator=torch.Generator().manual_seed(0))
    kept = torch.arange(40) < torch.arange(0, 36, 4)[:, None]
    hidden, chosen = masked(3, ids, kept, ratio=1.0)
    assert torch.equal(chosen, kept)
    assert torch.equal(hidden[~kept], ids[~kept])


def test_what_is_drawn_does_not_depend_on_the_text() -> None:
    first, second = torch.zeros(2, 5, 60, dtype=torch.int64)
    assert torch.equal(masked(4, first)[1], masked(4, second + 7)[1])


# ------------------------------------------------------------------ crops

CHANNELS, HEIGHT, WIDTH = 3, 16, 24
IMAGE = floats(CHANNELS, HEIGHT, WIDTH)


def ramp(batch: int, height: int = HEIGHT, width: int = WIDTH) -> Tensor:
    """Pictures whose channels are the column and the row of each pixel's middle, and 1."""
    column = (torch.arange(width) + 0.5).expand(height, -1)
    row = (torch.arange(height) + 0.5)[:, None].expand(-1, width)
    return torch.stack([column, row, torch.ones(height, width)]).expand(batch, -1, -1, -1)


def crops(seed: int, x: Tensor, **arguments: object) -> Tensor:
    operator = Crops(**{"count": 2, "size": 24, **arguments})  # type: ignore[arg-type]
    item = step(operator, floats(*x.shape[1:]))
    (cut,) = drawn(seed, lambda: item.module(x))
    assert tuple(dim.static for dim in item.typing.output.shape) == cut.shape[1:]
    return cut


def boxes(cut: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Left, top, width, height and whether flipped of the crops of a ramp, read off the middle two pixels.

    A ramp is itself between its pixels; where it is shrunk, it is so only nearly.
    """
    size = cut.shape[-1]
    left, right = size // 2 - 1, size // 2
    step_x = cut[:, :, 0, left, right] - cut[:, :, 0, left, left]
    step_y = cut[:, :, 1, right, left] - cut[:, :, 1, left, left]
    middle_x = (cut[:, :, 0, left, right] + cut[:, :, 0, left, left]) / 2
    middle_y = (cut[:, :, 1, right, left] + cut[:, :, 1, left, left]) / 2
    wide, tall = size * step_x.abs(), size * step_y
    return middle_x - wide / 2, middle_y - tall / 2, wide, tall, step_x < 0


def test_boxes_are_drawn_as_they_should_be() -> None:
    low, high = 0.1, 0.5
    cut = crops(1, ramp(1500), scale=(low, high), flip=0.3)
    left, top, wide, tall, flipped = boxes(cut)
    assert is_uniform(wide * tall / (WIDTH * HEIGHT), low, high), "the share of the area"
    assert is_share(flipped, 0.3)
    # At s = 0.5 of 24 x 16, ratios from 0.75 to 1.33 all fit: w = 16 at most.
    assert is_uniform((wide / tall).log(), log(3 / 4), log(4 / 3)), "the ratio"
    assert is_uniform(left / (WIDTH - wide), 0, 1) and is_uniform(top / (HEIGHT - tall), 0, 1)
    assert abs(float(torch.corrcoef(torch.stack([wide[:, 0], wide[:, 1]]))[0, 1])) < DEVIATIONS / sqrt(1500)


def test_boxes_lie_inside_however_large() -> None:
    """Up to the whole of a square, where few ratios fit: the area stays uniform."""
    cut = crops(2, ramp(1500, 20, 20), scale=(0.5, 1.0), flip=0.0)
    left, top, wide, tall, _ = boxes(cut)
    assert is_uniform(wide * tall / 400, 0.5, 1.0)
    assert left.min() > -PLACE and top.min() > -PLACE
    assert (left + wide).max() < 20 + PLACE and (top + tall).max() < 20 + PLACE
    ratio = wide / tall
    assert ratio.min() > 3 / 4 - PLACE and ratio.max() < 4 / 3 + PLACE


def test_a_long_picture_gives_the_largest_part_of_the_nearest_ratio() -> None:
    cut = crops(3, ramp(50, 8, 40), scale=(0.9, 1.0), flip=0.0)
    _, top, wide, tall, _ = boxes(cut)
    assert (wide / tall - 4 / 3).abs().max() < PLACE
    assert (tall - 8).abs().max() < PLACE and top.abs().max() < PLACE


def test_the_whole_picture_is_the_picture() -> None:
    x = torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    cut = crops(4, x, count=3, size=8, scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0)
    assert (cut - x[:, None]).abs().max() < PLACE
    cut = crops(4, x, count=3, size=8, scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=1.0)
    assert (cut - x.flip(3)[:, None]).abs().max() < PLACE


def test_beyond_the_edge_the_edge_goes_on() -> None:
    """Enlarged, the first pixels lie before the middle of the picture's first one."""
    assert (crops(5, torch.ones(3, 2, 8, 8), size=32, scale=(1.0, 1.0)) - 1).abs().max() < PLACE


@pytest.mark.parametrize("size", [6, 40])
def test_pixels_are_means_over_those_they_stand_for(size: int) -> None:
    """Enlarged, the bilinear mean of the four around; shrunk, a mean that falls to nothing one new pixel away."""
    x = torch.randn(4, 2, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))
    cut = crops(5, x, size=size, scale=(0.05, 0.9))
    left, top, wide, tall, flipped = (v.double() for v in boxes(crops(5, ramp(4), scale=(0.05, 0.9))))

    def weights(place: float, step: float, count: int) -> Tensor:
        found = [max(0.0, 1 - abs(pixel + 0.5 - place) / max(1.0, step)) for pixel in range(count)]
        return torch.tensor(found, dtype=torch.float64) / sum(found)

    assert (wide.max() / 6 > 2) and (tall.max() / 40 < 1)
    for b in range(4):
        for k in range(2):
            for i in range(0, size, 3):
                rows = weights(float((top + tall * (i + 0.5) / size)[b, k]), float(tall[b, k]) / size, HEIGHT)
                for j in range(0, size, 3):
                    across = (size - j - 0.5 if flipped[b, k] else j + 0.5) / size
                    place = float((left + wide * across)[b, k])
                    columns = weights(place, float(wide[b, k]) / size, WIDTH)
                    wanted = torch.einsum("h,chw,w->c", rows, x[b].double(), columns)
                    assert (cut[b, k, :, i, j].double() - wanted).abs().max() < 10 * PLACE


def test_fine_detail_is_not_skipped() -> None:
    """A board of single black and white pixels, shrunk to a fourth, is grey."""
    board = (torch.arange(32)[:, None] + torch.arange(32)).remainder(2).float().expand(2, 1, 32, 32)
    cut = crops(6, board, size=8, scale=(1.0, 1.0), ratio=(1.0, 1.0))
    assert (cut[..., 1:-1, 1:-1] - 0.5).abs().max() < PLACE


# ------------------------------------------------------------------ augment


def augmented(seed: int, x: Tensor, **arguments: float) -> Tensor:
    item = step(Augment(**arguments), floats(*x.shape[1:]))
    assert item.typing.output == floats(*x.shape[1:])
    (changed,) = drawn(seed, lambda: item.module(x))
    assert changed.shape == x.shape and changed.dtype == x.dtype
    return changed


STILL = {"flip": 0.0, "shift": 0.0, "brightness": 0.0, "contrast": 0.0}


def test_flips_and_shifts_are_whole_pixels() -> None:
    """Up to 0.2 of 24 and of 16: 4 columns and 3 rows, each way and none equally often; the edge repeats."""
    batch = 3000
    x = ramp(batch)
    changed = augmented(1, x, flip=0.4, shift=0.2, brightness=0.0, contrast=0.0)
    columns, rows = changed[:, 0, 0, :], changed[:, 1, :, 0]
    flipped = columns[:, WIDTH // 2] < columns[:, WIDTH // 2 - 1]
    assert is_share(flipped, 0.4)
    straight = torch.where(flipped[:, None], WIDTH - columns, columns)
    place_b = (torch.arange(WIDTH) + 0.5)[WIDTH // 2]
    across, down = place_b - straight[:, WIDTH // 2], HEIGHT // 2 + 0.5 - rows[:, HEIGHT // 2]
    for moved, most in ((across, 4), (down, 3)):
        assert (moved.round() - moved).abs().max() < PLACE
        counts = (moved.round().long() + most).bincount(minlength=2 * most + 1)
        assert len(counts) == 2 * most + 1
        assert all(is_share((moved.round().long() == m), 1 / (2 * most + 1)) for m in range(-most, most + 1))
    b = int(across.argmax())
    assert across[b] == 4 and torch.equal(straight[b], torch.cat([torch.full((4,), 0.5), x[0, 0, 0, :-4]]))


def test_contrast_and_brightness_are_about_the_mean() -> None:
    batch = 2000
    x = torch.randn(batch, CHANNELS, 4, 5, generator=torch.Generator().manual_seed(0)) + 3
    changed = augmented(2, x, flip=0.0, shift=0.0, brightness=0.5, contrast=0.3)
    added = changed.mean((1, 2, 3)) - x.mean((1, 2, 3))
    factor = changed.flatten(1).std(1) / x.flatten(1).std(1)
    assert is_uniform(added, -0.5, 0.5) and is_uniform(factor, 0.7, 1.3)
    mean = x.mean((1, 2, 3), keepdim=True)
    wanted = mean + factor[:, None, None, None] * (x - mean) + added[:, None, None, None]
    assert (changed - wanted).abs().max() < PLACE


def test_nothing_changes_where_nothing_is_to() -> None:
    x = torch.randn(3, CHANNELS, 4, 5, generator=torch.Generator().manual_seed(0))
    assert (augmented(3, x, **STILL) - x).abs().max() < 1e-6  # the mean is taken away and added again
    assert torch.equal(augmented(3, x, **STILL | {"flip": 1.0}), augmented(3, x.flip(3), **STILL))


# ------------------------------------------------------------------ all of them


def every() -> dict[str, Callable[[int, Tensor], Tensor]]:
    return {"crops": lambda seed, x: crops(seed, x), "augment": lambda seed, x: augmented(seed, x)}


@pytest.mark.parametrize("name", every())
def test_a_seed_says_what_is_drawn(name: str) -> None:
    x = torch.randn(6, CHANNELS, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))
    draw = every()[name]
    assert torch.equal(draw(1, x), draw(1, x))
    assert not torch.equal(draw(1, x), draw(2, x))
    same = x[:1].expand_as(x)
    assert not torch.equal(draw(1, same)[0], draw(1, same)[1]), "each picture is drawn anew"


@pytest.mark.parametrize("name", every())
def test_pixels_of_half_precision_stay_so_and_places_do_not(name: str) -> None:
    """The same picture as in float32, to the rounding of one pixel; under autocast, where products are halves, too."""
    x = torch.randn(6, CHANNELS, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0)).bfloat16()
    draw = every()[name]
    with torch.autocast("cpu", torch.bfloat16):
        half, single = draw(1, x), draw(1, x.float())
    assert half.dtype == torch.bfloat16 and single.dtype == torch.float32
    assert torch.equal(single, draw(1, x.float()))
    assert torch.equal(half, single.bfloat16())


def test_pictures_of_any_size_at_run_time() -> None:
    n = Dim.symbolic(Symbol("n", 64))
    item = step(Augment(), floats(3, n, 8))
    assert item.typing.output == floats(3, n, 8)
    assert item.module(torch.zeros(2, 3, 5, 8)).shape == (2, 3, 5, 8)


@pytest.mark.parametrize("operator", [MaskTokens(ratio=0.15, fill=3), Crops(count=2, size=8), Augment()])
def test_what_is_drawn_is_not_undone(operator: Operator) -> None:
    assert isinstance(operator.inverse(LearnedInverse(), IMAGE), NoInverse)


PAIR = TensorType("index", (N, Dim.of(2)), VOCABULARY)


@pytest.mark.parametrize(
    ("code", "operator", "given"),
    [
        ("E0411", MaskTokens(ratio=0.15, fill=3), floats(N)),
        ("E0411", MaskTokens(ratio=0.15, fill=3), PAIR),
        ("E0470", MaskTokens(ratio=0.15, fill=VOCABULARY), IDS),
        ("E0471", MaskTokens(ratio=0.15, fill=3, random=0.6, keep=0.5), IDS),
        ("E0443", MaskTokens(ratio=0.15, fill=3, kept=Port(TensorType("bool", (N + 1,)))), IDS),
        ("E0401", Crops(count=2, size=8), floats(8, 8)),
        ("E0472", Crops(count=2, size=8, scale=(0.5, 0.4)), IMAGE),
        ("E0472", Crops(count=2, size=8, ratio=(2.0, 1.0)), IMAGE),
        ("E0401", Augment(), floats(8)),
    ],
)
def test_mistakes(code: str, operator: Operator, given: TensorType) -> None:
    with pytest.raises(Mistake) as found:
        operator.infer(given)
    assert found.value.code == code
