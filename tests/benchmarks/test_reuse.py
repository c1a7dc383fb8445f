"""The benchmark of reuse, small, and again without training anything."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import reuse


@pytest.mark.filterwarnings("ignore::crate_dsl.language.diagnostics.Remark")
def test_every_way_is_measured_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (60, 28, 28), np.uint8), np.arange(60) % 10
    np.savez(tmp_path / "few.npz", x=x, y=y, x_test=x[:20], y_test=y[:20])
    data = f"npz:{tmp_path / 'few.npz'}"
    pretext = reuse.trained(
        reuse.PRETEXTS.format("rotated"),
        data,
        tmp_path / "pretext",
        recipe={"epochs": 1, "warmup": 0, "batch": 32},
    )
    monkeypatch.setattr(
        sys,
        "argv",
        f"reuse --data {data} --run {pretext.folder} --labels 40 --epochs 1 --out {tmp_path / 'runs'} "
        f"--json {tmp_path / 'reuse.json'}".split(),
    )
    reuse.main()
    results = json.loads((tmp_path / "reuse.json").read_text())
    ways = results["ways"]
    assert {way: (found["trained"], found["frozen"]) for way, found in ways.items()} == {
        "probe": (1_546, 208_160),
        "prompts": (3_594, 208_160),
        "fine-tuning": (209_706, 0),
    }
    assert all(
        0 <= value <= 100 for found in ways.values() for value in found["pretrained"] + found["random"]
    )
    said = capsys.readouterr().out
    assert "rotated, without labels; then 40 labels, 1 epochs" in said and "209,706" in said
    monkeypatch.setattr(reuse, "train", lambda *_, **__: pytest.fail("it is there already"))
    reuse.main()
    assert json.loads((tmp_path / "reuse.json").read_text()) == results
