"""A text that a network goes on with, as it comes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from crate_dsl.generation.predictors import Ids
from crate_dsl.generation.sampling import Sampler
from crate_dsl.generation.source import Source
from crate_dsl.language.diagnostics import UserError
from crate_dsl.training.vocabulary import Vocabulary

#: What bytes that are no character, or not yet, are decoded as.
NO_CHARACTER = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True, slots=True)
class Written:
    """One token more: what it adds to the text, as far as that is whole characters, and the margin of its choice."""

    token: int
    text: str
    margin: float


def write(source: Source, prompt: str, tokens: int, sampler: Sampler) -> Iterator[Written]:
    """Go on with a text by so many tokens. What they add to the text, put together, is what they stand for.

    Raises:
        UserError: the prompt is empty or holds what the vocabulary has not, before the first token; there are more
            tokens than the network reads.
    """
    vocabulary = source.vocabulary
    ids_n = vocabulary.encode(prompt)
    if not len(ids_n):
        raise UserError(
            "the prompt is empty: a token is told from those before it, at least one", "--prompt TEXT"
        )
    source.predictor.check(len(ids_n), tokens)
    return _written(source, ids_n, tokens, sampler)


def _written(source: Source, ids_n: Ids, tokens: int, sampler: Sampler) -> Iterator[Written]:
    draws, tail = sampler.start(), Tail(source.vocabulary)
    scores_v = source.predictor.start(ids_n)
    for left in reversed(range(tokens)):
        # A network may know more tokens than there are: the last ones stand for nothing.
        choice = draws.choose(scores_v[: source.vocabulary.size])
        yield Written(choice.token, tail.take(choice.token, last=not left), choice.margin)
        if left:
            scores_v = source.predictor.step(choice.token)


class Tail:
    """The tokens of a text that are no whole characters yet.

    >>> from crate_dsl.training.vocabulary import Bytes
    >>> tail = Tail(Bytes())
    >>> [tail.take(byte) for byte in "aé".encode()]
    ['a', '', 'é']
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.tokens: list[int] = []

    def take(self, token: int, *, last: bool = False) -> str:
        """What a token adds: nothing, while the text would end with what is no character; everything at the end."""
        self.tokens.append(token)
        text = self.vocabulary.decode(self.tokens)
        if text.endswith(NO_CHARACTER) and not last:
            return ""
        self.tokens.clear()
        return text
