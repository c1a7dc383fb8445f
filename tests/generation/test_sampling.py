"""The sampler: it draws by the formula, and its margin is what it says."""

from __future__ import annotations

from math import exp, inf, log

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from crate_dsl.generation.sampling import Choice, Sampler
from crate_dsl.language.diagnostics import UserError

Array = NDArray[np.float64]

#: The margin is a sum and a difference of some float64 numbers around 10.
ROUNDING = 1e-12


def kept(scores: Array, temperature: float, top_k: int | None, top_p: float) -> list[int]:
    """From the definition: sort, keep k, add until the share is reached."""
    order = sorted(range(len(scores)), key=lambda token: -scores[token])[:top_k]
    weights = [exp((scores[token] - max(scores)) / temperature) for token in order]
    found, mass = [], 0.0
    for token, weight in zip(order, weights, strict=True):
        if mass >= top_p * sum(weights):
            break
        found.append(token)
        mass += weight
    return found


def wanted(scores: Array, sampler: Sampler, noise: Array) -> int:
    """From the definition: the largest of scores and noise among the kept."""
    among = kept(scores, sampler.temperature, sampler.top_k, sampler.top_p)
    return max(sorted(among), key=lambda token: scores[token] + sampler.temperature * noise[token])


def again(sampler: Sampler, scores: Array) -> Choice:
    return sampler.start().choose(scores)


samplers = st.builds(
    Sampler,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.5]),
    top_k=st.sampled_from([None, 1, 2, 3, 5, 40]),
    top_p=st.sampled_from([0.05, 0.4, 0.8, 0.97, 1.0]),
    seed=st.integers(0, 10_000),
)
sizes = st.integers(1, 12)


@given(samplers, sizes)
def test_it_chooses_by_the_definition(sampler: Sampler, size: int) -> None:
    scores = np.random.default_rng(sampler.seed + size).normal(0, 2, size)
    if sampler.temperature == 0:
        assert again(sampler, scores).token == scores.argmax()
        return
    noise = np.random.default_rng(sampler.seed).gumbel(size=size)
    assert again(sampler, scores).token == wanted(scores, sampler, noise)


@given(
    samplers, sizes, st.sampled_from([0.1, 1.0, 4.0]), st.integers(0, 4), st.randoms(use_true_random=False)
)
def test_scores_that_move_by_less_than_the_margin_give_the_same_token(
    sampler: Sampler, size: int, spread: float, ties: int, random: object
) -> None:
    generator = np.random.default_rng(sampler.seed)
    scores = np.round(generator.normal(0, spread, size), ties) if ties else generator.normal(0, spread, size)
    choice = again(sampler, scores)
    assert choice.margin >= 0
    reach = min(choice.margin, 100.0) * (1 - 1e-9) - ROUNDING
    if reach <= 0:
        return
    for _ in range(20):
        # The corners of the cube are where it breaks first.
        moved = scores + reach * generator.choice([-1.0, 1.0, 0.0, 0.5], size)
        assert again(sampler, moved).token == choice.token
    for token in range(size):
        for sign in (-1.0, 1.0):
            moved = scores - sign * reach
            moved[token] = scores[token] + sign * reach
            assert again(sampler, moved).token == choice.token


@given(st.integers(0, 10_000), st.integers(2, 9), st.sampled_from([None, 1, 3]), st.sampled_from([0.0, 0.7]))
def test_without_top_p_the_margin_is_no_smaller_than_it_must_be(
    seed: int, size: int, top_k: int | None, temperature: float
) -> None:
    sampler = Sampler(temperature=temperature, top_k=top_k, seed=seed)
    scores = np.random.default_rng(seed).normal(0, 2, size)
    choice = again(sampler, scores)
    reach = choice.margin * (1 + 1e-9) + ROUNDING
    corners = []
    for token in range(size):
        for sign in (-1.0, 1.0):
            moved = scores - sign * reach
            moved[token] = scores[token] + sign * reach
            corners.append(again(sampler, moved).token)
    assert set(corners) != {choice.token}


def test_tokens_come_as_often_as_their_probability_says() -> None:
    scores = np.array([1.0, -0.5, 0.3, 2.0, 0.0])
    draws, many = Sampler(temperature=0.8, top_k=4, top_p=0.93, seed=1).start(), 8_000
    counts = np.bincount([draws.choose(scores).token for _ in range(many)], minlength=5)
    among = kept(scores, 0.8, 4, 0.93)
    assert sorted(among) == [0, 2, 3]
    weights = np.array([exp(scores[token] / 0.8) if token in among else 0.0 for token in range(5)])
    expected = many * weights / weights.sum()
    spread = np.sqrt(expected * (1 - expected / many)) + 1e-9
    assert (np.abs(counts - expected) / spread).max() < 4.5


@pytest.mark.parametrize("size", [3, 700])
def test_few_draws_hang_by_a_thread(size: int) -> None:
    """Exponential numbers E_i of rates p_i: P(min of the others > r min) is the sum of p_i / (p_i + r (1 - p_i))."""
    temperature, many = 0.5, 4000
    draws = Sampler(temperature=temperature, seed=3).start()
    scores = np.random.default_rng(4).normal(0, 1, size)
    margins = np.sort([draws.choose(scores).margin for _ in range(many)])
    p_v = np.exp(scores / temperature) / np.exp(scores / temperature).sum()
    r_n1 = np.exp(2 * margins / temperature)[:, None]
    below_n = 1 - (p_v / (p_v + r_n1 * (1 - p_v))).sum(-1)
    # Kolmogorov and Smirnov: beyond 1.95 / sqrt(n) one time in a thousand.
    assert np.abs(below_n - (np.arange(many) + 0.5) / many).max() < 1.95 / np.sqrt(many)
    assert (below_n <= 2 * margins / temperature + ROUNDING).all()


def test_the_draws_do_not_depend_on_the_scores() -> None:
    """So two networks that differ by rounding draw alike, all along a text."""
    one, other = Sampler(seed=5).start(), Sampler(seed=5).start()
    scores = np.random.default_rng(0).normal(size=(50, 30))
    moved = scores + 1e-9 * np.random.default_rng(1).normal(size=scores.shape)
    assert [one.choose(s).token for s in scores] == [other.choose(s).token for s in moved]
    different = Sampler(seed=6).start()
    assert [different.choose(s).token for s in scores] != [
        Sampler(seed=5).start().choose(s).token for s in scores
    ]


def test_margins_of_cut_offs() -> None:
    """By hand: where the second largest meets the largest, and where two make a nucleus."""
    assert again(Sampler(temperature=0, top_k=5, top_p=0.5), np.array([3.0, 1.0])) == Choice(0, 1.0)
    only = again(Sampler(top_k=1, seed=9), np.array([0.0, 5.0, 4.5]))
    assert only == Choice(1, 0.25)
    # Of 0.7 and 0.3 the first alone holds 0.6. Its odds, 7/3, fall to 6/4 by two equal moves; then the other is kept.
    scores = np.array([log(0.7), log(0.3)])
    seed = next(seed for seed in range(99) if np.random.default_rng(seed).gumbel(size=2) @ [-1, 1] > 2)
    alone = again(Sampler(top_p=0.6, seed=seed), scores)
    assert alone.token == 0
    assert alone.margin == pytest.approx(log((7 / 3) / (6 / 4)) / 2)
    assert Sampler().start().choose([1.0]) == Choice(0, inf)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": -1.0}, "the temperature is -1.0"),
        ({"temperature": inf}, "the temperature is inf"),
        ({"top_k": 0}, "top_k is 0"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"seed": -1}, "the seed is -1"),
    ],
)
def test_numbers_out_of_range(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Sampler(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("scores", [[], [1.0, np.nan], [np.inf, 0.0], [[1.0]]])
def test_scores_that_are_none(scores: list[float]) -> None:
    with pytest.raises(UserError, match="no finite numbers"):
        Sampler().start().choose(scores)
