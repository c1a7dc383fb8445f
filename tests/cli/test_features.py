"""`crate-dsl features`."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.conftest import Cli


def test_a_table(cli: Cli, trained: Path) -> None:
    result = cli("features", trained / "run", "--output", "logits.pool", "--random", "--pixels", "--probe")
    assert result.code == 0, result.err
    whose, images, _, columns, *rows = result.out.splitlines()
    assert whose == f"logits.pool of {trained / 'run'}"
    assert images.endswith("training and 359 test images of digits, 10 classes")
    assert columns.split() == [
        "test",
        "images",
        "right",
        "by",
        "20",
        "neighbours",
        "linear",
        "map",
        "dimensions",
    ]
    assert [row.split()[0] for row in rows] == ["logits.pool", "untrained", "pixels"]
    assert rows[2].endswith("of 64") and max(map(len, rows)) <= 80


def test_json(cli: Cli, trained: Path) -> None:
    asked = ("--output", "logits.pool", "--limit", 50, "--neighbours", 3, "--format", "json")
    result = cli("features", trained / "run", "--data", "digits", *asked)
    assert result.code == 0, result.err
    found = json.loads(result.out)
    (row,) = found["rows"]
    assert found["neighbours"] == 3 and found["train_images"] <= 50 and found["data"] == "digits"
    assert 0.1 < row["nearest"] <= 1 and row["probe"] is None and row["width"] == 16


def test_mistakes(cli: Cli, trained: Path) -> None:
    for asked, problem in [
        (
            (trained / "run",),
            "`small` has no output `features`\nhelp: --output: it can read `logits`, `logits.pool`",
        ),
        ((trained / "run", "--output", "logit"), "did you mean `logits`?"),
        ((trained / "run", "--output", "logits", "--limit", 10), "there are no 20 neighbours"),
        (
            (trained / "run", "--output", "logits", "--data", "mnist5k"),
            "the images of mnist5k are 1 x 28 x 28",
        ),
        ((trained / "small.crate",), "there is no run at"),
    ]:
        result = cli("features", *asked)
        assert result.code == 1 and problem in result.err, result.err
