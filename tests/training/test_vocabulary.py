"""Vocabularies: they write and read every text that they claim to, and nothing that is damaged."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crate_dsl.language.diagnostics import UserError
from crate_dsl.training.vocabulary import (
    LONGEST_PIECE,
    Bpe,
    Bytes,
    Vocabulary,
    check_wanted,
    from_json,
    made_for,
)

TEXT = "the cat sat on the mat; the rat sat on the hat. naïve café — 12 345\n\n\tend"


def made(wanted: str, text: str = TEXT) -> Vocabulary:
    return made_for(wanted, lambda: set(text), lambda: [text])


PIECES = made("bpe:280", TEXT * 3)
any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@given(any_text)
@settings(max_examples=60, deadline=None)
def test_what_is_written_is_read_again(text: str) -> None:
    for vocabulary in (Bytes(), PIECES, *([made("characters", text)] if text else [])):
        ids = vocabulary.encode(text)
        assert ids.dtype == np.int64
        assert vocabulary.decode(ids) == text
        assert not len(ids) or 0 <= ids.min() <= ids.max() < vocabulary.size
        again = from_json(vocabulary.to_json())
        assert again == vocabulary
        np.testing.assert_array_equal(again.encode(text), ids)


def test_characters_are_numbered_by_code_point() -> None:
    vocabulary = made("characters", "banana ß")
    assert (vocabulary.size, vocabulary.to_json()) == (5, '{"kind":"characters","characters":" abnß"}')
    assert vocabulary.encode("nab").tolist() == [3, 1, 2]


def test_bytes_are_their_own_numbers() -> None:
    assert Bytes().encode("aé").tolist() == [97, 0xC3, 0xA9]
    assert Bytes().decode([0xC3]) == "�"  # half a character


# ------------------------------------------------------------------ pieces, against the algorithm


def merged(word: bytes, vocabulary: Bpe) -> list[bytes]:
    """Sennrich et al. 2016, algorithm 1, applied: the merge that was learned first comes first."""
    parts = [bytes([byte]) for byte in word]
    for one, other in vocabulary.merges:
        a, b = vocabulary.pieces[one], vocabulary.pieces[other]
        at = 0
        while at < len(parts) - 1:
            if (parts[at], parts[at + 1]) == (a, b):
                parts[at : at + 2] = [a + b]
            at += 1
    return parts


@pytest.mark.parametrize("word", ["the", " the", " sat", "thesathat", " café", "—", "  "])
def test_pieces_are_merged_in_the_order_in_which_they_were_learned(word: str) -> None:
    assert isinstance(PIECES, Bpe)
    found = [PIECES.pieces[number] for number in PIECES.encode(word)]
    assert found == merged(word.encode(), PIECES)


def test_the_first_merge_is_the_commonest_pair() -> None:
    text = "abc abd abe xab"
    pairs = Counter(pair for word in ["abc", " abd", " abe", " xab"] for pair in pairwise(word))
    (first, _), *_ = pairs.most_common()
    vocabulary = made("bpe:257", text)
    assert isinstance(vocabulary, Bpe)
    assert vocabulary.merges == (tuple(map(ord, first)),)
    assert vocabulary.size == 257


def test_what_stands_together_once_becomes_no_piece() -> None:
    assert made("bpe:300", "abcdefg").size == 256
    assert made("bpe:300", TEXT * 3) == made("bpe:300", TEXT * 3)


def test_no_piece_is_longer_than_can_be_read_again() -> None:
    vocabulary = made("bpe:600", "a" * 100_000)  # in a moment, though it is one word
    assert isinstance(vocabulary, Bpe)
    assert max(map(len, vocabulary.pieces)) <= LONGEST_PIECE
    assert from_json(vocabulary.to_json()) == vocabulary


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ("chars", "there is no vocabulary `chars`\nhelp: did you mean `characters`?"),
        ("bpe", "from 257 to 262,144, but is given ``"),
        ("bpe:256", "from 257 to 262,144, but is given `256`"),
        ("bpe:1e3", "is given `1e3`"),
        ("bpe:²", "is given `²`"),
        ("bpe:99999999999", "is given `99999999999`"),
        ("bytes:256", "`bytes` takes no size, but is given `256`"),
    ],
)
def test_what_is_no_vocabulary(wanted: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        check_wanted(wanted)
    assert said in str(caught.value)


def test_a_character_that_is_unknown_is_shown_where_it_stands() -> None:
    vocabulary = made("characters", "to be or not ")
    with pytest.raises(
        UserError, match=r"`q` \(U\+0071\) is none of the 7 characters of the vocabulary: `to be q or not`"
    ):
        vocabulary.encode("to be q or not")
    with pytest.raises(UserError, match=r"U\+000A is none of"):
        vocabulary.encode("to\nbe")
    for whole in (Bytes(), PIECES):
        with pytest.raises(UserError, match=r"U\+D800 is no character"):
            whole.encode("a\ud800b")


@pytest.mark.parametrize("ids", [[-1], [0, 7], [2**40]])
def test_a_number_that_is_no_token(ids: list[int]) -> None:
    with pytest.raises(UserError, match="is no token: the vocabulary has 7, numbered from 0"):
        made("characters", "to be or not ").decode(ids)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is damaged"),
        ("[]", "is damaged"),
        ("{}", "is damaged: unable to extract tag using discriminator 'kind'"),
        ('{"kind": "words"}', "is damaged"),
        ('{"kind": "characters", "characters": ""}', "`characters.characters`"),
        ('{"kind": "characters", "characters": "ba"}', "they must stand in order of their code points, each once"),
        ('{"kind": "characters", "characters": "aa"}', "each once"),
        ('{"kind": "characters"}', "field required"),
        ('{"kind": "bytes", "size": 3}', "extra inputs are not permitted"),
        ('{"kind": "bpe", "merges": [[1]]}', "`bpe.merges.0.1`"),
        ('{"kind": "bpe", "merges": [[1, 256]]}', "a merge is of 1 and 256, but there are 256 pieces by then"),
        ('{"kind": "bpe", "merges": [[-1, 5]]}', "a merge is of -1 and 5"),
        ('{"kind": "bpe", "merges": [["a", "b"]]}', "`bpe.merges.0.0`"),
        (json.dumps({"kind": "bpe", "merges": [[97 if k == 0 else 255 + k] * 2 for k in range(12)]}), "longer than"),
    ],
)  # fmt: skip
def test_a_damaged_vocabulary(text: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        from_json(text, "vocabulary.json")
    assert said in str(caught.value)
    assert str(caught.value).startswith("vocabulary.json is ")


def test_more_than_a_vocabulary_is_not_read() -> None:
    with pytest.raises(UserError, match="is longer than 16,777,216 bytes"):
        from_json(" " * (2**24 + 1))
