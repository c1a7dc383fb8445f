"""From the model graph to an ONNX model, node for node: no tracing, and every name is the spec's.

Each use of a step is one node, named by its spec path, that calls a local function named by the step's word. Equal
functions are shared; a step with other arguments has a function of its own (`compress_2`). Weights are initializers
named by their slots, values are named as in the spec, or by their node and number (`encoder.3.compress:0`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

import crate_dsl
from crate_dsl.compiler.functions import DOMAIN, OPSET, Body
from crate_dsl.compiler.graph import ModelGraph, Node, Value
from crate_dsl.compiler.metadata import describe
from crate_dsl.compiler.operators import Ref
from crate_dsl.compiler.steps import onnx_face
from crate_dsl.compiler.types import TensorType

#: The version of the file format that operator set 23 came with.
IR_VERSION = 10
#: ONNX element types by kind.
ELEMENTS = {"float": onnx.TensorProto.FLOAT, "index": onnx.TensorProto.INT64, "bool": onnx.TensorProto.BOOL}


def emit(
    graph: ModelGraph, weights: Mapping[str, np.ndarray[Any, Any]], metadata: Mapping[str, str] = {}
) -> onnx.ModelProto:
    """The exported part of a graph as an ONNX model.

    Args:
        graph: The network, as elaborated or lowered.
        weights: float32 arrays by slot path; those that the outputs do not reach are left out of the file.
        metadata: Further entries of the file's metadata (`scaling`); the spec, its settings and versions are written
            anyway.

    Raises:
        ValueError: weights or metadata that do not belong to this graph, or an output that depends on a random step.
    """
    names = value_names(graph)
    functions = Functions()
    nodes: list[onnx.NodeProto] = []
    used: dict[Ref, str] = {}
    values: dict[str, TensorType] = {}
    for node in exported_steps(graph):
        piped = [names[value] for value in node.inputs]
        handed = {port: names[value] for port, value in node.ports.items()}
        own = {weight: used.setdefault(ref, _weight_name(ref)) for weight, ref in node.weights.items()}
        outputs = [names[Value(node.name, index)] for index in range(len(node.typing.outputs))]
        function = functions.of(node, len(piped), [*handed, *own])
        inputs = [*piped, *handed.values(), *own.values()]
        nodes.append(helper.make_node(function, inputs, outputs, name=node.name, domain=DOMAIN))
        values |= zip(outputs, node.typing.outputs, strict=True)
    for name, value in graph.outputs.items():
        if names[value] != name:  # one value under two names, or an input under another one
            nodes.append(helper.make_node("Identity", [names[value]], [name], name=name))

    transposes, initializers = _weights(graph, weights, used)
    batch = _batch_name(graph)
    onnx_graph = helper.make_graph(
        transposes + nodes,
        graph.model if graph.variant is None else f"{graph.model}@{graph.variant}",
        [_value_info(name, entry.type, batch) for name, entry in graph.export_inputs.items()],
        [_value_info(name, graph.type_of(value), batch) for name, value in graph.outputs.items()],
        initializers,
        value_info=[_value_info(n, type_, batch) for n, type_ in values.items() if n not in graph.outputs],
    )
    model = helper.make_model(
        onnx_graph,
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)],
        functions=functions.protos,
        ir_version=IR_VERSION,
        producer_name="crate-dsl",
        producer_version=crate_dsl.__version__,
    )
    helper.set_model_props(model, describe(graph, metadata).properties())
    return model


# ------------------------------------------------------------------ what is written, and what it is called


def exported_steps(graph: ModelGraph) -> list[Node]:
    """The steps that the outputs reach, in order, without those that do nothing once trained.

    Raises:
        ValueError: a random step or a loss is among them; the elaborator says so in the spec's words before this.
    """
    steps = [
        node
        for node in graph.nodes
        if node.name in graph.exported and not node.operator.identity_at_inference
    ]
    for node in steps:
        if node.operator.kind in ("training", "objective"):
            raise ValueError(f"`{node.name}` is a {node.operator.kind} step, and the outputs depend on it")
    return steps


def value_names(graph: ModelGraph) -> dict[Value, str]:
    """The name of every exported value in the file: the spec's where it has one that is still free.

    A step that does nothing once trained has the name of what it is given.
    """
    names = {Value(name): name for name in graph.export_inputs}
    origin: dict[Value, Value] = {}
    for node in graph.nodes:
        if node.operator.identity_at_inference:
            origin[Value(node.name)] = origin.get(node.inputs[0], node.inputs[0])
    taken = {*graph.inputs, *graph.slots}
    spoken = [(value, name) for name, value in graph.outputs.items()] + list(graph.names.items())
    for value, name in spoken:
        source = origin.get(value, value)
        if source not in names and name not in taken:
            names[source] = name
            taken.add(name)
    for node in graph.nodes:
        for index in range(len(node.typing.outputs)):
            names.setdefault(Value(node.name, index), f"{node.name}:{index}")
    return names | {value: names[source] for value, source in origin.items()}


class Functions:
    """The local functions of one file: equal ones are one, others of the same step are numbered from 2."""

    def __init__(self) -> None:
        self.protos: list[onnx.FunctionProto] = []
        self._names: dict[bytes, str] = {}
        self._count: Counter[str] = Counter()

    def of(self, node: Node, piped: int, named: Sequence[str]) -> str:
        """The name of the function that is this step, with so many piped inputs and these named ones."""
        inputs = ["x", *(f"x_{k}" for k in range(2, piped + 1))][:piped]
        body = Body()
        face = onnx_face(type(node.operator))
        results = face(body, node.operator, node.typing, *inputs, **{name: name for name in named})
        outputs: list[str] = []
        for result in (results,) if isinstance(results, str) else results:
            # A function's outputs are its own, and distinct.
            outputs.append(body("Identity", result) if result in (*inputs, *named, *outputs) else result)
        function = body.function("", [*inputs, *named], outputs)
        text = function.SerializeToString(deterministic=True)
        if text not in self._names:
            self._count[node.word] += 1
            number = self._count[node.word]
            function.name = self._names[text] = node.word if number == 1 else f"{node.word}_{number}"
            function.doc_string = "\n".join(filter(None, [node.operator.formula, node.operator.source]))
            self.protos.append(function)
        return self._names[text]


# ------------------------------------------------------------------ weights and types


def _weight_name(ref: Ref) -> str:
    return f"{ref.slot}:transpose" if ref.view == "transpose" else ref.slot


def _weights(
    graph: ModelGraph, weights: Mapping[str, np.ndarray[Any, Any]], used: Mapping[Ref, str]
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """The transposes of weights that are seen that way, and an initializer for each slot that is read."""
    transposes = [
        helper.make_node("Transpose", [ref.slot], [name], name=name, perm=[1, 0])
        for ref, name in used.items()
        if ref.view == "transpose"
    ]
    read = {ref.slot for ref in used}
    initializers = []
    for path, slot in graph.slots.items():
        if path in read:
            if path not in weights:
                raise ValueError(f"there is no weight `{path}`")
            array = weights[path]
            if array.shape != slot.shape or array.dtype != np.float32:
                raise ValueError(
                    f"`{path}` is float32 of shape {slot.shape}, not {array.dtype} of {array.shape}"
                )
            initializers.append(numpy_helper.from_array(array, path))
    return transposes, initializers


def _batch_name(graph: ModelGraph) -> str:
    """The name of the batch axis: `batch`, unless a length of the spec has that name."""
    lengths = {dim.symbol.name for entry in graph.inputs.values() for dim in entry.type.shape if dim.symbol}
    return "samples" if "batch" in lengths else "batch"


def _value_info(name: str, wanted: TensorType, batch: str) -> onnx.ValueInfoProto:
    shape = [batch, *(str(dim) if dim.symbol else dim.offset for dim in wanted.shape)]
    if wanted.flat:  # all samples' tokens, one after another: of unknown number, as the batch is
        shape = [None, *shape[2:]]
    return helper.make_tensor_value_info(name, ELEMENTS[wanted.kind], shape)
