"""The benchmark of lengths: the arithmetic of exponents, that both steps are causal, and all of it, small."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import crate_dsl
from benchmarks import lengths

#: Rounding of float32 in one step.
SINGLE = 1e-5


def test_exponents_are_those_of_the_costs() -> None:
    rows = {str(n): {"median": 3e-9 * n**2, "mebibytes": n / 512} for n in (256, 1024, 4096)}
    found = lengths.exponents(rows)
    assert found["median"] == pytest.approx({"all": 2, "last": 2})
    assert found["mebibytes"] == pytest.approx({"all": 1, "last": 1}), "half a MiB is not counted"


def test_what_no_one_tells_has_no_exponent() -> None:
    rows = {str(n): {"median": float(n), "mebibytes": None} for n in (4, 8)}
    assert list(lengths.exponents(rows)) == ["median"]


@pytest.mark.parametrize("gradient", lengths.GRADIENTS)
def test_what_is_measured_is_causal(gradient: str) -> None:
    net = crate_dsl.build(crate_dsl.load(f"{lengths.ROOT / 'lengths.crate'}:{gradient}"), seed=0)
    tokens_bnd = torch.randn(2, 9, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert (net(tokens_bnd)[:, :5] - net(tokens_bnd[:, :5])).abs().max() < SINGLE


def test_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # A process for each would take half a minute.
    monkeypatch.setattr(lengths, "fresh", lambda function, *arguments: function(*arguments))
    lengths.main(["--lengths", "8", "16", "--seconds", "0", "--numbers", str(tmp_path / "numbers.json")])
    found = json.loads((tmp_path / "numbers.json").read_text())["steps"]
    assert list(found) == [f"{gradient}, {way}" for gradient in lengths.GRADIENTS for way in lengths.WAYS]
    assert all(list(one["lengths"]) == ["8", "16"] and "median" in one["exponents"] for one in found.values())
    assert "p at the end" in capsys.readouterr().out
