"""The benchmark of features without labels, small: two runs, the table, and nothing trained twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import self_supervision

PRETEXT = """
model pretext(dim = 12) {
    input image : float[1, 8, 8]
    stage reader = patchify(4) -> linear(dim) -> compress(3, rank = 4) -> pool
    scores   = image -> rotations -> each { reader } -> linear(4)
    features = image -> reader
    output features
    objective rotation(scores)
    train { optimizer = adamw(lr = 1e-2)  epochs = 3  batch = 16 }
}
model supervised(dim = 12) {
    input  image : float[1, 8, 8]
    target label : index(10)
    logits = image -> patchify(4) -> linear(dim) -> compress(3, rank = 4) -> pool -> norm -> linear(10)
    output logits
    objective cross_entropy(logits, label)
    train { optimizer = adamw(lr = 1e-2)  epochs = 3  batch = 16 }
}
"""


def test_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "two.crate").write_text(PRETEXT)
    networks = {
        "pretext": (f"{tmp_path}/two.crate:pretext", "features"),
        "supervised": (f"{tmp_path}/two.crate:supervised", "logits.norm"),
    }
    monkeypatch.setattr(self_supervision, "NETWORKS", networks)
    monkeypatch.setattr(self_supervision, "RANDOM", ("pretext",))
    asked = ["--data", "digits", "--out", str(tmp_path / "runs"), "--limit", "90", "--epochs", "1"]
    asked += ["--numbers", str(tmp_path / "numbers.json"), "--neighbours", "5"]
    self_supervision.main(asked)
    first = json.loads((tmp_path / "numbers.json").read_text())
    said = capsys.readouterr().out
    assert list(first["rows"]) == ["pretext", "pretext, untrained", "pixels", "supervised"]
    assert all(f"{name} " in said for name in first["rows"])
    row = first["rows"]["pretext"]
    # 90 images of all classes in proportion are 88 or so: five batches of 16. Of 580 weights, 204 map patches, 52 are
    # the head's, 324 are those of `compress`: 144 subspaces, a map of 156, a norm of 24.
    assert (row["epochs"], row["images_seen"], row["parameters"]) == (1, 80, 580)
    assert first["rows"]["pixels"]["width"] == 64 and first["neighbours"] == 5

    def trained_again(*_: object, **__: object) -> None:
        raise AssertionError("it was there already")

    monkeypatch.setattr(self_supervision, "train", trained_again)
    self_supervision.main(asked)
    assert json.loads((tmp_path / "numbers.json").read_text()) == first
