"""The parity gate: a file that is there has passed, and one that fails leaves nothing."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from crate_dsl.compiler import export as export_module
from crate_dsl.compiler import prove as prove_module
from crate_dsl.compiler.build import build
from crate_dsl.compiler.export import export
from crate_dsl.compiler.functions import Body
from crate_dsl.compiler.lower import REWRITES
from crate_dsl.compiler.operators import Typing
from crate_dsl.compiler.prove import Case, Proof, ProofError, cases, drawn_inputs, measure, perturb
from crate_dsl.compiler.runtime import ONNXRUNTIME_ERRORS, open_session, read_metadata
from crate_dsl.compiler.steps.norm import onnx as norm_face
from crate_dsl.compiler.steps.norm.operator import Norm
from crate_dsl.language.diagnostics import UserError
from tests.export.specs import graph_of, images, text

CASE = Case("given", 2, 1.0)


def test_a_proved_file(tmp_path: Path) -> None:
    graph, net = images()
    net.train()
    before = copy.deepcopy(net.state_dict())
    proof = export(graph, net, tmp_path / "images.onnx", {"scaling": "none"})
    assert net.training
    net.eval()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert proof.passed and proof.worst < 1e-5
    assert [file.name for file in tmp_path.iterdir()] == ["images.onnx"]
    stored = read_metadata(tmp_path / "images.onnx")
    assert stored.proof is not None
    assert stored.proof == json.loads(json.dumps(proof.as_data()))
    assert stored.extra == {"scaling": "none", "lowered": ",".join(REWRITES)}
    onnx.checker.check_model(str(tmp_path / "images.onnx"), full_check=True)


def test_every_case_is_tried() -> None:
    graph, _ = text()
    tried = cases(graph)
    for weights in ("given", "perturbed"):
        mine = [case for case in tried if case.weights == weights]
        assert {case.batch for case in mine} == {1, 2, 5}
        assert {case.lengths["n"] for case in mine} == {1, 5, 9}
        assert all(case.scale == 1 for case in mine)  # nothing to scale: the only float input is drawn
    assert {case.scale for case in cases(images()[0])} == {0.01, 1, 10}


def test_lengths_leave_every_tensor_something() -> None:
    graph = graph_of(
        "model m { input x : float[n <= 7, 3]  input y : float[n - 2, 3]\n"
        "z = x -> linear(2)  w = y -> linear(2)  output z, w }"
    )
    assert {case.lengths["n"] for case in cases(graph)} == {3, 7}


def test_two_lengths_differ() -> None:
    graph = graph_of(
        "model m { input x : float[n <= 7, 3]  input y : float[m <= 9, 3]\n"
        "z = x -> linear(2)  w = y -> linear(2)  output z, w }"
    )
    assert all(case.lengths["n"] != case.lengths["m"] for case in cases(graph) if case.batch == 2)


def test_inputs_are_drawn_as_declared() -> None:
    graph, _ = text()
    feeds = drawn_inputs(graph, Case("given", 500, 1.0, {"n": 9}), np.random.default_rng(0))
    assert feeds["ids"].dtype == np.int64 and set(np.unique(feeds["ids"])) == set(range(17))
    assert feeds["kept"].dtype == np.bool_ and feeds["kept"][:, 0].all() and not feeds["kept"].all()
    assert feeds["noise"].dtype == np.float32
    assert abs(feeds["noise"].std() - 0.5) < 0.01  # 45,000 draws: a standard error of 0.0017


def test_texts_of_any_length_pass(tmp_path: Path) -> None:
    graph, net = text()
    proof = export(graph, net, tmp_path / "text.onnx")
    assert {row.output for row in proof.rows} == {"logits", "words"} and len(proof.rows) == 12
    lines = str(proof).splitlines()
    assert max(map(len, lines)) <= 80
    assert sum(line.endswith("ok") for line in lines) == len(proof.rows)  # no row is broken
    assert any("n = 9" in line and "logits" in line for line in lines)


def test_perturbing_moves_every_weight() -> None:
    _, net = images()
    moved = copy.deepcopy(net)
    perturb(moved)
    for name, value in moved.state_dict().items():
        assert (value != net.state_dict()[name]).all(), name


def wrong_norm(b: Body, op: Norm, typing: Typing, z_bnd: str, *, weight: str, bias: str | None = None) -> str:
    """Forgets the bias, which is zero at first: only perturbed weights show it."""
    return b("LayerNormalization", z_bnd, weight, axis=-1, epsilon=op.form.eps)


def test_a_wrong_face_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, net = images()
    monkeypatch.setattr(norm_face, "norm", wrong_norm)
    target = tmp_path / "images.onnx"
    target.write_text("what was there before")
    with pytest.raises(ProofError) as caught:
        export(graph, net, target)
    assert caught.value.exit_code == 3
    assert caught.value.proof is not None
    assert {row.case.weights for row in caught.value.proof.rows if not row.passed} == {"perturbed"}
    assert "FAIL" in str(caught.value) and "is not written" in str(caught.value)
    assert [file.name for file in tmp_path.iterdir()] == ["images.onnx"]
    assert target.read_text() == "what was there before"


@pytest.mark.parametrize(
    ("op_type", "complaint"),
    [("Nonsense", "checker refuses"), ("Neg", "checker refuses|differ|is of shape|is not written")],
)
def test_an_invalid_file_is_a_failed_proof(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, op_type: str, complaint: str
) -> None:
    graph, net = images()
    monkeypatch.setattr(norm_face, "norm", lambda b, op, typing, z, **named: b(op_type, z))
    with pytest.raises(ProofError, match=complaint):
        export(graph, net, tmp_path / "images.onnx")
    assert not list(tmp_path.iterdir())


def test_what_is_not_finite_fails() -> None:
    finite, broken = np.ones((2, 3), np.float32), np.full((2, 3), np.nan, np.float32)
    assert measure(CASE, "y", finite, finite).passed
    for pair in ((finite, broken), (broken, finite), (broken, broken), (np.inf * finite, np.inf * finite)):
        assert not measure(CASE, "y", *pair).passed
    assert "FAIL" in str(Proof((measure(CASE, "y", broken, finite),)))


def test_whole_numbers_must_be_equal() -> None:
    a = np.array([[1, 100_000]])
    assert measure(CASE, "y", a, a).passed
    assert not measure(CASE, "y", a, a + 1).passed


def test_the_tolerance_is_that_of_the_output() -> None:
    large = np.array([[1e4, 1.0]], np.float32)
    assert measure(CASE, "y", large, large + np.float32(0.5)).passed
    assert not measure(CASE, "y", large / 1e4, large / 1e4 + np.float32(0.5)).passed


def test_weights_too_large_for_one_file_lie_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_module, "EXTERNAL_BYTES", 1000)
    monkeypatch.setattr(export_module, "SMALL_BYTES", 100)
    graph, net = images()
    export(graph, net, tmp_path / "images.onnx")
    assert {file.name for file in tmp_path.iterdir()} == {"images.onnx", "images.onnx.data"}
    image = torch.randn(2, 3, 4, 6)
    result = open_session(tmp_path / "images.onnx")(image)["logits"]
    np.testing.assert_allclose(result, net(image).detach().numpy(), atol=1e-5)  # float32, some hundred terms
    (tmp_path / "images.onnx.data").unlink()
    with pytest.raises(UserError, match=r"images.onnx.data.*not beside it"):
        open_session(tmp_path / "images.onnx")


def test_a_network_that_is_not_float32_is_refused(tmp_path: Path) -> None:
    graph, net = images()
    with pytest.raises(UserError, match="float64, and float32 is what is exported"):
        export(graph, copy.deepcopy(net).double(), tmp_path / "images.onnx")


def test_a_network_that_diverged_is_refused(tmp_path: Path) -> None:
    graph, net = images()
    broken = copy.deepcopy(net)
    with torch.no_grad():
        broken.get_parameter("class_token")[1] = float("nan")
    with pytest.raises(UserError, match="`class_token` holds numbers that are not finite"):
        export(graph, broken, tmp_path / "images.onnx")


def test_the_network_of_another_spec_is_refused(tmp_path: Path) -> None:
    graph, _ = images()
    with pytest.raises(UserError, match="not the network of `images`"):
        export(graph, text()[1], tmp_path / "images.onnx")
    with pytest.raises(UserError, match="is of shape"):
        export(graph, build(graph_of(graph.sources[0].text, dim=12)), tmp_path / "images.onnx")


def test_paths_that_cannot_be_written(tmp_path: Path) -> None:
    graph, net = images()
    with pytest.raises(UserError, match="is a folder"):
        export(graph, net, tmp_path)
    with pytest.raises(UserError, match="there is no folder"):
        export(graph, net, tmp_path / "nowhere" / "images.onnx")


def test_onnxruntime_that_refuses_is_a_failed_proof(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, net = images()

    def refuse(path: object) -> None:
        raise ONNXRUNTIME_ERRORS[0]("no kernel")

    monkeypatch.setattr(prove_module, "bare_session", refuse)
    with pytest.raises(ProofError, match="onnxruntime refuses the exported file: no kernel"):
        export(graph, net, tmp_path / "images.onnx")
    assert not list(tmp_path.iterdir())
