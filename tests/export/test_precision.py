"""Files in fewer bits: held against formulas in float64, judged on real images, and not written where they disagree."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import crate_dsl
from crate_dsl.cli import main
from crate_dsl.compiler import judge as judge_module
from crate_dsl.compiler.emit import emit
from crate_dsl.compiler.graph import ModelGraph, Value
from crate_dsl.compiler.judge import ReducedProof, Samples, compared
from crate_dsl.compiler.lower import lower_graph
from crate_dsl.compiler.lower import precision as precision_module
from crate_dsl.compiler.lower.calibrate import calibrate, least_error
from crate_dsl.compiler.lower.precision import Precision, Range, reduced, store, worthwhile
from crate_dsl.compiler.prove import ProofError
from crate_dsl.compiler.runtime import options
from crate_dsl.compiler.steps.reduced.operator import HalfAffine, Int8Affine
from crate_dsl.compiler.weights import plain_weights
from crate_dsl.language.diagnostics import UserError
from crate_dsl.training.real import samples_of
from crate_dsl.training.run import open_run
from crate_dsl.training.sources import open_data
from crate_dsl.training.supply import open_images
from crate_dsl.training.train import train
from tests.export.specs import graph_of, images, weights_of

TINY = Path(__file__).parents[1] / "training" / "tiny.crate"
INSIDE = """
model inside {
    input image : float[1, 8, 8]
    stage encoder = repeat(2) { compress(2, rank = 8)  sparsify(step = 0.1, penalty = 0.1) }
    z = image -> patchify(4) -> linear(16) -> encoder
    output z
    objective mse(z, z) + 0.1 * sparse_rate(encoder, eps = 0.5)
}
"""
#: Rounding of float32 in sums of a dozen products.
SINGLE = 1e-5
#: Half the spacing of each type at 1; errors of a short network are a few of these.
ROUNDING = {"float16": 2.0**-11, "bfloat16": 2.0**-8}

ONE = "model one { input x : float[4, 6]  y = x -> linear(5)  output y }"
SQUARE = "model square { input x : float[4, 6]  y = x -> sparsify(step = 0.1, penalty = 0.1)  output y }"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that tells digits apart."""
    folder = tmp_path_factory.mktemp("precision") / "run"
    train(str(TINY), "digits", folder, recipe={"epochs": 25}, device="cpu", progress=False)
    return folder


@pytest.fixture
def whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every map pays, however small."""
    monkeypatch.setattr(precision_module, "LEAST_SHARE", 0.0)


def lowered_one(text: str) -> tuple[ModelGraph, dict[str, np.ndarray]]:
    graph = graph_of(text)
    net = crate_dsl.build(graph, seed=1)
    with torch.no_grad():
        for weight in net.parameters():
            weight.add_(0.2 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(2)))
    lowered = lower_graph(graph, plain_weights(graph, net))
    return lowered.graph, dict(lowered.weights)


def session_of(graph: ModelGraph, weights: Any, file: Path) -> onnxruntime.InferenceSession:
    """The session of a reduced network; what onnxruntime made of it lies beside the file, as `best.onnx`."""
    onnx.save(store(emit(graph, weights), graph), str(file))
    onnx.checker.check_model(str(file), full_check=True)
    chosen = options()
    chosen.optimized_model_filepath = str(file.with_name("best.onnx"))
    return onnxruntime.InferenceSession(str(file), chosen, providers=["CPUExecutionProvider"])


def tokens(count: int) -> np.ndarray:
    return np.random.default_rng(3).standard_normal((count, 4, 6)).astype(np.float32)


# ------------------------------------------------------------------ the maps


def test_int8_is_its_formula(tmp_path: Path, whole: None) -> None:
    graph, weights = lowered_one(ONE)
    between = Range(-2.0, 2.5)  # some of the numbers are clipped
    (path,) = worthwhile(graph)
    small = reduced(graph, weights, "int8", {path: between})
    x_bnd = tokens(9)
    (found,) = session_of(*small, tmp_path / "one.onnx").run(None, {"x": x_bnd})

    matrix, bias = (weights[f"{path}.{name}"].astype(np.float64) for name in ("matrix", "bias"))
    step, steps = np.float64(np.float32(4.5 / 255)), np.abs(matrix).max(0) / 127
    origin = np.round(2.0 / step)
    q_bnd = np.clip(np.round(x_bnd.astype(np.float64) / step) + origin, 0, 255) - origin
    whole_bias = np.round(bias / (step * steps))
    wanted = step * steps * (q_bnd @ np.round(matrix / steps) + whole_bias)
    assert np.abs(found - wanted).max() < SINGLE
    assert np.abs(found - (x_bnd @ matrix + bias)).max() > 100 * SINGLE  # it is not float32

    net = crate_dsl.build(small[0])
    net.load_state_dict({name: torch.from_numpy(array) for name, array in small[1].items()})
    assert np.abs(net.eval()(torch.from_numpy(x_bnd)).detach().numpy() - wanted).max() < SINGLE


def test_onnxruntime_makes_products_of_whole_numbers(tmp_path: Path) -> None:
    """It silently goes back to float32 where the file is not as it expects."""
    graph, net = images()
    lowered = lower_graph(graph, weights_of(net))
    ranges = dict.fromkeys(worthwhile(lowered.graph), Range(-3.0, 3.0))
    session_of(*reduced(lowered.graph, lowered.weights, "int8", ranges), tmp_path / "images.onnx")
    kinds = [node.op_type for node in onnx.load(str(tmp_path / "best.onnx")).graph.node]
    assert kinds.count("QGemm") == len(ranges) > 6


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_sixteen_bits_round_the_matrix_alone(precision: Precision, tmp_path: Path) -> None:
    graph, weights = lowered_one(ONE)
    x_bnd = tokens(9)
    small = reduced(graph, weights, precision)
    (found,) = session_of(*small, tmp_path / "one.onnx").run(None, {"x": x_bnd})
    (node,) = (node for node in graph.nodes if node.word == "affine")
    kind = np.float16 if precision == "float16" else ml_dtypes.bfloat16
    matrix = weights[f"{node.path}.matrix"].astype(kind).astype(np.float64)
    wanted = x_bnd @ matrix + weights[f"{node.path}.bias"]
    assert np.abs(found - wanted).max() < 4 * ROUNDING["float16"]  # float16 may round the tokens too
    kinds = {
        tensor.name: tensor.data_type for tensor in onnx.load(str(tmp_path / "one.onnx")).graph.initializer
    }
    assert onnx.helper.tensor_dtype_to_np_dtype(kinds[f"{node.path}.matrix"]) == kind
    assert kinds[f"{node.path}.bias"] == onnx.TensorProto.FLOAT


@pytest.mark.parametrize("precision", ["float16", "bfloat16", "int8"])
def test_what_is_near_the_identity_is_rounded_without_it(
    precision: Precision, tmp_path: Path, whole: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, weights = lowered_one(SQUARE)
    x_bnd = tokens(64)
    (wanted,) = session_of(graph, weights, tmp_path / "exact.onnx").run(None, {"x": x_bnd})
    ranges = dict.fromkeys(worthwhile(graph), Range(-2.3, 2.3))
    errors = []
    for apart in (precision_module._apart, lambda matrix: (matrix, False)):
        monkeypatch.setattr(precision_module, "_apart", apart)
        small = reduced(graph, weights, precision, ranges)
        (op,) = (n.operator for n in small[0].nodes if isinstance(n.operator, HalfAffine | Int8Affine))
        (found,) = session_of(*small, tmp_path / "small.onnx").run(None, {"x": x_bnd})
        errors.append((op.near, float(np.square(found - wanted).mean() ** 0.5)))
    (near, with_identity_apart), (other, whole_matrix) = errors
    assert near and not other
    assert with_identity_apart < 0.6 * whole_matrix


def test_a_bias_that_is_large_beside_its_column(tmp_path: Path, whole: None) -> None:
    """In steps of an almost empty column it would not fit into 32 bits."""
    graph, weights = lowered_one(ONE)
    (path,) = worthwhile(graph)
    weights[f"{path}.matrix"][:, 0] = 1e-12
    weights[f"{path}.matrix"][:, 1] = 0.0
    weights[f"{path}.bias"][:2] = 7.0
    small = reduced(graph, weights, "int8", {path: Range(-3, 3)})
    (found,) = session_of(*small, tmp_path / "one.onnx").run(None, {"x": tokens(2)})
    assert np.abs(found[..., :2] - 7.0).max() < SINGLE


def test_float16_holds_no_number_above_65504() -> None:
    graph, weights = lowered_one(ONE)
    (path,) = worthwhile(graph)
    weights[f"{path}.matrix"][0, 0] = 1e5
    with pytest.raises(UserError, match=r"weights that float16 cannot hold: up to 1.0e\+05"):
        reduced(graph, weights, "float16")
    reduced(graph, weights, "bfloat16")


# ------------------------------------------------------------------ ranges


def test_zero_is_exact_and_the_range_is_covered() -> None:
    for low, high in ((-1.3, 2.9), (0.5, 2.0), (-2.0, -0.5), (0.0, 0.0)):
        between = Range(low, high)
        assert 0 <= between.origin <= 255
        assert (0 - between.origin) * between.step <= min(low, 0) + between.step / 2
        assert (255 - between.origin) * between.step >= max(high, 0) - between.step / 2


def test_one_far_number_does_not_make_every_step_coarse() -> None:
    counts = np.zeros(1000)
    counts[450:550] = 1e5
    counts[[0, -1]] = 1
    far = least_error(counts, -10.0, 10.0)
    assert far.high < 5  # the numbers lie within 1; shares below a fifth are not tried
    assert least_error(np.ones(1000), -10.0, 10.0) == Range(-10.0, 10.0)


def test_calibration_sees_what_each_map_is_given(whole: None) -> None:
    graph, weights = lowered_one(ONE)
    lowered = lower_graph(graph, weights, "none")
    x_bnd = torch.linspace(-1.0, 3.0, 4 * 4 * 6).reshape(4, 4, 6)
    found = calibrate(lowered, [{"x": x_bnd[:1]}, {"x": x_bnd[1:]}])
    assert list(found.values()) == [Range(-1.0, 3.0)]


# ------------------------------------------------------------------ judging


def test_what_is_judged_of_an_output() -> None:
    scores = np.array([[3.0, 1.0], [0.0, 4.0], [2.0, 1.0], [0.0, 1.0]], np.float32)
    other = scores.copy()
    other[2] = [1.0, 2.0]
    row = compared("logits", scores, other, classes=True, labels=np.array([0, 1, 1, 0]))
    assert (row.agreement, row.accuracy_float32, row.accuracy) == (0.75, 0.5, 0.75)
    assert row.error == 1 / 4
    assert row.rms == pytest.approx((2 / 32) ** 0.5)
    assert compared("z", scores, other).agreement == pytest.approx(1 - 2 / 32)
    assert compared("z", scores, scores * np.nan).agreement == 0.0
    whole = np.array([1, 2, 3, 4])
    assert compared("k", whole, np.array([1, 2, 3, 5])).agreement == 0.75


def samples(graph: ModelGraph, count: int = 30, **changes: Any) -> Samples:
    (entry,) = graph.export_inputs.values()
    arrays = np.random.default_rng(5).standard_normal((2 * count, *entry.type.sizes({}))).astype(np.float32)
    given = {"scores": "logits", "labels": np.arange(count) % 7, **changes}
    return Samples({entry.name: arrays[:count]}, {entry.name: arrays[count:]}, **given)


@pytest.mark.parametrize("precision", ["float16", "bfloat16", "int8"])
def test_a_file_in_fewer_bits(precision: Precision, tmp_path: Path) -> None:
    graph, net = images()
    file = tmp_path / "images.onnx"
    proof = crate_dsl.export(graph, net, file, precision=precision, samples=samples(graph), agreement=0.5)
    assert isinstance(proof, ReducedProof) and proof.passed and proof.agrees
    assert [path.name for path in tmp_path.iterdir()] == ["images.onnx"]
    onnx.checker.check_model(str(file), full_check=True)
    session = crate_dsl.open_session(file, provider="cpu")
    assert session.precision == precision
    stored = session.metadata.proof
    assert stored is not None and stored["real_data"]["samples"] == 30
    assert stored == json.loads(json.dumps(proof.as_data()))
    for batch in (1, 3):
        image = np.random.default_rng(batch).standard_normal((batch, 3, 4, 6)).astype(np.float32)
        (found,) = session(image=image).values()
        assert found.dtype == np.float32
        with torch.inference_mode():
            wanted = net(torch.from_numpy(image)).numpy()
        bound = 16 * ROUNDING.get(precision, 2.0**-7)
        assert 0 < np.abs(found - wanted).max() / np.abs(wanted).max() < bound
    assert f"{precision} against float32, 30 samples of the test data" in str(proof)


def test_every_size_at_run_time(tmp_path: Path) -> None:
    """Lengths that are known only at run time: no rows of one matrix with a bias, but tokens of samples."""
    graph = graph_of(
        "model m { input x : float[n <= 9, 6]  y = x -> compress(2, rank = 3) -> sparsify(step = 0.1, penalty = 0.1)\n"
        "output y }"
    )
    net = crate_dsl.build(graph, seed=0)
    x_bnd = np.random.default_rng(0).standard_normal((40, 9, 6)).astype(np.float32)
    given = Samples({"x": x_bnd[:20]}, {"x": x_bnd[20:]})
    proof = crate_dsl.export(graph, net, tmp_path / "m.onnx", precision="int8", samples=given)
    assert isinstance(proof, ReducedProof)
    assert 0.99 < proof.agreement < 1 and proof.judged[0].accuracy is None
    session = crate_dsl.open_session(tmp_path / "m.onnx", provider="cpu")
    assert session(x=x_bnd[:3, :2])["y"].shape == (3, 2, 6)


def test_a_file_that_disagrees_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, net = images()
    file = tmp_path / "images.onnx"
    crate_dsl.export(graph, net, file)
    before = file.read_bytes()
    real = judge_module.compared

    def wrong(name: str, wanted: np.ndarray, actual: np.ndarray, **how: Any) -> Any:
        return real(name, wanted, np.concatenate([-actual[:3], actual[3:]]), **how)

    monkeypatch.setattr(judge_module, "compared", wrong)
    with pytest.raises(ProofError) as caught:
        crate_dsl.export(graph, net, file, precision="bfloat16", samples=samples(graph))
    message = str(caught.value)
    assert "in bfloat16, `logits` agrees with float32 in 90.00 % of 30 samples of the test data" in message
    assert "99.00 % are asked for" in message and "agreement 0.9 accepts that" in message
    assert caught.value.exit_code == 3
    assert file.read_bytes() == before and [path.name for path in tmp_path.iterdir()] == ["images.onnx"]
    crate_dsl.export(graph, net, file, precision="bfloat16", samples=samples(graph), agreement=0.9)
    assert file.read_bytes() != before


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"precision": "int8"}, "measured on real data, and there are none"),
        ({"precision": "int4"}, "there is no precision `int4`"),
        ({"samples": samples}, "a file in float32 is not judged by data"),
        ({"precision": "int8", "samples": samples, "agreement": 99}, "from 0 to 1, not 99"),
        ({"precision": "int8", "samples": samples, "lower": "none"}, "not written out as their parts"),
    ],
)
def test_what_cannot_be_asked_for(asked: dict[str, Any], message: str, tmp_path: Path) -> None:
    graph, net = images()
    given = {name: value(graph) if callable(value) else value for name, value in asked.items()}
    with pytest.raises(UserError, match=message):
        crate_dsl.export(graph, net, tmp_path / "images.onnx", **given)
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------ in torch


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_a_network_in_sixteen_bits(precision: Precision) -> None:
    net = images()[1]
    small = crate_dsl.lower(net, precision=precision)
    kind = getattr(torch, precision)
    assert {weight.dtype for weight in small.parameters()} == {torch.float32, kind}
    image = torch.randn(3, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        wanted, found = net(image), small(image)
    assert found.dtype == torch.float32
    assert 0 < float((found - wanted).abs().max() / wanted.abs().max()) < 16 * ROUNDING[precision]
    assert {weight.dtype for weight in net.parameters()} == {torch.float32}
    with pytest.raises(UserError, match="not in int8"):
        crate_dsl.lower(net, precision="int8")


def test_attention_is_handed_one_type() -> None:
    """Keys that somebody else reads stay in float32, and so do the queries that meet them."""
    for text, count in (
        ("y = x -> compress(2, rank = 3) -> attend(2)", 4),
        ("w = x -> linear(6)  y = x -> attend(2)  output w", 3),
    ):
        graph = graph_of(f"model m {{ input x : float[4, 6]  {text}  output y }}")
        lowered = lower_graph(graph, weights_of(crate_dsl.build(graph, seed=0)))
        nodes = reduced(lowered.graph, lowered.weights, "bfloat16", attention=True)[0].nodes
        assert sum(n.operator.attended for n in nodes if isinstance(n.operator, HalfAffine)) == count
    graph, net = images()
    lowered = lower_graph(graph, weights_of(net))
    (first,) = (n for n in lowered.graph.nodes if n.path == "encoder.0.compress.projection")
    read = replace(lowered.graph, outputs={**lowered.graph.outputs, "w": Value(first.name)})
    nodes = reduced(read, lowered.weights, "bfloat16", attention=True)[0].nodes
    assert [n.path for n in nodes if isinstance(n.operator, HalfAffine) and n.operator.attended] == [
        "encoder.1.compress.projection",
        "encoder.2.compress.projection",
    ]


# ------------------------------------------------------------------ runs, on real images


def test_a_trained_network_in_int8_says_the_same(run: Path, tmp_path: Path) -> None:
    said = exported(run, "--precision", "int8", "-o", tmp_path / "int8.onnx")
    assert said == 0
    proof = crate_dsl.open_session(tmp_path / "int8.onnx", provider="cpu").metadata.proof
    assert proof is not None
    real = proof["real_data"]
    (row,) = real["rows"]
    assert (real["source"], real["samples"]) == ("digits", len(open_run(run).data().test))
    assert row["agreement"] >= 0.99
    scores = open_run(run).test()
    assert scores is not None
    assert row["accuracy_float32"] == pytest.approx(scores["accuracy"], abs=1e-6)
    assert abs(row["accuracy"] - scores["accuracy"]) < 0.02


@pytest.mark.parametrize(("spec", "told"), [("autoencoder", True), ("completion", True), ("inside", False)])
def test_the_loss_where_there_are_no_classes(spec: str, told: bool, tmp_path: Path) -> None:
    """From the outputs alone: also with draws, and nothing where the objective looks inside."""
    text = INSIDE if spec == "inside" else TINY.with_name(f"{spec}.crate").read_text()
    graph = graph_of(text, str(TINY.with_name(f"{spec}.crate")))
    net = crate_dsl.build(graph, seed=0)
    data = open_data("digits")
    given = samples_of(graph, open_images(graph, data))
    file = tmp_path / "file.onnx"
    proof = crate_dsl.export(graph, net, file, precision="int8", samples=given, agreement=0.9)
    assert isinstance(proof, ReducedProof)
    if not told:
        assert proof.losses is None and "loss" not in str(proof)
        return
    assert proof.losses is not None
    batch = {name: torch.from_numpy(array) for name, array in {**given.test, **given.targets}.items()}
    with torch.inference_mode():
        wanted = float(crate_dsl.Objective(net.eval())(batch))
    assert proof.losses[0] == pytest.approx(wanted, rel=1e-4)
    assert 0 < abs(proof.losses[1] / wanted - 1) < 0.05
    assert f"loss {proof.losses[1]:.5g}, of float32" in str(proof)


def exported(*arguments: object) -> object:
    with pytest.raises(SystemExit) as end:
        main(["export", *map(str, arguments)])
    return end.value.code


def test_on_the_command_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "small.onnx"
    told: Callable[[], str] = lambda: " ".join("".join(capsys.readouterr()).split())  # noqa: E731
    assert exported(run, "--images", 9, "-o", out) == 2
    assert "say how fewer bits are judged" in told()
    assert exported(TINY, "--precision", "int8", "-o", out) == 2
    assert "a spec has none" in told()
    assert exported(run, "--precision", "int8", "--data", "mnist5k", "-o", out) == 1
    assert "the images of mnist5k are" in told()
    assert not out.exists()
    spec = (TINY, "--precision", "bfloat16", "--data", "digits", "--scaling", "0.3/0.4")
    assert exported(*spec, "--images", 20, "--agreement", 0.5, "-o", out) == 0
    assert "bfloat16 against float32, 20 samples of digits" in told()
    with pytest.raises(SystemExit):
        main(["show", str(out)])
    assert f"{out} is tiny in bfloat16, exported by crate-dsl" in told()
