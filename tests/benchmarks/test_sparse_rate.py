"""The benchmark of the sparse rate: its numbers are those of the loss, and all of it, small."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import crate_dsl
from benchmarks import sparse_rate

#: Rounding of float32 in rates of some 100 nats.
SINGLE = 1e-4


def test_both_specs_are_one_network() -> None:
    plain, _, _ = sparse_rate.SETTINGS["labels alone"]
    graphs = [crate_dsl.load(target) for target in (plain, sparse_rate.SPEC)]
    assert graphs[0].slots == graphs[1].slots
    assert graphs[0].train == graphs[1].train


def test_the_objective_of_layers_is_the_loss() -> None:
    graph = crate_dsl.load(sparse_rate.SPEC, set={"weight": 1, "penalty": sparse_rate.PENALTY})
    net = crate_dsl.build(graph, seed=0).eval()
    images_nchw = torch.randn(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    label_n = torch.tensor([1, 5, 7])
    with torch.no_grad():
        whole = float(crate_dsl.Objective(net)({"image": images_nchw, "label": label_n}))
        labels = float(torch.nn.functional.cross_entropy(net(images_nchw), label_n))
    layers = sparse_rate.layers_of(net, images_nchw)
    assert len(layers) == 4
    assert np.mean([layer["objective"] for layer in layers]) == pytest.approx(whole - labels, abs=SINGLE)


def test_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse_rate, "MEASURED", 8)
    lots = np.random.default_rng(0)
    images, labels = lots.integers(0, 256, (90, 28, 28), np.uint8), np.arange(90) % 10
    np.savez(tmp_path / "images.npz", images=images, labels=labels)
    arguments = {
        "--data": f"npz:{tmp_path / 'images.npz'}",
        "--seeds": 1,
        "--limit": 32,
        "--epochs": 1,
        "--out": tmp_path / "runs",
        "--numbers": tmp_path / "numbers.json",
        "--chart": tmp_path / "chart.svg",
    }
    sparse_rate.main([str(word) for pair in arguments.items() for word in pair])
    results = json.loads((tmp_path / "numbers.json").read_text())
    assert list(results["settings"]) == list(sparse_rate.SETTINGS)
    for found in results["settings"].values():
        assert len(found["layers"]) == 4 and 0 <= found["all_layers"]["zeros"] <= 1
    assert (tmp_path / "chart.svg").read_text().startswith("<?xml")
