"""From the model graph to an ONNX model, node for node: no tracing, and every name is the spec's.

Each use of a step is one node, named by its spec path, that calls a local function named by the step's word. Equal
functions are shared; a step with other arguments has a function of its own (`compress_2`). Weights are initializers
named by their slots, values are named as in the spec, or by their node and number (`encoder.3.compress:0`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper

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
    # Everything is written where it stays: putting messages together copies them, and with them the weights.
    model = onnx.ModelProto(
        ir_version=IR_VERSION, producer_name="crate-dsl", producer_version=crate_dsl.__version__
    )
    model.opset_import.add(domain="", version=OPSET)
    model.opset_import.add(domain=DOMAIN, version=1)
    helper.set_model_props(model, describe(graph, metadata).properties())
    whole = model.graph
    whole.name = graph.model if graph.variant is None else f"{graph.model}@{graph.variant}"

    names, steps, functions = value_names(graph), exported_steps(graph), Functions()
    used = dict.fromkeys(ref for node in steps for ref in node.weights.values())
    for ref in used:
        if ref.view == "transpose":
            name = _weight_name(ref)
            whole.node.append(helper.make_node("Transpose", [ref.slot], [name], name=name, perm=[1, 0]))
    types = _Types(_batch_name(graph))
    for node in steps:
        piped = [names[value] for value in node.inputs]
        handed = {port: names[value] for port, value in node.ports.items()}
        own = {weight: _weight_name(ref) for weight, ref in node.weights.items()}
        outputs = [names[Value(node.name, index)] for index in range(len(node.typing.outputs))]
        whole.node.add(
            op_type=functions.of(node, len(piped), (*handed, *own)),
            domain=DOMAIN,
            name=node.name,
            input=[*piped, *handed.values(), *own.values()],
            output=outputs,
        )
        for name, type_ in zip(outputs, node.typing.outputs, strict=True):
            if name not in graph.outputs:
                whole.value_info.add(name=name, type=types.of(type_, graph.items[node.name]))
    for name, value in graph.outputs.items():
        if names[value] != name:  # one value under two names, or an input under another one
            whole.node.add(op_type="Identity", name=name, input=[names[value]], output=[name])
        whole.output.add(name=name, type=types.of(graph.type_of(value)))
    for name, entry in graph.export_inputs.items():
        whole.input.add(name=name, type=types.of(entry.type))
    model.functions.extend(functions.protos)
    _add_weights(whole, graph, weights, {ref.slot for ref in used})
    return model


def write(model: onnx.ModelProto, file: Path) -> None:
    """Write a model of less than 2 GiB, weight by weight: no second copy of them all is made. The model is used up."""
    weights = list(model.graph.initializer)
    del model.graph.initializer[:]
    rest = model.graph.SerializeToString()
    model.ClearField("graph")
    heads = [_head(onnx.GraphProto.INITIALIZER_FIELD_NUMBER, weight.ByteSize()) for weight in weights]
    length = len(rest) + sum(
        len(head) + weight.ByteSize() for head, weight in zip(heads, weights, strict=True)
    )
    with file.open("wb") as stream:
        stream.write(model.SerializeToString())
        stream.write(_head(onnx.ModelProto.GRAPH_FIELD_NUMBER, length))
        stream.write(rest)
        for head, weight in zip(heads, weights, strict=True):
            stream.write(head)
            stream.write(weight.SerializeToString())


def _head(field: int, length: int) -> bytes:
    """What protobuf writes before a message that is a field: its number, and how many bytes follow."""
    return _varint(field << 3 | 2) + _varint(length)


def _varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first; all bytes but the last have the eighth bit set."""
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number])


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
        self._known: dict[tuple[object, ...], str] = {}
        self._names: dict[bytes, str] = {}
        self._count: Counter[str] = Counter()

    def of(self, node: Node, piped: int, named: tuple[str, ...]) -> str:
        """The name of the function that is this step, with so many piped inputs and these named ones."""
        # What a face knows of a step: its arguments, the facts and types of its typing, and what it is handed.
        key = (node.operator, node.typing.facts, node.typing.outputs, piped, named)
        if key not in self._known:
            self._known[key] = self._write(node, piped, named)
        return self._known[key]

    def _write(self, node: Node, piped: int, named: tuple[str, ...]) -> str:
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


def _add_weights(
    whole: onnx.GraphProto, graph: ModelGraph, weights: Mapping[str, np.ndarray[Any, Any]], read: set[str]
) -> None:
    """An initializer for each slot that is read."""
    for path, slot in graph.slots.items():
        if path in read:
            if path not in weights:
                raise ValueError(f"there is no weight `{path}`")
            array = weights[path]
            if array.shape != slot.shape or array.dtype != np.float32:
                raise ValueError(
                    f"`{path}` is float32 of shape {slot.shape}, not {array.dtype} of {array.shape}"
                )
            whole.initializer.add(
                name=path,
                data_type=onnx.TensorProto.FLOAT,
                dims=array.shape,
                raw_data=array.astype("<f4", copy=False).tobytes(),
            )


def _batch_name(graph: ModelGraph) -> str:
    """The name of the batch axis: `batch`, unless a length of the spec has that name."""
    lengths = {dim.symbol.name for entry in graph.inputs.values() for dim in entry.type.shape if dim.symbol}
    return "samples" if "batch" in lengths else "batch"


class _Types:
    """Types as ONNX writes them, `batch` being the name of the batch axis."""

    def __init__(self, batch: str) -> None:
        self._batch = batch
        self._known: dict[tuple[TensorType, int], onnx.TypeProto] = {}

    def of(self, wanted: TensorType, items: int = 1) -> onnx.TypeProto:
        """The type of a value whose batch axis holds so many items of each sample."""
        key = wanted, items
        if key not in self._known:
            shape: list[str | int | None] = [
                self._batch if items == 1 else f"{items} * {self._batch}",
                *(str(dim) if dim.symbol else dim.offset for dim in wanted.shape),
            ]
            if wanted.flat:  # all samples' tokens, one after another: of unknown number, as the batch is
                shape = [None, *shape[2:]]
            self._known[key] = helper.make_tensor_type_proto(ELEMENTS[wanted.kind], shape)
        return self._known[key]
