"""Texts as tokens: from files to whole numbers that lie in files of their own, and windows cut from these.

Nothing here holds a corpus: text is read in portions, tokens are memory-mapped. Axes: t tokens of a part, b windows of
a batch, n tokens of a window.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from crate_dsl.language.diagnostics import UserError
from crate_dsl.training.files import folder_written_aside
from crate_dsl.training.vocabulary import Vocabulary

#: Bytes of a corpus that are read at once; what is held of it is some such portions.
PORTION = 2**20
#: The share of a corpus that is held back for validation, and the same again for the test: it ends the corpus.
SHARE = 0.05
#: More bytes would only be missing from training: the mean of 500,000 losses is known to within 0.3 %.
MOST_HELD_BACK = 2**19

PartName = Literal["train", "validation", "test"]
#: The parts of a corpus, in the order in which they lie in it.
PARTS: tuple[PartName, ...] = get_args(PartName)
#: What a folder's files must be called to be taken for texts.
SUFFIX = ".txt"

Tokens = NDArray[np.uint16] | NDArray[np.uint32]


# ------------------------------------------------------------------ the files


@dataclass(frozen=True)
class Corpus:
    """Files, one after the other; `text` is how they were asked for, `sizes` are their bytes.

    It is cut by place: its last twentieth is the test part, the twentieth before that is for validation.
    """

    text: str
    files: tuple[Path, ...]
    sizes: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(self.sizes)

    def __str__(self) -> str:
        number = len(self.files)
        return f"{number:,} {'file' if number == 1 else 'files'}, {self.size / 1e6:,.2f} MB"

    @cached_property
    def borders(self) -> tuple[int, int, int, int]:
        """The byte at which each part begins, and the end; none within a character."""
        held_back = min(int(self.size * SHARE), MOST_HELD_BACK)
        begins = [self._whole(self.size - times * held_back) for times in (2, 1)]
        return 0, begins[0], begins[1], self.size

    def _whole(self, border: int) -> int:
        """The first byte from a border on with which a character begins."""
        for path, begin, size in self._places:
            if begin <= border < begin + size:
                near = _read(path, border - begin, 4)
                return border + next((at for at, byte in enumerate(near) if byte & 0xC0 != 0x80), len(near))
        return border

    @property
    def _places(self) -> Iterator[tuple[Path, int, int]]:
        """Each file, the byte of the corpus at which it begins, and its size."""
        return zip(self.files, accumulate((0, *self.sizes[:-1])), self.sizes, strict=True)

    def fingerprint(self) -> str:
        """Says whether two readings gave the same bytes in the same order."""
        digest = blake2b(digest_size=16)
        for _, _, block, _ in self._blocks(0, self.size):
            digest.update(block)
        return digest.hexdigest()

    def portions(self, part: PartName | None = None) -> Iterator[str]:
        """The text of a part, or of everything, bit by bit: cut before white space, where there is some.

        So a vocabulary of pieces gives the same tokens whatever the portions are.

        Raises:
            UserError: a file is no text in UTF-8, or shorter than it was.
        """
        at = PARTS.index(part) if part is not None else 0
        begin, end = self.borders[at], self.borders[at + 1] if part is not None else self.size
        held = ""
        for text in self._decoded(begin, end):
            held += text
            cut = _last_cut(held)
            yield held[:cut]
            held = held[cut:]
        if held:
            yield held

    def _decoded(self, begin: int, end: int) -> Iterator[str]:
        """Bytes from `begin` to `end` as text; a character is never parted, and no file ends within one."""
        left = b""
        for path, offset, block, last in self._blocks(begin, end):
            offset, block = offset - len(left), left + block
            # The last character of a block may go on in the next one.
            whole = len(block) if last else _whole_characters(block)
            left, zero = block[whole:], block.find(0, 0, whole)
            try:
                text = block[: whole if zero < 0 else zero].decode("utf-8")
            except UnicodeDecodeError as problem:
                byte, at = block[problem.start], offset + problem.start
                raise UserError(
                    f"{path} is no text in UTF-8: byte {at:,} is 0x{byte:02x}",
                    f"another encoding is converted first: iconv -f latin1 -t utf-8 {path.name} > …",
                ) from problem
            if zero >= 0:
                raise UserError(f"{path} is no text: byte {offset + zero:,} is 0")
            yield text

    def _blocks(self, begin: int, end: int) -> Iterator[tuple[Path, int, bytes, bool]]:
        """Blocks of bytes, each with its file, its place in it, and whether it is the file's last."""
        for path, start, size in self._places:
            first, last = max(begin - start, 0), min(end - start, size)
            if first >= last:
                continue
            for at in range(first, last, PORTION):
                block = _read(path, at, min(PORTION, last - at))
                if len(block) < min(PORTION, last - at):
                    raise UserError(f"{path} became shorter while it was read")
                yield path, at, block, at + len(block) == size


def _read(path: Path, at: int, size: int) -> bytes:
    """Some bytes of a file, fewer where it ends."""
    try:
        with path.open("rb") as file:
            file.seek(at)
            return file.read(size)
    except OSError as problem:
        raise UserError(f"{path} could not be read: {problem.strerror or problem}") from problem


def _whole_characters(block: bytes) -> int:
    """How many bytes of a block are whole characters, if the last one is cut off."""
    for back in range(1, min(4, len(block)) + 1):
        byte = block[-back]
        if byte & 0xC0 != 0x80:  # with this byte a character begins
            length = 1 if byte < 0xC0 else 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return len(block) - back if length > back else len(block)
    return len(block)


def _last_cut(text: str) -> int:
    """The last place between something and white space; the end, where there is none."""
    at = len(text) - 1
    while at > 0 and not (text[at].isspace() and not text[at - 1].isspace()):
        at -= 1
    return at if at > 0 else len(text)


def open_corpus(text: str) -> Corpus:
    """`text:PATH`: a file, the `.txt` files of a folder and of those within it, or a pattern (`plays/*_gut.txt`).

    Files are taken in order of their names; hidden ones are not looked at.

    Raises:
        UserError: there are none, or they are empty.
    """
    _, _, place = text.partition(":")
    if not place:
        raise UserError("`text` needs a path: text:PATH", "a file, a folder of .txt files, or a pattern")
    try:
        files = _files(text, place)
        corpus = Corpus(text, tuple(files), tuple(file.stat().st_size for file in files))
    except OSError as problem:
        raise UserError(f"{text} could not be read: {problem.strerror or problem}") from problem
    if not corpus.size:
        raise UserError(f"{text} is empty")
    return corpus


def _files(text: str, place: str) -> list[Path]:
    """The files that a path or a pattern names, in order of their names; at least one."""
    path = Path(place).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        files = sorted(file for file in _within(path) if file.suffix == SUFFIX)
        if not files:
            raise UserError(
                f"{text}: {path} holds no file whose name ends with {SUFFIX}",
                f"a pattern chooses others: text:'{path}/*.md'",
            )
        return files
    if path.exists():
        raise UserError(f"{text}: {path} is neither a file nor a folder")
    if not glob.has_magic(place):
        raise UserError(f"{text}: there is no file or folder `{path}`")
    found = map(Path, glob.glob(str(path), recursive=True))
    files = sorted(file for file in found if file.is_file())
    if not files:
        raise UserError(f"{text}: no file is called so")
    return files


def _within(folder: Path) -> Iterator[Path]:
    """The files of a folder and of those within it; links to folders are not followed."""

    def refused(problem: OSError) -> None:
        raise problem

    for root, folders, names in os.walk(folder, onerror=refused):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(root, name) for name in names if not name.startswith("."))


# ------------------------------------------------------------------ their tokens


def tokenize(corpus: Corpus, vocabulary: Vocabulary, folder: Path) -> dict[PartName, int]:
    """Write the tokens of each part as `train.npy`, …, in a folder that is there whole or not at all.

    How many characters each part has is given back.

    Raises:
        UserError: a file is no text, or the folder cannot be written.
    """
    characters = dict.fromkeys(PARTS, 0)
    with folder_written_aside(folder) as aside:
        for part in PARTS:
            with (aside / f"{part}.npy").open("wb") as file:
                count = 0
                _write_header(file, count, vocabulary)
                for text in corpus.portions(part):
                    ids_t = vocabulary.encode(text).astype(dtype_of(vocabulary))
                    file.write(ids_t.tobytes())
                    count += len(ids_t)
                    characters[part] += len(text)
                _write_header(file, count, vocabulary)
    return characters


def dtype_of(vocabulary: Vocabulary) -> np.dtype[Any]:
    """What a token is stored as."""
    return np.dtype("<u2" if vocabulary.size <= 2**16 else "<u4")


def _write_header(file: BinaryIO, count: int, vocabulary: Vocabulary) -> None:
    """The header of an `.npy` file. numpy leaves room in it, so that it is as long for every length."""
    file.seek(0)
    header = {"descr": np.lib.format.dtype_to_descr(dtype_of(vocabulary)), "fortran_order": False}
    np.lib.format.write_array_header_1_0(file, {**header, "shape": (count,)})


def open_tokens(path: Path, vocabulary: Vocabulary) -> Tokens:
    """The tokens of a part, memory-mapped.

    Raises:
        UserError: the file is not there, or damaged.
    """
    try:
        ids_t = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as problem:
        raise UserError(f"{path} is cut off or damaged: {problem}") from problem
    if ids_t.ndim != 1 or ids_t.dtype != dtype_of(vocabulary):
        raise UserError(f"{path} is damaged: it holds {ids_t.dtype} of shape {ids_t.shape}, and no tokens")
    return ids_t


# ------------------------------------------------------------------ windows of them


@dataclass(frozen=True, eq=False)
class Windows:
    """A part's tokens (t,), cut into windows of `length` tokens.

    The last window may be shorter where shorter ones are `padded`, and is left out where they are not.
    """

    name: str
    ids_t: Tokens
    length: int
    padded: bool
    vocabulary: int

    def __len__(self) -> int:
        return -(-len(self.ids_t) // self.length) if self.padded else len(self.ids_t) // self.length

    def take(self, chosen_b: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """The tokens of some windows, (b, n), and where they are real: behind the last token stands token 0.

        Raises:
            UserError: a number is no token.
        """
        places_bn = chosen_b[:, None] * self.length + np.arange(self.length)
        kept_bn = places_bn < len(self.ids_t)
        ids_bn = np.where(kept_bn, self.ids_t[np.minimum(places_bn, len(self.ids_t) - 1)], 0).astype(np.int64)
        if ids_bn.size and (most := int(ids_bn.max())) >= self.vocabulary:
            raise UserError(f"{self.name} is damaged: {most} is no token, there are {self.vocabulary:,}")
        return ids_bn, kept_bn

    def first(self, windows: int) -> Windows:
        """At most so many windows, the first."""
        return Windows(
            self.name, self.ids_t[: windows * self.length], self.length, self.padded, self.vocabulary
        )
