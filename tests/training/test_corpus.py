"""Corpora: from files to tokens that lie in files of their own."""

from __future__ import annotations

import tracemalloc
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

import crate_dsl
from crate_dsl.language.diagnostics import UserError
from crate_dsl.training.batches import Batches
from crate_dsl.training.supply import open_texts
from crate_dsl.training.text import PARTS, open_corpus, open_tokens, tokenize
from crate_dsl.training.train import train
from crate_dsl.training.vocabulary import Bytes, made_for
from tests.training.texts import TINY, words


def refused(text: str) -> str:
    with pytest.raises(UserError) as caught:
        for _ in open_corpus(text).portions():
            pass
    return str(caught.value)


# ------------------------------------------------------------------ files


def test_the_files_of_a_folder_are_taken_in_order_of_their_names(tmp_path: Path) -> None:
    for name in ["b.txt", "a/z.txt", "a/b/c.txt", "c.TXT", "notes.md", ".hidden.txt", ".git/x.txt"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"[{name}]")
    (tmp_path / "loop").symlink_to(tmp_path)

    def read(text: str) -> str:
        return "".join(open_corpus(text).portions())

    assert read(f"text:{tmp_path}") == "[a/b/c.txt][a/z.txt][b.txt]"
    assert read(f"text:{tmp_path}/b.txt") == "[b.txt]"
    # A file that is named is taken whatever its name is.
    assert read(f"text:{tmp_path}/notes.md") == "[notes.md]"
    assert read(f"text:{tmp_path}/*.txt") == "[b.txt]"
    assert read(f"text:{tmp_path}/a/**/*.txt") == "[a/b/c.txt][a/z.txt]"


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path: Path) -> None:
    (tmp_path / "a[1].txt").write_text("one")
    (tmp_path / "a1.txt").write_text("other")
    assert "".join(open_corpus(f"text:{tmp_path}/a[1].txt").portions()) == "one"


@pytest.mark.parametrize("portion", [1, 2, 3, 7, 100, 2**20])
def test_parts_and_portions_are_the_whole_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, portion: int
) -> None:
    monkeypatch.setattr("crate_dsl.training.text.PORTION", portion)
    texts = [words(90), "é", "", words(41, seed=1), "no-space-at-all" * 9, "\n "]
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.txt").write_bytes(text.encode())
    corpus = open_corpus(f"text:{tmp_path}")
    whole = "".join(texts)
    assert "".join(corpus.portions()) == whole
    parts = {part: "".join(corpus.portions(part)) for part in PARTS}
    assert "".join(parts.values()) == whole
    held_back = len(whole.encode()) * 0.05
    assert all(abs(len(parts[part].encode()) - held_back) <= 4 for part in ("validation", "test"))
    before = corpus.fingerprint()
    assert open_corpus(f"text:{tmp_path}").fingerprint() == before
    (tmp_path / "1.txt").write_bytes("è".encode())
    assert open_corpus(f"text:{tmp_path}").fingerprint() != before


@pytest.mark.parametrize("size", range(100, 112))
def test_no_border_lies_within_a_character(tmp_path: Path, size: int) -> None:
    for sign in ["é", "語", "😀"]:
        path = tmp_path / f"{sign}{size}.txt"
        path.write_text("a" * (size % 5) + sign * size)
        parts = ["".join(open_corpus(f"text:{path}").portions(part)) for part in PARTS]
        assert "".join(parts) == path.read_text()
        assert parts[1] and parts[2]


def test_little_is_held_back_of_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crate_dsl.training.text.MOST_HELD_BACK", 12)
    (tmp_path / "a.txt").write_text("a" * 1000)
    assert open_corpus(f"text:{tmp_path}").borders == (0, 976, 988, 1000)


@pytest.mark.parametrize("portion", [32, 250, 2**20])
def test_tokens_do_not_depend_on_portions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, portion: int
) -> None:
    text = words(700) + "\n\n  spaced   out\n" + words(50, seed=2)
    (tmp_path / "a.txt").write_text(text)
    vocabulary = made_for("bpe:300", lambda: text, lambda: [text])
    corpus = open_corpus(f"text:{tmp_path}")
    parts = ["".join(corpus.portions(part)) for part in PARTS]
    monkeypatch.setattr("crate_dsl.training.text.PORTION", portion)
    characters = tokenize(corpus, vocabulary, tmp_path / "tokens")
    assert list(characters.values()) == [len(part) for part in parts]
    for part, wanted in zip(PARTS, parts, strict=True):
        ids_t = open_tokens(tmp_path / "tokens" / f"{part}.npy", vocabulary)
        np.testing.assert_array_equal(ids_t, vocabulary.encode(wanted))
        assert ids_t.dtype == np.uint16


def test_more_tokens_than_sixteen_bits_count_take_more(tmp_path: Path) -> None:
    class Large(Bytes):
        @property
        def size(self) -> int:
            return 2**16 + 1

    (tmp_path / "a.txt").write_text(words(100))
    tokenize(open_corpus(f"text:{tmp_path}"), Large(), tmp_path / "tokens")
    assert open_tokens(tmp_path / "tokens" / "train.npy", Large()).dtype == np.uint32
    with pytest.raises(UserError, match=r"train\.npy is damaged: it holds uint32 of shape"):
        open_tokens(tmp_path / "tokens" / "train.npy", Bytes())


def test_memory_does_not_grow_with_the_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crate_dsl.training.text.PORTION", 2**13)
    graph = crate_dsl.load(TINY, set={"vocab": 300})

    def peak(copies: int, wanted: str) -> int:
        folder = tmp_path / f"{copies}-{wanted}"
        folder.mkdir()
        for number in range(4):
            (folder / f"{number}.txt").write_bytes(words(4000).encode() * copies)
        tracemalloc.start()
        texts = open_texts(graph, f"text:{folder}", wanted, folder)
        held = texts.held("train", torch.device("cpu"))
        for _ in islice(Batches(held, 8, seed=0), 20):
            pass
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    for wanted in ("characters", "bytes"):
        small, large = peak(1, wanted), peak(8, wanted)
        assert large < 1.2 * small + 2**14, (small, large)
    assert (tmp_path / "8-bytes" / "0.txt").stat().st_size > 10 * 2**13  # a corpus is many portions


# ------------------------------------------------------------------ files that are none


def test_what_is_no_text(tmp_path: Path) -> None:
    assert "needs a path: text:PATH" in refused("text:")
    assert "there is no file or folder" in refused(f"text:{tmp_path}/none.txt")
    assert "no file is called so" in refused(f"text:{tmp_path}/*.txt")
    assert (
        f"holds no file whose name ends with .txt\nhelp: a pattern chooses others: text:'{tmp_path}/*.md'"
        in (refused(f"text:{tmp_path}"))
    )
    assert "is neither a file nor a folder" in refused("text:/dev/zero")
    assert "could not be read: File name too long" in refused(f"text:{'a' * 5000}")
    (tmp_path / "a.txt").write_bytes(b"")
    assert "is empty" in refused(f"text:{tmp_path}")


@pytest.mark.parametrize("portion", [3, 8, 2**20])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"caf\xe9 au lait", "a.txt is no text in UTF-8: byte 3 is 0xe9\nhelp: another encoding"),
        ("naïve ".encode() * 9 + b"\xff", "byte 63 is 0xff"),
        (b"0123456789\xe2\x82", "byte 10 is 0xe2"),  # a character that the file's end cuts off
        (b"0123456789\x80abc", "byte 10 is 0x80"),
        (b"\xed\xa0\x80 half of a pair", "byte 0 is 0xed"),
        ("é\0".encode(), "a.txt is no text: byte 2 is 0"),
        (bytes(range(256)), "a.txt is no text: byte 0 is 0"),
        ("wide".encode("utf-16"), "is no text"),
    ],
)
def test_the_first_byte_that_is_no_text_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, said: str, portion: int
) -> None:
    monkeypatch.setattr("crate_dsl.training.text.PORTION", portion)
    (tmp_path / "a.txt").write_bytes(content)
    (tmp_path / "b.txt").write_bytes(b"a whole text")
    assert said in refused(f"text:{tmp_path}")


def test_a_file_that_becomes_shorter(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"whole")
    corpus = open_corpus(f"text:{tmp_path}")
    (tmp_path / "a.txt").write_bytes(b"who")
    with pytest.raises(UserError, match=r"a\.txt became shorter while it was read"):
        list(corpus.portions())
    (tmp_path / "a.txt").unlink()
    with pytest.raises(UserError, match=r"a\.txt could not be read: No such file or directory"):
        list(corpus.portions())


def test_what_fails_leaves_nothing_behind(
    tmp_path: Path, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_bytes(plain.read_bytes() + b"\xff")
    out = tmp_path / "run"
    for data, said, asked in [
        (f"text:{tmp_path}", "is no text in UTF-8", {"vocab": 256}),
        (f"text:{plain}", "too short: 309 tokens are for validation", {"vocab": 256, "context": 512}),
    ]:  # fmt: skip
        with pytest.raises(UserError, match=said):
            train(TINY, data, out, set=asked, vocabulary="bytes", progress=False)
        assert not out.exists() or not list(out.iterdir())

    def interrupted(self: Bytes, text: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Bytes, "encode", interrupted)
        train(TINY, f"text:{plain}", out, set={"vocab": 256}, vocabulary="bytes", progress=False)
    assert not list(out.iterdir())
    graph = crate_dsl.load(TINY)
    texts = open_texts(graph, f"text:{plain}", "characters")
    folder = Path(str(texts.tokens["train"].filename)).parent.parent  # type: ignore[union-attr]
    assert folder.is_dir()
    del texts
    assert not folder.exists()
