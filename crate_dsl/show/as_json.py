"""A graph for programs."""

from __future__ import annotations

from typing import Any

from crate_dsl.compiler.graph import ModelGraph
from crate_dsl.show.steps import edges_of, steps_of


def as_data(graph: ModelGraph) -> dict[str, Any]:
    """A graph as JSON takes it.

    `parameters` are trained numbers, `flops` operations for one sample at inference, 2 for each multiply-add; both
    add up over the nodes. `inverse` is the step that undoes a node's, or why there is none. Edges begin at inputs and
    end at outputs.
    """
    return {
        "model": graph.model,
        "variant": graph.variant,
        "parameters": graph.parameters,
        "flops": graph.flops,
        "nodes": [
            {
                "name": step.name,
                "step": step.node.word,
                "type": step.type,
                "parameters": step.parameters,
                "flops": step.flops,
                "inverse": step.inverse,
                "line": step.line,
            }
            for step in steps_of(graph)
        ],
        "edges": [[edge.source, edge.target] for edge in edges_of(graph)],
        "inputs": {name: str(entry.type) for name, entry in graph.inputs.items()},
        "outputs": {name: str(graph.type_of(value)) for name, value in graph.outputs.items()},
    }
