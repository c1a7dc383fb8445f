"""From a network to an ONNX model, and from a spec to a graph: time and peak memory, by number of layers.

Emission is everything from a module and its weights to a `ModelProto`, without a proof: `torch.onnx.export` of the
published network against ours, as it is and lowered. Checking is `crate_dsl.load`: parsing and elaboration.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import crate_dsl
from benchmarks import exported, networks
from benchmarks.measure import Effort, interleaved, rows
from benchmarks.memory import peak_of
from benchmarks.published import with_weights_of
from benchmarks.sessions import missing
from crate_dsl.compiler.emit import emit
from crate_dsl.compiler.export import plain_weights

REFERENCE = "torch.onnx.export"
VARIANTS = (REFERENCE, "crate-dsl, as it is", "crate-dsl, lowered")


def emission(network: str, depth: int, variant: str) -> Callable[[], Any]:
    """One variant, ready to be called. It gives a model, weights and all."""
    graph = networks.crate(network, {"depth": depth})
    net = crate_dsl.build(graph, seed=0).eval()
    if variant == REFERENCE:
        settings = networks.sizes(graph)
        published = with_weights_of(net, settings)
        image_bchw = torch.zeros(2, settings["channels"], settings["size"], settings["size"])
        return lambda: exported.program(published, image_bchw).model_proto
    if variant == "crate-dsl, lowered":
        return lambda: exported.lowered_model(net)
    return lambda: emit(graph, plain_weights(graph, net))


def measured(network: str, depth: int, effort: dict[str, Any]) -> dict[str, Any]:
    """Rows of every variant at one depth, with the number of nodes that its model has once its functions are inlined,
    and what was left out.
    """
    reason = missing("onnxscript")
    names = [name for name in VARIANTS if reason is None or name != REFERENCE]
    models: dict[str, Any] = {}

    def kept(name: str) -> Callable[[], None]:
        emission("least", 1, name)()  # what an exporter loads when it is first used is not measured
        run = emission(network, depth, name)
        return lambda: models.update({name: run()})

    runs = {name: kept(name) for name in names}
    table = rows(interleaved(runs, Effort(**effort, warm=False)), names[0])
    for name, row in table.items():
        row["nodes"] = nodes_of(models[name])
    return {"rows": table, "left_out": {} if reason is None else {REFERENCE: reason}}


def nodes_of(model: Any) -> int:
    """Nodes of a model, those inside its functions counted at each call."""
    functions = {(f.domain, f.name): f.node for f in model.functions}

    def count(found: Any) -> int:
        return sum(count(functions[key]) if (key := (n.domain, n.op_type)) in functions else 1 for n in found)

    return count(model.graph.node)


def memory(network: str, depth: int, variant: str) -> dict[str, float | None]:
    """MiB that one emission takes at its highest, beyond the network; the exporter is loaded before."""
    emission("least", 1, variant)()
    return {"mebibytes": peak_of(emission(network, depth, variant))}


def check(depths: list[int], effort: dict[str, Any]) -> dict[str, Any]:
    """Seconds of `crate_dsl.load` by number of layers; `ratio` is against the first."""
    runs = {str(depth): _loaded(depth) for depth in depths}
    return rows(interleaved(runs, Effort(**effort)), str(depths[0]))


def check_memory(depth: int) -> dict[str, float | None]:
    """MiB that loading takes at its highest."""
    _loaded(1)()
    return {"mebibytes": peak_of(_loaded(depth))}


def _loaded(depth: int) -> Callable[[], Any]:
    return lambda: networks.crate("micro", {"depth": depth})
