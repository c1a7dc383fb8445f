"""ONNX local functions, written node by node: what the `onnx.py` face of a step draws on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from crate_dsl.compiler.operators import Operator, Port

#: The domain of the local functions in exported files.
DOMAIN = "crate_dsl"
#: The standard operator set of exported files: the first with `Attention`.
OPSET = 23


class Body:
    """The body of one local function. Calling it adds a node and gives the name of its result.

    >>> b = Body()
    >>> b("Relu", b("Add", "x", b.number(-0.01)))
    'relu_2'
    """

    def __init__(self, prefix: str = "") -> None:
        self.nodes: list[onnx.NodeProto] = []
        self._prefix = prefix
        self._constants: dict[bytes, str] = {}
        self._count = 0

    def _name(self, op_type: str) -> str:
        name = f"{self._prefix}{op_type.lower()}_{self._count}"
        self._count += 1
        return name

    def __call__(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        """Add a node with one result. Attributes that are None are left out."""
        return self.several(op_type, 1, *inputs, **attributes)[0]

    def several(self, op_type: str, results: int, *inputs: str, **attributes: Any) -> tuple[str, ...]:
        """Add a node with several results."""
        outputs = tuple(self._name(op_type) for _ in range(results))
        given = {key: value for key, value in attributes.items() if value is not None}
        self.nodes.append(helper.make_node(op_type, list(inputs), list(outputs), **given))
        return outputs

    def constant(self, array: np.ndarray) -> str:
        """A constant tensor; equal ones are shared."""
        key = repr((array.dtype, array.shape)).encode() + array.tobytes()
        if key not in self._constants:
            self._constants[key] = self("Constant", value=numpy_helper.from_array(array))
        return self._constants[key]

    def number(self, value: float) -> str:
        """A float32 scalar."""
        return self.constant(np.asarray(value, np.float32))

    def integers(self, *values: int) -> str:
        """An int64 vector: shapes, axes, starts."""
        return self.constant(np.asarray(values, np.int64))

    def scalar(self, operator: Operator, argument: str, slot: str | None) -> str:
        """An argument that may be a number, or a weight or tensor called `slot`.

        A tensor handed over has shape (B,) and is reshaped to (B, 1, 1); a weight keeps its shape.
        """
        value = getattr(operator, argument)
        if slot is None:
            return self.number(float(value))
        return self("Reshape", slot, self.integers(-1, 1, 1)) if isinstance(value, Port) else slot

    def repeat(self, times: int, start: str, turn: Callable[[Body, str], str]) -> str:
        """A float tensor through `turn` so many times, from `start`. A turn sees every name that is there before it.

        Several turns are a `Loop`: the file holds one of them.
        """
        if times <= 1:
            return turn(self, start) if times else start
        prefix = self._name("turn") + "."
        inner, state = Body(prefix), f"{prefix}state"
        result = turn(inner, state)
        go_on, went_on, iteration = f"{prefix}go_on", f"{prefix}went_on", f"{prefix}iteration"
        inner.nodes.append(helper.make_node("Identity", [go_on], [went_on]))
        graph = helper.make_graph(
            inner.nodes,
            prefix.rstrip("."),
            [
                helper.make_tensor_value_info(iteration, onnx.TensorProto.INT64, []),
                helper.make_tensor_value_info(go_on, onnx.TensorProto.BOOL, []),
                helper.make_tensor_value_info(state, onnx.TensorProto.FLOAT, None),
            ],
            [
                helper.make_tensor_value_info(went_on, onnx.TensorProto.BOOL, []),
                helper.make_tensor_value_info(result, onnx.TensorProto.FLOAT, None),
            ],
        )
        trips = self.constant(np.asarray(times, np.int64))
        return self("Loop", trips, "", start, body=graph)

    def function(self, name: str, inputs: Sequence[str], outputs: Sequence[str]) -> onnx.FunctionProto:
        """The finished function."""
        return helper.make_function(
            DOMAIN, name, list(inputs), list(outputs), self.nodes, [helper.make_opsetid("", OPSET)]
        )
