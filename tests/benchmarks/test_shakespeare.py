"""The benchmark of text: what is counted, and what is shown."""

from __future__ import annotations

from math import log
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import shakespeare


def test_counts_of_characters_and_of_pairs() -> None:
    train_bn, test_bn = np.array([[0, 1, 0, 1], [0, 0, 1, 2]]), np.array([[0, 1, 2]])
    # Pairs of the training windows, and one of each: 01 four times, 00, 10 and 12 twice, all others once.
    pairs = {
        (0, 0): 2,
        (0, 1): 4,
        (1, 0): 2,
        (1, 2): 2,
        (0, 2): 1,
        (1, 1): 1,
        (2, 0): 1,
        (2, 1): 1,
        (2, 2): 1,
    }
    found = shakespeare.counted(train_bn, test_bn, 3)
    of_pairs = -(log(pairs[0, 1] / 7) + log(pairs[1, 2] / 5)) / 2
    behind = [sum(count for (_, after), count in pairs.items() if after == token) / 15 for token in range(3)]
    assert found["pairs of characters"] == pytest.approx(of_pairs)
    assert found["characters"] == pytest.approx(-(log(behind[1]) + log(behind[2])) / 2)


def test_what_is_shown(tmp_path: Path) -> None:
    model: dict[str, Any] = {
        "parameters": 1234,
        "validation_loss": 1.5,
        "validation_bits_per_character": 2.164,
        "test_loss": 1.6,
        "test_bits_per_character": 2.308,
        "training_seconds": 60.0,
        "tokens_per_second": {"torch, cache": 321.0},
        "curve": [{"steps": 10, "train_loss": 2.0, "val_loss": 1.5}],
    }
    results = {"models": dict.fromkeys(shakespeare.MODELS, model)}
    lines = shakespeare.table(results).splitlines()
    assert lines[0] == "|  | CRATE | ToST | transformer |"
    assert lines[3] == "| validation loss, nats (bits) a character |" + " 1.500 (2.164) |" * 3
    assert lines[-1] == "| torch, cache: tokens a second |" + " 321 |" * 3
    shakespeare.chart(results, tmp_path / "chart.svg")
    assert "1,234 parameters" in (tmp_path / "chart.svg").read_text()
