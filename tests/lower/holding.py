"""A lowered network against the network itself in float64, at weights that are not the initial ones."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

import crate_dsl
from crate_dsl.compiler.graph import ModelGraph
from crate_dsl.compiler.lower import REWRITES
from crate_dsl.compiler.network import Network
from crate_dsl.compiler.prove import cases, drawn_inputs, perturb
from tests.lower.corners import graph_of

#: How far a lowered network in float32 may be from the network in float64, relative to the largest number of the
#: output. Both compute the same function; what is left is float32's rounding (6e-8 a number), which sums over some
#: dozen numbers and a few layers, and which networks of this size keep below 3e-6. A wrong sign, a forgotten shift or a
#: swapped factor shows above 1e-3.
ROUNDING = 1e-5

#: Every choice of rewrites that is tried: each alone, all but each, all of them, none.
CHOICES = ["none", "all", *REWRITES, *(f"-{name}" for name in REWRITES)]


def perturbed(graph: ModelGraph | str) -> Network:
    """The network of a graph or of a text, at weights that are all moved."""
    graph = graph_of(graph) if isinstance(graph, str) else graph
    net = crate_dsl.build(graph, seed=1).eval()
    perturb(net, graph.slots)
    return net


def feeds(graph: ModelGraph) -> Iterator[dict[str, Tensor]]:
    """Batches of 2, 1 and 5 samples, of three sizes and, where lengths are open, of three lengths."""
    generator = np.random.default_rng(0)
    for case in cases(graph)[:3]:
        given = drawn_inputs(graph, case, generator)
        yield {name: torch.from_numpy(array) for name, array in given.items()}


def results(net: Network, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every output by its name."""
    with torch.no_grad():
        found = net(**given)
    return dict(found) if isinstance(found, Mapping) else {next(iter(net.graph.outputs)): found}


def errors(net: Network, *lowered: Network) -> list[float]:
    """For each of these, the largest difference from `net` in float64, relative to the output's largest number."""
    exact = copy.deepcopy(net).double()
    worst = [0.0] * len(lowered)
    for given in feeds(net.graph):
        precise = {name: t.double() if t.dtype == torch.float32 else t for name, t in given.items()}
        wanted = results(exact, precise)
        for place, other in enumerate(lowered):
            found = results(other, given)
            assert found.keys() == wanted.keys()
            for name, value in wanted.items():
                assert found[name].shape == value.shape and found[name].isfinite().all(), name
                largest = float(value.abs().max()) or 1.0
                worst[place] = max(worst[place], float((found[name] - value).abs().max()) / largest)
    return worst


def hold(net: Network, *choices: str) -> None:
    """Lowered by each of these choices, the network computes the same."""
    found = errors(net, *(crate_dsl.lower(net, choice) for choice in choices))
    assert max(found) < ROUNDING, dict(zip(choices, found, strict=True))
