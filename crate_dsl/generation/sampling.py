"""Choosing the next token, and by how much it was chosen. numpy alone: whatever computes the scores, this chooses.

Axes: v tokens of the vocabulary; r the same, in order of their scores, the largest first.

A token's scores s become probabilities softmax(s / T). `top_k` keeps the k most probable tokens, `top_p` of these the
fewest that hold a share p of what they have together (Holtzman et al. 2020, arXiv 1904.09751, section 3.1); tokens of
equal scores are kept together. Of the kept ones that token is chosen whose

    s + T g,   g = -log(-log u), u uniform,

is largest, which draws it by those probabilities (Gumbel 1954; Maddison et al. 2014, arXiv 1411.0030, section 2). The
g do not depend on the scores: whoever starts from the same seed draws the same ones. And few draws hang by a thread:
without cut-offs a margin is below e with a probability of at most 2 e / T, however many tokens there are. (With one
number that is looked up in the sums of the probabilities, each token would add a border.)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf

import numpy as np
from numpy.typing import ArrayLike, NDArray

from crate_dsl.language.diagnostics import UserError

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Choice:
    """The chosen token, and how far every score may move, each by itself, before it may be another one."""

    token: int
    margin: float


@dataclass(frozen=True)
class Sampler:
    """How tokens are chosen. `temperature` 0 takes the largest score, the first of several, and draws nothing.

    Raises:
        UserError: a number is out of its range.

    >>> greedy = Sampler(temperature=0)
    >>> greedy.start().choose([0.5, 2.0, 1.0])
    Choice(token=1, margin=0.5)
    >>> draws = Sampler(top_k=2, seed=7).start()
    >>> [draws.choose([0.5, 2.0, 1.0]).token for _ in range(8)]
    [1, 1, 1, 1, 1, 2, 2, 2]
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < inf:
            raise UserError(f"the temperature is {self.temperature}, and must be a number from 0")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k is {self.top_k}: at least one token must be kept")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p is {self.top_p}, and must be above 0 and at most 1")
        if self.seed < 0:
            raise UserError(f"the seed is {self.seed}, and must not be negative")

    def start(self) -> Draws:
        """The choices of one text, from the seed on."""
        return Draws(self, np.random.default_rng(self.seed))


@dataclass(frozen=True)
class Draws:
    """Choices one after another."""

    sampler: Sampler
    generator: np.random.Generator = field(repr=False)

    def choose(self, scores: ArrayLike) -> Choice:
        """The next token by its scores, (V,).

        Raises:
            UserError: there are none, or one is no finite number.
        """
        s_v = np.asarray(scores, np.float64)
        if s_v.ndim != 1 or not s_v.size or not np.isfinite(s_v).all():
            raise UserError(
                "the network's scores are no finite numbers: nothing can be chosen by them",
                "the weights are damaged, or their training ran away",
            )
        sampler, keys_v = self.sampler, s_v
        if sampler.temperature > 0:
            keys_v = s_v + sampler.temperature * self.generator.gumbel(size=s_v.shape)
        if sampler.temperature == 0 or (sampler.top_k is None and sampler.top_p == 1):
            token = int(keys_v.argmax())
            return Choice(token, _least(keys_v[token] - np.delete(keys_v, token)) / 2)
        kept = _Kept(s_v, sampler.temperature, sampler.top_k, sampler.top_p)
        token = int(np.where(kept.mask_v, keys_v, -inf).argmax())
        return Choice(token, kept.margin(token, keys_v[token] - keys_v))


class _Kept:
    """The tokens that `top_k` and `top_p` keep, and how far scores may move before they keep others.

    Of the k largest, with A the sum of exp(s / T) over those before a token and B over itself and those behind it, the
    token is kept where A < p (A + B), that is, where log A - log B < log p - log(1 - p). Scores that move by no more
    than e raise or lower log A - log B by at most 2 e / T, and let two tokens that are not 2 e apart change places.
    """

    def __init__(self, s_v: Array, temperature: float, top_k: int | None, top_p: float) -> None:
        self.temperature = temperature
        self.k = min(top_k or len(s_v), len(s_v))
        self.odds = np.log(top_p) - np.log1p(-top_p) if top_p < 1 else inf
        self.order_r = np.argsort(-s_v, kind="stable")
        self.s_r = s_v[self.order_r]
        self.x_r = (self.s_r - self.s_r[0]) / temperature
        self.before_r, self.behind_r = _sums(self.x_r[: self.k])
        kept_r = self.before_r[:-1] - self.behind_r[:-1] < self.odds
        self.mask_v = np.zeros(len(s_v), np.bool_)
        self.mask_v[self.order_r[: self.k][kept_r]] = True

    def margin(self, token: int, gap_v: Array) -> float:
        """How far scores may move while the token stays kept, and none gains on it by its gap, or by its gap and its
        place among the kept ones.
        """
        rank_v = np.empty_like(self.order_r)
        rank_v[self.order_r] = np.arange(len(rank_v))
        rivals_v = self.mask_v.copy()
        rivals_v[token] = False
        least = min(self._until_dropped(int(rank_v[token])), _least(gap_v[rivals_v]) / 2)
        for other in np.flatnonzero(~self.mask_v & (gap_v / 2 < least)):
            least = min(least, max(gap_v[other] / 2, self._until_kept(int(rank_v[other]))))
        return float(least)

    def _until_dropped(self, rank: int) -> float:
        """How far scores must move for a kept token to be none: others, m of them in the end, are raised above it."""
        s_m, x_m = (np.delete(values_r, rank) for values_r in (self.s_r, self.x_r))
        out_of_k = (self.s_r[rank] - s_m[self.k - 1]) / 2 if self.k < len(self.s_r) else inf
        before_m, behind_m = (sums_m[rank:] for sums_m in _sums(x_m[: self.k - 1]))
        odds_m = before_m - np.logaddexp(behind_m, self.x_r[rank])
        passed_m = (self.s_r[rank] - np.concatenate([[inf], s_m])[rank : self.k]) / 2
        return min(out_of_k, _least(np.maximum(self.temperature / 2 * (self.odds - odds_m), passed_m)))

    def _until_kept(self, rank: int) -> float:
        """How far scores must move for another token to be kept: it is raised, and those before it are lowered, until
        m are left; the others of them come down to it, and count no more than it does.
        """
        last = min(rank, self.k)
        m = np.arange(last if rank >= self.k else last + 1)
        with np.errstate(divide="ignore"):
            level_m = self.x_r[rank] + np.log(last - m)
        odds_m = self.before_r[m] - np.logaddexp(self.behind_r[last], level_m)
        passed_m = (self.s_r[m] - self.s_r[rank]) / 2
        return _least(np.maximum(self.temperature / 2 * (odds_m - self.odds), passed_m))


def _sums(x_n: Array) -> tuple[Array, Array]:
    """The logarithms of the sums of exp(x): of the first m, and of all but the first m, for m from 0 to n."""
    nothing = [-inf]
    return (
        np.concatenate([nothing, np.logaddexp.accumulate(x_n)]),
        np.concatenate([np.logaddexp.accumulate(x_n[::-1])[::-1], nothing]),
    )


def _least(values: Array) -> float:
    return float(values.min(initial=inf))
