"""How many bits can pass each edge of a network, and how many its tokens use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import log, log2

from crate_dsl.compiler.graph import ModelGraph
from crate_dsl.compiler.types import TensorType
from crate_dsl.inspection.measures import Measure

#: Bits of a number as networks hold it.
FLOAT_BITS = 32


@dataclass(frozen=True)
class Edge:
    """A tensor that one step hands to the next; or all tensors of one type in a stage, from the first to the last.

    `bits` is an upper bound for one sample. `used` is the least and the largest R / ln 2 of the layers among them, in
    bits for each token; `each` is the upper bound for each token.
    """

    first: str
    last: str
    type: str
    bits: float
    each: float | None
    used: tuple[float, float] | None


def bits(type_: TensorType) -> float:
    """An upper bound of what a tensor tells: 32 for each float, log2 V for each index, 1 for each boolean."""
    if type_.kind == "index":
        assert type_.classes is not None
        return type_.elements * log2(type_.classes)
    return float(type_.elements * (FLOAT_BITS if type_.kind == "float" else 1))


def edges(graph: ModelGraph, rates: Mapping[str, Measure]) -> list[Edge]:
    """Every tensor that the outputs depend on, in order. `rates` are R, in nats, of the results of some nodes."""
    rows: list[tuple[str, TensorType]] = [(name, entry.type) for name, entry in graph.export_inputs.items()]
    rows += [
        (node.name, type_)
        for node in graph.nodes
        if node.name in graph.exported
        for type_ in node.typing.outputs
    ]
    found: dict[tuple[str, str], Edge] = {}
    for name, type_ in rows:
        rate = rates[name].mean / log(2) if name in rates else None
        key = (name.partition(".")[0], str(type_))
        first, used = name, () if rate is None else (rate, rate)
        if key in found:
            first, used = found[key].first, (*(found[key].used or ()), *used)
        each = bits(type_) / type_.shape[0].bound if type_.rank == 2 else None
        found[key] = Edge(first, name, key[1], bits(type_), each, (min(used), max(used)) if used else None)
    return list(found.values())
