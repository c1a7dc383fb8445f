"""Precision: affine maps in fewer bits. Norms, softmax and all sums of tokens stay in float32.

Unlike the rewrites beside it this one is not exact. What it costs is measured on real data (`judge`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from crate_dsl.compiler.draft import Array, Draft, rebuild
from crate_dsl.compiler.graph import ModelGraph, Node, Value
from crate_dsl.compiler.steps.parts.operator import Affine, Attention, Flatten, Take, Unflatten
from crate_dsl.compiler.steps.reduced.operator import Half, HalfAffine, Int8Affine, ReducedOperator
from crate_dsl.language.diagnostics import UserError

Precision = Literal["float32", "float16", "bfloat16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
#: The element types that weights are stored in, and numpy's for each.
ELEMENTS = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "int8": np.dtype(np.int8),
    "uint8": np.dtype(np.uint8),
    "int32": np.dtype(np.int32),
}
#: A map that makes up less than this share of the work stays in float32 at int8: it is no faster, and what looks at
#: pixels, or scores the classes, is what suffers most.
LEAST_SHARE = 0.02
#: Whole numbers up to here are float32 as well, and so is the bias while the network is rewritten.
MOST_WHOLE = 2**24


#: What leaves tokens as they are, and puts them elsewhere.
MOVES = (Flatten, Take, Unflatten)


@dataclass(frozen=True, slots=True)
class Range:
    """What one tensor's numbers are quantised between."""

    low: float
    high: float

    @property
    def step(self) -> float:
        """What one of 255 steps is worth. The range holds zero, so that zero is exact."""
        return max(max(self.high, 0.0) - min(self.low, 0.0), 1e-12) / 255

    @property
    def origin(self) -> int:
        """The step that stands for zero."""
        return round(-min(self.low, 0.0) / self.step)


def worthwhile(graph: ModelGraph) -> dict[str, Node]:
    """The affine maps that int8 pays for, by path."""
    maps = [node for node in graph.nodes if isinstance(node.operator, Affine)]
    work = sum(node.typing.flops for node in maps)
    return {node.path: node for node in maps if node.typing.flops >= LEAST_SHARE * work}


def reduced(
    graph: ModelGraph,
    weights: Mapping[str, NDArray[np.float32]],
    precision: Precision,
    ranges: Mapping[str, Range] = {},
    attention: bool = False,
) -> tuple[ModelGraph, dict[str, NDArray[np.float32]]]:
    """A lowered network with its affine maps in fewer bits. Weights are float32 still, of numbers that have these bits.

    Args:
        graph: The network, lowered: it consists of parts.
        weights: Its arrays by slot path.
        precision: Other than float32.
        ranges: At int8: between what the input of each `worthwhile` map lies, by path (`calibrate`).
        attention: Whether attention is handed what it attends to in 16 bits, and so has its products in them.

    Raises:
        UserError: there is no affine map, since steps were not written out as their parts; or float16 cannot hold one.
    """
    draft = Draft.of(graph, weights)
    if not any(isinstance(node.operator, Affine) for node in draft.nodes):
        raise UserError(
            f"there is nothing to compute in {precision}: steps are not written out as their parts",
            "--lower all, or any without -parts",
        )

    attended = _attended(draft) if attention else frozenset()

    def visit(new: Draft, node: Node) -> Sequence[Value]:
        if not isinstance(node.operator, Affine):
            return new.keep(node)
        if precision == "float16" or precision == "bfloat16":
            return (_half(new, node, precision, node.name in attended),)
        return (_int8(new, node, ranges[node.path]),) if node.path in ranges else new.keep(node)

    return rebuild(draft, visit).graph()


def _attended(draft: Draft) -> frozenset[str]:
    """The affine maps whose results attention alone reads, and with them nothing else."""

    def source(value: Value) -> Value:
        """Where tokens come from that have only been put elsewhere."""
        node = draft.node(value)
        return source(node.inputs[0]) if node and isinstance(node.operator, MOVES) else value

    readers: dict[Value, list[Node]] = defaultdict(list)
    for node in draft.nodes:
        if not isinstance(node.operator, MOVES):
            for value in (*node.inputs, *node.ports.values()):
                readers[source(value)].append(node)
    for value in draft.outputs.values():
        readers.pop(source(value), None)
    found = {
        value
        for value, nodes in readers.items()
        if (made := draft.node(value)) is not None
        and isinstance(made.operator, Affine)
        and all(isinstance(node.operator, Attention) for node in nodes)
    }
    while mixed := {
        value for value in found for node in readers[value] if not found.issuperset(map(source, node.inputs))
    }:
        found -= mixed
    return frozenset(value.node for value in found)


def _half(new: Draft, node: Node, precision: Half, attended: bool) -> Value:
    matrix, near = _apart(new.array(node, "matrix"))
    with np.errstate(over="ignore"):
        rounded = matrix.astype(ELEMENTS[precision]).astype(np.float64)
    if not np.isfinite(rounded).all():
        raise UserError(
            f"`{node.path}` has weights that {precision} cannot hold: up to {np.abs(matrix).max():.1e}"
        )
    weights: dict[str, Array] = {"matrix": rounded}
    if "bias" in node.weights:
        weights["bias"] = new.array(node, "bias")
    operator = HalfAffine(
        dim=matrix.shape[1], bias="bias" in weights, near=near, element=precision, attended=attended
    )
    return new.add(node, "", operator, *node.inputs, weights=weights)


def _int8(new: Draft, node: Node, between: Range) -> Value:
    matrix, near = _apart(new.array(node, "matrix"))
    bias = new.array(node, "bias") if "bias" in node.weights else None
    steps = np.abs(matrix).max(0) / 127
    if bias is not None:
        steps = np.maximum(steps, np.abs(bias) / (between.step * MOST_WHOLE))
    # In float32 from here on, since the file has them so.
    steps = np.where(steps > 0, steps, 1.0).astype(np.float32).astype(np.float64)
    step = float(np.float32(between.step))
    weights: dict[str, Array] = {
        "matrix": np.clip(np.round(matrix / steps), -127, 127),
        "step": np.asarray(step),
        "origin": np.asarray(float(between.origin)),
        "steps": steps,
    }
    if bias is not None:
        weights["bias"] = np.clip(np.round(bias / (step * steps)), -MOST_WHOLE, MOST_WHOLE)
    operator = Int8Affine(dim=matrix.shape[1], bias=bias is not None, near=near)
    return new.add(node, "", operator, *node.inputs, weights=weights)


def _apart(matrix: Array) -> tuple[Array, bool]:
    """A matrix without the identity, where that leaves less to be rounded."""
    rows, columns = matrix.shape
    if rows != columns:
        return matrix, False
    rest = matrix - np.eye(rows)
    near = bool(np.linalg.norm(rest) < np.linalg.norm(matrix))
    return (rest, True) if near else (matrix, False)


def stored(graph: ModelGraph) -> dict[str, str]:
    """The element types of weights that are not float32, by slot."""
    return {
        ref.slot: node.operator.stored[name]
        for node in graph.nodes
        if isinstance(node.operator, ReducedOperator)
        for name, ref in node.weights.items()
        if name in node.operator.stored
    }


def store(model: onnx.ModelProto, graph: ModelGraph) -> onnx.ModelProto:
    """The weights of an emitted model in the element types that their steps say, where all of them are exact."""
    wanted = stored(graph)
    for tensor in model.graph.initializer:
        if tensor.name in wanted:
            array = numpy_helper.to_array(tensor).astype(ELEMENTS[wanted[tensor.name]])
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return model
