"""Parts that every step is written out with: an affine map, and two tensors combined."""

from __future__ import annotations

import numpy as np

from crate_dsl.compiler.draft import Array, Draft
from crate_dsl.compiler.graph import Node, Value
from crate_dsl.compiler.operators import Operator, Port
from crate_dsl.compiler.steps.parts.operator import Affine


def affine(
    d: Draft, by: Node, part: str, value: Value, matrix: Array, bias: Array | float | None = None
) -> Value:
    """Value @ matrix + bias, for each token."""
    weights = {"matrix": matrix}
    if bias is not None:
        weights["bias"] = np.broadcast_to(np.asarray(bias, np.float64), matrix.shape[1:])
    return d.add(by, part, Affine(dim=matrix.shape[1], bias=bias is not None), value, weights=weights)


def combine(d: Draft, by: Node, part: str, kind: type[Operator], left: Value, right: Value) -> Value:
    """Two tensors of equal shape in an operation whose operands are called `left` and `right`."""
    ports = {"left": left, "right": right}
    operator = kind(**{name: Port(d.type_of(value)) for name, value in ports.items()})
    return d.add(by, part, operator, ports=ports)
