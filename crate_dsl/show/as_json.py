"""A graph for programs."""

from __future__ import annotations

from typing import Any

from crate_dsl.compiler.graph import ModelGraph
from crate_dsl.compiler.promises import EPSILONS, promises
from crate_dsl.show.steps import edges_of, steps_of


def as_data(graph: ModelGraph) -> dict[str, Any]:
    """A graph as JSON takes it.

    `parameters` are trained numbers, `flops` operations for one sample at inference, 2 for each multiply-add; both
    add up over the nodes. `inverse` is the step that undoes a node's, or why there is none. Edges begin at inputs and
    end at outputs. `pairs` has an object for each inverse: its steps, each with the one that it undoes, and the
    tolerance of its certificate, relative to the largest token (null where nothing is certified).
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
        "pairs": [
            {
                "inverse": promise.inverse,
                "stage": promise.stage,
                "mode": promise.spelled,
                "tolerance": {name: promise.tolerance(name) for name in EPSILONS},
                "steps": [
                    [pair.step, pair.undoes]
                    for pair in graph.pairs
                    if (pair.inverse, pair.stage) == (promise.inverse, promise.stage)
                ],
            }
            for promise in promises(graph)
        ],
        "edges": [[edge.source, edge.target] for edge in edges_of(graph)],
        "inputs": {name: str(entry.type) for name, entry in graph.inputs.items()},
        "outputs": {name: str(graph.type_of(value)) for name, value in graph.outputs.items()},
    }
