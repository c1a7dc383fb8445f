"""Vocabularies: between text and the whole numbers that a network reads.

There is no token for what is unknown, and none that stands for anything but text. `characters` knows every character of
its corpus, and refuses others; `bytes` and `bpe` write every text, since each byte has a token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from crate_dsl.language.diagnostics import UserError, did_you_mean
from crate_dsl.training.sources import required_module

if TYPE_CHECKING:
    from tokenizers import Tokenizer

#: Bytes, each a token.
BYTES = 256
#: The most pieces of a vocabulary of pieces, and the longest of them in bytes; a vocabulary as JSON is no longer.
MOST_PIECES, LONGEST_PIECE = 2**18, 256
MAXIMUM_JSON = 2**24
#: Characters that are shown before and behind one that is wrong.
AROUND = 10
#: A pair of pieces that stands together less often than that becomes none.
LEAST_OFTEN = 2

FORMS = "vocabularies: characters, bytes, bpe:SIZE"

Ids = NDArray[np.int64]


class Vocabulary(BaseModel):
    """Text as whole numbers from 0 to `size` - 1, and back; `decode(encode(text)) == text`.

    >>> vocabulary = Characters(characters="abn")
    >>> vocabulary.encode("banana").tolist()
    [1, 0, 2, 0, 2, 0]
    >>> vocabulary.decode([2, 0, 1])
    'nab'
    >>> from_json(vocabulary.to_json()) == vocabulary
    True
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @property
    def size(self) -> int:
        """How many tokens there are."""
        raise NotImplementedError

    def encode(self, text: str) -> Ids:
        """The tokens of a text, (N,). Raises `UserError` where it holds what cannot be written."""
        raise NotImplementedError

    def decode(self, ids: Sequence[int] | NDArray[Any]) -> str:
        """The text of some tokens. Bytes that are no character yet, or never, become �.

        Raises:
            UserError: a number is no token.
        """
        ids_n = np.asarray(ids, np.int64)
        wrong = np.flatnonzero((ids_n < 0) | (ids_n >= self.size))
        if len(wrong):
            raise UserError(
                f"{ids_n[wrong[0]]} is no token: the vocabulary has {self.size:,}, numbered from 0",
            )
        return self._decoded(ids_n)

    def _decoded(self, ids_n: Ids) -> str:
        raise NotImplementedError

    def to_json(self) -> str:
        """JSON that `from_json` reads."""
        return self.model_dump_json()


class Characters(Vocabulary):
    """A token for each of some characters, in order of their code points."""

    kind: Literal["characters"] = "characters"
    characters: Annotated[str, Field(min_length=1)]

    @field_validator("characters")
    @classmethod
    def _ascending(cls, characters: str) -> str:
        if any(one >= other for one, other in pairwise(characters)):
            raise ValueError("they must stand in order of their code points, each once")
        return characters

    @property
    def size(self) -> int:
        return len(self.characters)

    @cached_property
    def _points_k(self) -> NDArray[np.uint32]:
        return _points(self.characters)

    def encode(self, text: str) -> Ids:
        """The tokens of a text, (N,). Raises `UserError` where it holds a character that the corpus did not."""
        points_n = _points(text)
        ids_n = np.searchsorted(self._points_k, points_n).astype(np.int64)
        unknown = np.flatnonzero(self._points_k[np.minimum(ids_n, self.size - 1)] != points_n)
        if len(unknown):
            at = int(unknown[0])
            raise UserError(
                f"{_named(text[at])} is none of the {self.size:,} characters of the vocabulary: {_around(text, at)}",
                "a network that is trained with --vocabulary bytes, or bpe:SIZE, reads every text",
            )
        return ids_n

    def _decoded(self, ids_n: Ids) -> str:
        return self._points_k[ids_n].tobytes().decode("utf-32-le")


class Bytes(Vocabulary):
    """A token for each byte of a text in UTF-8."""

    kind: Literal["bytes"] = "bytes"

    @property
    def size(self) -> int:
        return BYTES

    def encode(self, text: str) -> Ids:
        return np.frombuffer(_utf8(text), np.uint8).astype(np.int64)

    def _decoded(self, ids_n: Ids) -> str:
        return ids_n.astype(np.uint8).tobytes().decode("utf-8", "replace")


class Bpe(Vocabulary):
    """Pieces of words, by byte-pair encoding (Sennrich et al. 2016, arXiv 1508.07909) over bytes (Radford et al. 2019).

    Tokens 0 to 255 are the bytes. Each merge says which two tokens become one, and gives the next number to that
    piece, unless it has one. Texts are parted before they are merged, as GPT-2's are: a piece holds letters, or digits,
    or other signs, with a space before them or without, or it holds white space.
    """

    kind: Literal["bpe"] = "bpe"
    merges: Annotated[tuple[tuple[int, int], ...], Field(max_length=MOST_PIECES)]
    _pieces: tuple[bytes, ...] = PrivateAttr(default=())

    @model_validator(mode="after")
    def _sound(self) -> Bpe:
        pieces = [bytes([byte]) for byte in range(BYTES)]
        known = set(pieces)
        for one, other in self.merges:
            if not (0 <= one < len(pieces) and 0 <= other < len(pieces)):
                raise ValueError(
                    f"a merge is of {one} and {other}, but there are {len(pieces)} pieces by then"
                )
            piece = pieces[one] + pieces[other]
            if len(piece) > LONGEST_PIECE:
                raise ValueError(f"a piece is longer than {LONGEST_PIECE} bytes")
            if piece not in known:
                known.add(piece)
                pieces.append(piece)
        self._pieces = tuple(pieces)
        return self

    @property
    def pieces(self) -> tuple[bytes, ...]:
        """What each token stands for."""
        return self._pieces

    @property
    def size(self) -> int:
        return len(self.pieces)

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        required_module("tokenizers", "a vocabulary of pieces")
        from tokenizers import Tokenizer
        from tokenizers.models import BPE
        from tokenizers.pre_tokenizers import ByteLevel

        letters = _letters()
        spelled = ["".join(letters[byte] for byte in piece) for piece in self.pieces]
        model = BPE(
            vocab={piece: number for number, piece in enumerate(spelled)},
            merges=[(spelled[one], spelled[other]) for one, other in self.merges],
        )
        tokenizer = Tokenizer(model)
        tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
        return tokenizer

    def encode(self, text: str) -> Ids:
        _utf8(text)
        return np.array(self._tokenizer.encode(text, add_special_tokens=False).ids, np.int64)

    def _decoded(self, ids_n: Ids) -> str:
        return b"".join(self.pieces[number] for number in ids_n).decode("utf-8", "replace")


_ANY: TypeAdapter[Characters | Bytes | Bpe] = TypeAdapter(
    Annotated[Characters | Bytes | Bpe, Field(discriminator="kind")]
)


def from_json(text: str | bytes, name: str = "the vocabulary") -> Vocabulary:
    """The vocabulary that `to_json` wrote; `name` is where the text is from. It may be anybody's: nothing in it runs.

    Raises:
        UserError: it is none.
    """
    if len(text) > MAXIMUM_JSON:
        raise UserError(f"{name} is longer than {MAXIMUM_JSON:,} bytes: it is no vocabulary")
    try:
        return _ANY.validate_json(text)
    except ValidationError as problem:
        first = problem.errors(include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(
            f"{name} is damaged: {f'`{where}`: ' if where else ''}{first['msg'].lower()}"
        ) from problem


# ------------------------------------------------------------------ made for a corpus


def check_wanted(wanted: str) -> int | None:
    """The size in `bpe:SIZE`; None for `characters` and `bytes`. Raises `UserError` where it is none of these."""
    kind, colon, size = wanted.partition(":")
    if kind not in ("characters", "bytes", "bpe"):
        near = did_you_mean(kind, ("characters", "bytes", "bpe"))
        raise UserError(
            f"there is no vocabulary `{kind}`", *([f"did you mean `{near}`?"] if near else []), FORMS
        )
    if kind != "bpe":
        if colon:
            raise UserError(f"`{kind}` takes no size, but is given `{size}`", FORMS)
        return None
    if not size.isdecimal() or len(size) > 9 or not BYTES < int(size) <= MOST_PIECES:
        raise UserError(
            f"`bpe` needs a number of pieces from {BYTES + 1} to {MOST_PIECES:,}, but is given `{size}`",
            "for instance: --vocabulary bpe:4096",
        )
    return int(size)


def made_for(
    wanted: str, characters: Callable[[], Iterable[str]], training: Callable[[], Iterable[str]]
) -> Vocabulary:
    """A vocabulary as a user asks for it: `characters`, `bytes`, `bpe:SIZE`.

    `characters` gives those of the whole corpus; `training` gives the training text in portions, which `bpe` is made
    by. It has fewer pieces than were asked for where no pair of pieces occurs twice any more.
    """
    size = check_wanted(wanted)
    if size is not None:
        return _trained(training(), size)
    return Bytes() if wanted == "bytes" else Characters(characters="".join(sorted(characters())))


def _trained(portions: Iterable[str], size: int) -> Bpe:
    required_module("tokenizers", "a vocabulary of pieces")
    from pydantic_core import from_json as plain
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel, FixedLength, Sequence
    from tokenizers.trainers import BpeTrainer

    tokenizer = Tokenizer(BPE())
    # Each merge goes through the words that it is in: a line of a million letters would take hours.
    tokenizer.pre_tokenizer = Sequence([ByteLevel(add_prefix_space=False), FixedLength(LONGEST_PIECE)])
    letters = _letters()
    trainer = BpeTrainer(
        vocab_size=size,
        min_frequency=LEAST_OFTEN,
        show_progress=False,
        initial_alphabet=letters,
        max_token_length=LONGEST_PIECE,
    )
    tokenizer.train_from_iterator(portions, trainer)
    numbers = {letter: byte for byte, letter in enumerate(letters)}
    merges: list[tuple[int, int]] = []
    for one, other in plain(tokenizer.to_str())["model"]["merges"]:
        merges.append((numbers[one], numbers[other]))
        numbers.setdefault(one + other, len(numbers))
    return Bpe(merges=tuple(merges))


# ------------------------------------------------------------------ letters


def _letters() -> list[str]:
    """The sign by which byte-level BPE writes each byte: itself where it prints in Latin-1, others from U+0100."""
    printed = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printed else next(others)) for byte in range(BYTES)]


def _points(text: str) -> NDArray[np.uint32]:
    """The code points of a text, (N,)."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


def _utf8(text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as problem:
        at = problem.start
        raise UserError(f"{_named(text[at])} is no character: {_around(text, at)}") from problem


def _named(character: str) -> str:
    shown = f"`{character}` " if character.isprintable() else ""
    return f"{shown}(U+{ord(character):04X})" if shown else f"U+{ord(character):04X}"


def _around(text: str, at: int) -> str:
    """What stands around a place, for a message."""
    near = text[max(0, at - AROUND) : at + AROUND + 1]
    return "`" + "".join(sign if sign.isprintable() else " " for sign in near) + "`"
