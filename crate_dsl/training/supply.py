"""What a network is trained on and measured by: images or texts, as one thing with three parts."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from rich.console import Console

from crate_dsl.compiler.graph import ModelGraph
from crate_dsl.language.diagnostics import UserError
from crate_dsl.training.batches import Fed, Held, HeldTexts
from crate_dsl.training.data import Data, Scaling
from crate_dsl.training.feed import Feed, Reading, check_fits, check_reads
from crate_dsl.training.files import write_text
from crate_dsl.training.sources import open_data
from crate_dsl.training.text import (
    PARTS,
    Corpus,
    PartName,
    Tokens,
    Windows,
    open_corpus,
    open_tokens,
    tokenize,
)
from crate_dsl.training.vocabulary import MAXIMUM_JSON, Vocabulary, check_wanted, from_json, made_for

#: A run's files of text.
VOCABULARY, TOKENS = "vocabulary.json", "tokens"
#: Tokens in which a word is looked for.
NEAR = 50
#: The vocabulary of texts where none is asked for.
CHARACTERS = "characters"


class Supply(Protocol):
    """Data as a network takes them. `noun` is what there is many of."""

    noun: ClassVar[str]

    @property
    def text(self) -> str:
        """How they were asked for."""
        ...

    @property
    def fingerprint(self) -> str:
        """Says whether two readings gave the same."""
        ...

    def held(self, part: PartName, device: torch.device) -> Fed:
        """A part on its way to a device; it may have no samples."""
        ...

    def described(self) -> dict[str, Any]:
        """What `run.json` says of them, beside the text and the fingerprint."""
        ...

    def told(self) -> list[str]:
        """What a user should hear of before training begins, a line each."""
        ...


@dataclass(frozen=True, eq=False)
class Images:
    """Labelled images in memory, their pixels scaled as they were when training began."""

    noun: ClassVar[str] = "images"

    data: Data
    feed: Feed
    scaling: Scaling

    @property
    def text(self) -> str:
        return self.data.text

    @property
    def fingerprint(self) -> str:
        return self.data.fingerprint

    def scaled(self, scaling: Scaling) -> Images:
        """The same images, scaled so."""
        return replace(self, scaling=scaling)

    def held(self, part: PartName, device: torch.device) -> Held:
        return Held(getattr(self.data, part), self.scaling, self.feed, device)

    def described(self) -> dict[str, Any]:
        scaling = {"input": self.feed.image, "mean": self.scaling.mean, "std": self.scaling.std}
        return {"classes": self.data.classes, "scaling": scaling}

    def told(self) -> list[str]:
        return []


@dataclass(frozen=True, eq=False)
class Texts:
    """Tokens of a corpus, memory-mapped. `characters` says how many each part has, `asked` which vocabulary was wanted.

    `limit` is the most windows that are trained on.
    """

    noun: ClassVar[str] = "windows"

    text: str
    fingerprint: str
    vocabulary: Vocabulary
    asked: str
    reading: Reading
    tokens: Mapping[PartName, Tokens]
    characters: Mapping[PartName, int]
    limit: int | None = None

    def windows(self, part: PartName) -> Windows:
        """A part, cut into windows."""
        whole = Windows(
            f"the {part} part of {self.text}",
            self.tokens[part],
            self.reading.length,
            self.reading.kept is not None,
            self.vocabulary.size,
        )
        return whole if part != "train" or self.limit is None else whole.first(self.limit)

    def word(self) -> str:
        """A word of the test part, for a text to begin with."""
        words = self.vocabulary.decode(self.tokens["test"][:NEAR]).split()
        return words[-2:][0] if words else " "  # the first and the last may be cut off

    def held(self, part: PartName, device: torch.device) -> HeldTexts:
        share = len(self.tokens[part]) / max(1, self.characters[part])
        return HeldTexts(self.windows(part), share, self.reading, device)

    def described(self) -> dict[str, Any]:
        size = self.vocabulary.size
        return {"vocabulary": self.asked, "tokens": size, "characters": dict(self.characters)}

    def told(self) -> list[str]:
        sizes = [f"{len(self.windows(part)):,} {name}" for part, name in _NAMES.items()]
        lines = [
            f"{sum(map(len, self.tokens.values())):,} tokens, {self.vocabulary.size:,} different; "
            f"windows of {self.reading.length:,}: {', '.join(sizes)}"
        ]
        unused = self.reading.vocabulary - self.vocabulary.size
        if unused:
            lines.append(f"the network knows {self.reading.vocabulary:,} tokens: {unused:,} are never seen")
        return lines


_NAMES: dict[PartName, str] = {"train": "training", "validation": "validation", "test": "test"}


def is_text(data: str) -> bool:
    """Whether a source names texts."""
    return data.partition(":")[0] == "text"


# ------------------------------------------------------------------ from a source's name


def asked_supply(
    graph: ModelGraph,
    data: str,
    out: Path,
    *,
    vocabulary: str | None = None,
    limit: int | None = None,
    known: Known | None = None,
    console: Console | None = None,
) -> Supply:
    """What a network is to be trained on, as a user asks for it. Texts are written into the run's folder `out`.

    `known` is the vocabulary of the run whose weights training begins with: tokens must mean what they mean to these.

    Raises:
        UserError: as `open_images` and `open_texts`; a vocabulary is asked for where there is no text, or another one
            than the known one.
    """
    if not is_text(data):
        if vocabulary is not None:
            raise UserError(f"a vocabulary is one of text, but {data} has images", "--data text:PATH")
        images = open_data(data)
        return open_images(graph, images if limit is None else images.limited(limit))
    if known is None:
        return open_texts(graph, data, vocabulary or CHARACTERS, out, limit, console)
    if vocabulary not in (None, known.asked):
        raise UserError(
            f"the weights to begin with know the vocabulary of {known.name}, {known.asked}, and no {vocabulary}",
            "without --vocabulary, it is theirs",
        )
    return replace(open_texts(graph, data, known.vocabulary, out, limit, console), asked=known.asked)


@dataclass(frozen=True)
class Known:
    """A vocabulary of a run called `name`, where it was `asked` for as that."""

    name: str
    asked: str
    vocabulary: Vocabulary


def open_images(graph: ModelGraph, data: Data | str, scaling: Scaling | None = None) -> Images:
    """Images that fit a network; without a `scaling` they are scaled by their own mean and spread.

    Raises:
        UserError: there is no such source, or its images do not fit.
    """
    data = open_data(data) if isinstance(data, str) else data
    return Images(data, check_fits(graph, data), scaling or data.scaling)


def open_texts(
    graph: ModelGraph,
    data: str,
    vocabulary: str | Vocabulary,
    folder: Path | None = None,
    limit: int | None = None,
    console: Console | None = None,
) -> Texts:
    """Texts that fit a network, written as tokens into a folder, or into one that lasts as long as what is given back.

    Args:
        graph: what reads them.
        data: `text:PATH`, as `open_corpus` takes it.
        vocabulary: one that is there, or `characters`, `bytes`, `bpe:SIZE`.
        folder: where `vocabulary.json` and `tokens/` are to lie.
        limit: train on at most so many windows, the first.
        console: where it says what it reads, if anywhere.

    Raises:
        UserError: a file is no text; what the network reads is no text, or has too few tokens; the text is too short.
    """
    asked = "" if isinstance(vocabulary, Vocabulary) else vocabulary
    if asked:
        check_wanted(asked)
    corpus = open_corpus(data)
    if console is not None:
        console.print(f"{data}: {corpus}", highlight=False, markup=False, soft_wrap=True)
    fingerprint = corpus.fingerprint()
    if not isinstance(vocabulary, Vocabulary):
        vocabulary = made_for(asked, lambda: _characters(corpus), lambda: corpus.portions("train"))
    reading = check_reads(graph, data, vocabulary)
    own = Path(tempfile.mkdtemp(prefix="crate-dsl-")) if folder is None else None
    folder = folder or own
    assert folder is not None
    characters = tokenize(corpus, vocabulary, folder / TOKENS)
    texts = Texts(
        data,
        fingerprint,
        vocabulary,
        asked,
        reading,
        {part: open_tokens(folder / TOKENS / f"{part}.npy", vocabulary) for part in PARTS},
        characters,
        limit,
    )
    if own is not None:
        weakref.finalize(texts, shutil.rmtree, own, ignore_errors=True)
    try:
        _check_length(texts)
    except UserError:
        shutil.rmtree(folder / TOKENS)
        raise
    write_text(folder / VOCABULARY, vocabulary.to_json())
    return texts


def _characters(corpus: Corpus) -> frozenset[str]:
    return frozenset().union(*map(frozenset, corpus.portions()))


def _check_length(texts: Texts) -> None:
    """Every part has a window."""
    for part, name in _NAMES.items():
        if not len(texts.windows(part)):
            length = texts.reading.length
            raise UserError(
                f"{texts.text} is too short: {len(texts.tokens[part]):,} tokens are for {name}, and a window has "
                f"{length:,}",
                "more text; or shorter windows: --set context=…, if that is what the spec calls their length",
            )


def read_vocabulary(path: Path) -> Vocabulary:
    """A run's `vocabulary.json`. Raises `UserError` where it is not there or damaged."""
    try:
        with path.open("rb") as file:
            content = file.read(MAXIMUM_JSON + 1)
    except OSError as problem:
        raise UserError(f"{path} could not be read: {problem.strerror or problem}") from problem
    return from_json(content, str(path))
