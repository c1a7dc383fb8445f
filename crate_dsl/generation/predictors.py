"""Scores of the next token, one token after another, whatever computes them.

Axes: n tokens of a text, v tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from crate_dsl.language.diagnostics import UserError

Ids = NDArray[np.int64]
Scores = NDArray[np.float32]
#: What a network holds of the tokens before: tensors of whatever computes it.
States = tuple[Any, ...]


class Predictor(Protocol):
    """Scores the next token of a text that grows; `context` is the most tokens that it looks at."""

    context: int

    def check(self, prompt: int, tokens: int) -> None:
        """Whether it can go on with so many tokens by so many others. Raises `UserError` where it cannot."""

    def start(self, ids_n: Ids) -> Scores:
        """A text begins: its tokens (N,) -> the scores of the next one, (V,)."""

    def step(self, token: int) -> Scores:
        """The text goes on by one token -> the scores of the next one, (V,)."""


class Whole:
    """Computes the whole text anew for each token; of one that is longer than the context, its end.

    `scores_of` takes tokens (N,), at most `context`, and gives the scores behind the last one, (V,).
    """

    def __init__(self, scores_of: Callable[[Ids], Scores], context: int) -> None:
        self.scores_of = scores_of
        self.context = context
        self.ids_n: Ids = np.zeros(0, np.int64)

    def check(self, prompt: int, tokens: int) -> None:
        """Any number will do."""

    def start(self, ids_n: Ids) -> Scores:
        self.ids_n = ids_n[-self.context :]
        return self.scores_of(self.ids_n)

    def step(self, token: int) -> Scores:
        return self.start(np.append(self.ids_n, token))


@dataclass(frozen=True)
class Stepping:
    """A network that holds what it needs of the tokens before.

    `advance` takes the next tokens (M,), how many were before, and what is held of them. It gives the scores behind the
    last token, (V,), and what is to be held then. `nothing` is what is held before the first token.
    """

    advance: Callable[[Ids, int, States], tuple[Scores, States]]
    nothing: Callable[[], States]

    def scores_of(self, ids_n: Ids) -> Scores:
        """As of a network without a cache."""
        return self.advance(ids_n, 0, self.nothing())[0]


class Cached:
    """Computes each token once. A text ends with the context, since nothing of its beginning can be let go."""

    def __init__(self, network: Stepping, context: int) -> None:
        self.network = network
        self.context = context
        self.past = 0
        self.states: States = ()

    def check(self, prompt: int, tokens: int) -> None:
        # The last token is only told, not read.
        if prompt + tokens - 1 > self.context:
            most = self.context - prompt + 1
            raise UserError(
                f"{prompt:,} tokens of the prompt and {tokens:,} more do not fit into {self.context:,}, "
                "which is all that the network reads",
                *([f"--tokens {most}"] if most > 0 else []),
                f"--no-cache: each token is told from the last {self.context:,} before it, which takes longer",
            )

    def start(self, ids_n: Ids) -> Scores:
        self.past, self.states = 0, self.network.nothing()
        return self._advance(ids_n)

    def step(self, token: int) -> Scores:
        return self._advance(np.array([token], np.int64))

    def _advance(self, ids_m: Ids) -> Scores:
        scores_v, self.states = self.network.advance(ids_m, self.past, self.states)
        self.past += len(ids_m)
        return scores_v
