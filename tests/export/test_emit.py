"""What an emitted model looks like: names, functions, dimensions, weights."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from crate_dsl.compiler.build import build
from crate_dsl.compiler.emit import emit, write
from crate_dsl.compiler.functions import DOMAIN
from crate_dsl.compiler.operators import Ref
from tests.export.specs import IMAGES, graph_of, images, text, weights_of

#: Float32 sums of some hundred numbers of size one, in two orders.
FLOAT32 = 1e-5


def emitted(text_: str, **settings: object) -> onnx.ModelProto:
    graph = graph_of(text_, **settings)
    return emit(graph, weights_of(build(graph)))


def dims(value: onnx.ValueInfoProto) -> list[str | int]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def run(model: onnx.ModelProto, **feeds: np.ndarray) -> dict[str, np.ndarray]:
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def test_versions_and_names() -> None:
    graph, net = images()
    model = emit(graph, weights_of(net))
    assert model.ir_version == 10
    assert {opset.domain: opset.version for opset in model.opset_import} == {"": 23, DOMAIN: 1}
    assert model.graph.name == "images"
    steps = [node.name for node in model.graph.node]
    assert "encoder.2.sparsify" in steps and "tokens.norm_2" in steps
    assert "tokens.dropout" not in steps
    assert steps == [node.name for node in graph.nodes if node.word != "dropout"]
    assert {tensor.name for tensor in model.graph.initializer} == set(graph.slots)
    produced = {node.name: list(node.output) for node in model.graph.node}
    assert produced["tokens.position"] == ["tokens"]
    assert produced["logits.linear"] == ["logits"]
    assert produced["encoder.0.compress"] == ["encoder.0.compress:0"]


def test_a_file_that_is_written_weight_by_weight_is_the_model(tmp_path: Path) -> None:
    graph, net = images()
    model = emit(graph, weights_of(net))
    write(emit(graph, weights_of(net)), tmp_path / "images.onnx")
    assert onnx.load(tmp_path / "images.onnx") == model
    assert (tmp_path / "images.onnx").stat().st_size == model.ByteSize()


def test_one_function_for_each_kind_of_step() -> None:
    model = emit(*(lambda graph, net: (graph, weights_of(net)))(*images()))
    functions = [function.name for function in model.functions]
    assert len(functions) == len(set(functions)) == 8
    assert all(function.domain == DOMAIN for function in model.functions)
    layers = [node for node in model.graph.node if node.name.startswith("encoder.")]
    assert {node.op_type for node in layers} == {"compress", "sparsify"}


def test_a_step_with_other_arguments_is_another_function() -> None:
    model = emitted(
        IMAGES.replace(
            "compress(subspaces, rank)", "compress(subspaces, rank) compress(subspaces, rank, step = 2)"
        )
    )
    used = {node.name: node.op_type for node in model.graph.node}
    assert used["encoder.0.compress"] == used["encoder.2.compress"] == "compress"
    assert used["encoder.0.compress_2"] == used["encoder.2.compress_2"] == "compress_2"


def test_dimensions_are_named_as_in_the_spec() -> None:
    graph, net = text()
    model = emit(graph, weights_of(net))
    inputs = {value.name: dims(value) for value in model.graph.input}
    assert inputs == {"ids": ["batch", "n"], "kept": ["batch", "n"], "noise": ["batch", "n", 10]}
    kinds = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    assert kinds == {
        "ids": onnx.TensorProto.INT64,
        "kept": onnx.TensorProto.BOOL,
        "noise": onnx.TensorProto.FLOAT,
    }
    outputs = {value.name: dims(value) for value in model.graph.output}
    assert outputs == {"logits": ["batch", 3], "words": ["batch", "n", 17]}


def test_a_length_called_batch_is_not_the_batch() -> None:
    model = emitted("model m { input x : float[batch <= 5, 3]  y = x -> linear(2)  output y }")
    assert dims(model.graph.input[0]) == ["samples", "batch", 3]


def test_tied_weights_are_one_initializer() -> None:
    graph, net = text()
    model = emit(graph, weights_of(net))
    names = [tensor.name for tensor in model.graph.initializer]
    assert len(names) == len(set(names)) == len(graph.slots)
    read = {node.op_type: set(node.input) & set(names) for node in model.graph.node}
    assert read["embed"] == read["transpose"] != set()


def test_a_weight_may_be_seen_transposed() -> None:
    graph = graph_of("model m { input x : float[3]  y = x -> linear(2)  output y }")
    node = graph.node("y.linear")
    turned = graph.graph.copy()
    weight = node.weights["weight"]
    turned.nodes["y.linear"]["item"] = replace(
        node, weights=node.weights | {"weight": Ref(weight.slot, "transpose")}
    )
    slots = {path: replace(slot, shape=slot.shape[::-1]) for path, slot in graph.slots.items()}
    rng = np.random.default_rng(0)
    weights = {path: rng.standard_normal(slot.shape, dtype=np.float32) for path, slot in slots.items()}
    x = rng.standard_normal((4, 3), dtype=np.float32)
    result = run(emit(replace(graph, graph=turned, slots=slots), weights), x=x)
    np.testing.assert_allclose(
        result["y"], x @ weights["y.linear.weight"] + weights["y.linear.bias"], atol=FLOAT32
    )


def test_outputs_that_are_inputs_or_one_value_under_two_names() -> None:
    model = emitted("model m { input x : float[3]  y = x -> norm  z = y -> dropout(0.1)  output x, y, z }")
    x = np.random.default_rng(0).standard_normal((4, 3), dtype=np.float32)
    results = run(model, x=x)
    assert list(results) == ["x", "y", "z"]
    np.testing.assert_array_equal(results["x"], x)
    np.testing.assert_array_equal(results["y"], results["z"])


def test_what_no_output_reaches_is_left_out() -> None:
    model = emitted(
        "model m { input x : float[3]  input w : float[3]  target t : float[2]\n"
        "y = x -> linear(2)  z = w -> linear(2)\n output y  objective mse(z, t) }"
    )
    assert [value.name for value in model.graph.input] == ["x"]
    assert {tensor.name for tensor in model.graph.initializer} == {"y.linear.weight", "y.linear.bias"}


def test_emitted_models_compute_what_torch_computes() -> None:
    graph, net = images()
    image = torch.randn(3, 3, 4, 6)
    result = run(emit(graph, weights_of(net)), image=image.numpy())
    np.testing.assert_allclose(result["logits"], net(image).detach().numpy(), atol=FLOAT32)


@pytest.mark.parametrize("problem", ["missing", "shape", "dtype"])
def test_weights_of_another_network_are_refused(problem: str) -> None:
    graph, net = images()
    weights = weights_of(net)
    weight = weights.pop("class_token")
    if problem != "missing":
        weights["class_token"] = weight[1:] if problem == "shape" else weight.astype(np.float64)
    with pytest.raises(ValueError, match="class_token"):
        emit(graph, weights)


def test_metadata_entries_of_the_export_cannot_be_replaced() -> None:
    graph, net = images()
    with pytest.raises(ValueError, match="spec"):
        emit(graph, weights_of(net), {"crate_dsl.spec": "another"})


def test_metadata_say_what_was_built() -> None:
    graph, net = images()
    properties = {
        entry.key: entry.value for entry in emit(graph, weights_of(net), {"scaling": "[0, 1]"}).metadata_props
    }
    assert json.loads(properties["crate_dsl.spec"]) == [{"name": "spec.crate", "text": IMAGES}]
    target = json.loads(properties["crate_dsl.target"])
    assert (target["model"], target["variant"], target["settings"]["depth"]) == ("images", None, 3)
    assert properties["crate_dsl.scaling"] == "[0, 1]"
    assert (
        "crate_dsl.torch" in properties
        and "crate_dsl.onnx" in properties
        and "crate_dsl.version" in properties
    )
    assert "crate_dsl.proof" not in properties


def test_emission_is_linear_in_depth_and_shares_functions() -> None:
    graph = graph_of(IMAGES, depth=100)
    model = emit(graph, {path: np.zeros(slot.shape, np.float32) for path, slot in graph.slots.items()})
    assert len(model.functions) == 8
    assert sum(node.op_type == "compress" for node in model.graph.node) == 100


def test_no_tracing_exporter_is_imported() -> None:
    code = (
        "import sys, crate_dsl.compiler.export, crate_dsl.compiler.emit\n"
        "sys.exit(any(name.startswith('torch.onnx._internal.exporter') for name in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
