"""Windows of texts, and how they come in batches."""

from __future__ import annotations

import math
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch

import crate_dsl
from crate_dsl.training.batches import Batches, HeldTexts
from crate_dsl.training.feed import check_reads
from crate_dsl.training.text import Windows
from crate_dsl.training.vocabulary import Bytes
from tests.training.texts import HIDDEN, TINY, texts_of


@pytest.mark.parametrize(("tokens", "length"), [(23, 5), (20, 5), (5, 5), (3, 5), (1, 5)])
@pytest.mark.parametrize("padded", [False, True])
def test_windows_hold_every_token_once(tokens: int, length: int, padded: bool) -> None:
    ids_t = np.arange(1, tokens + 1).astype(np.uint16)
    windows = Windows("a part", ids_t, length, padded, 100)
    assert len(windows) == (math.ceil if padded else math.floor)(tokens / length)
    if not len(windows):
        return
    ids_bn, kept_bn = windows.take(np.arange(len(windows))[::-1].copy())
    assert ids_bn.shape == kept_bn.shape == (len(windows), length)
    assert (ids_bn.dtype, kept_bn.dtype) == (np.int64, np.bool_)
    found = ids_bn[::-1][kept_bn[::-1]]
    np.testing.assert_array_equal(found, ids_t[: len(windows) * length])
    assert (ids_bn[~kept_bn] == 0).all()
    assert kept_bn.all() or padded
    np.testing.assert_array_equal(windows.first(1).take(np.array([0]))[0], ids_bn[-1:])
    assert len(windows.first(1)) == 1


def test_an_epoch_sees_each_window_once_in_an_order_of_its_own(plain: Path) -> None:
    held = texts_of(TINY, plain).held("train", torch.device("cpu"))
    whole = {tuple(row.tolist()) for row in held.batch(slice(0, len(held)))["ids"]}

    def epoch(number: int, seed: int = 0) -> list[tuple[int, ...]]:
        batches = Batches(held, 1, seed)
        batches.epoch = number
        return [tuple(batch["ids"][0].tolist()) for batch in batches]

    assert len(epoch(0)) == len(held)
    assert set(epoch(0)) == set(epoch(1)) == whole
    assert epoch(0) == epoch(0) != epoch(1)
    assert epoch(0) != epoch(0, seed=1)


def test_padding_is_marked_where_the_spec_asks_for_it(plain: Path) -> None:
    texts = texts_of(HIDDEN, plain)
    held = texts.held("test", torch.device("cpu"))
    batch = held.batch(slice(0, len(held)))
    rest = len(texts.tokens["test"]) % 16
    assert rest
    assert batch["kept"].sum(dim=1).tolist() == [16] * (len(held) - 1) + [rest]
    assert held.weight(batch) == len(texts.tokens["test"])
    assert set(texts_of(TINY, plain).held("test", torch.device("cpu")).batch(slice(0, 2))) == {"ids"}


def test_what_is_measured_at_once_is_bounded() -> None:
    graph = crate_dsl.load(f"{files('crate_dsl.specs') / 'text.crate'}:crate_gpt")
    reading = check_reads(graph, "text:x", Bytes())
    assert (reading.length, reading.vocabulary, reading.predicts, reading.scores) == (
        1024,
        50304,
        "next",
        "logits",
    )
    windows = Windows("a part", np.zeros(2**12, np.uint16), 1024, False, 256)
    assert HeldTexts(windows, 1.0, reading, torch.device("cpu")).portion == 1
