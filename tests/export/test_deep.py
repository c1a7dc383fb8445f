"""Networks that make much of rounding: torch itself is as far from float64 as onnxruntime is."""

from __future__ import annotations

from pathlib import Path

import crate_dsl
from crate_dsl.compiler.prove import RELATIVE_TOLERANCE


def test_a_deep_network_is_held_to_float64(tmp_path: Path) -> None:
    deep = {"dim": 32, "depth": 96, "subspaces": 2, "patch": 8, "size": 32, "classes": 10}
    graph = crate_dsl.load("specs/crate.crate", set=deep)
    proof = crate_dsl.export(graph, crate_dsl.build(graph), tmp_path / "deep.onnx")
    given = [row for row in proof.rows if row.case.weights == "given"]
    assert proof.passed and all(row.error < RELATIVE_TOLERANCE * row.largest for row in given)
