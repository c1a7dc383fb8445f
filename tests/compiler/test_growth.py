"""Time grows with the number of layers, and not with its square: as ratios in one process, never as times."""

from __future__ import annotations

import gc
from collections.abc import Callable
from statistics import median
from time import process_time

import numpy as np
import pytest

from crate_dsl.compiler.emit import emit
from crate_dsl.compiler.graph import ModelGraph
from crate_dsl.compiler.write_torch import TorchWriter, torch_source
from crate_dsl.language.source import Source
from crate_dsl.show.svg import svg
from crate_dsl.show.table import table
from crate_dsl.workspace import Target, load_source

#: A shallow and a deep network. At ten times the layers, what is linear takes at most ten times as long, and what is
#: quadratic a hundred times: the bound lies where noise does not reach it from below, nor a square from above.
SHALLOW, DEEP, BOUND, ROUNDS = 100, 1000, 20, 3

LAYER = "compress(2, rank = 4) -> sparsify(step = 0.1, penalty = 0.1)"
BIJECTIVE = "compress(2, rank = 4, norm = none) -> sparsify(step = 0.1, penalty = 0.1, norm = none)"

#: What grows in each: layers, layers of layers, pairs, uses of one stage, graph bodies, looks of an objective, text.
SHAPES: dict[str, Callable[[int], str]] = {
    "repeat": lambda n: f"stage f = repeat({n}) {{ {LAYER} }}\n y = z -> f",
    "layer": lambda n: f"stage f = repeat({n}) {{ {LAYER} -> dropout(layer / 10000) }}\n y = z -> f",
    "nested": lambda n: f"stage f = repeat({n // 10}) {{ repeat(10) {{ {LAYER} }} }}\n y = z -> f",
    "learned pairs": lambda n: (
        f"stage f = repeat({n}) {{ {LAYER} }}\n stage g = inverse(f, mode = learned)\n y = z -> f -> g"
    ),
    "tied pairs": lambda n: (
        f"stage f = repeat({n}) {{ {BIJECTIVE} }}\n stage g = inverse(f, mode = tied)\n y = z -> f -> g"
    ),
    "fixed points": lambda n: (
        f"stage f = repeat({n}) {{ residual {{ linear(8) }} }}\n"
        "stage g = inverse(f, mode = fixed_point(2))\n y = z -> f -> g"
    ),
    "uses": lambda n: f"stage f = {LAYER}\n y = z -> repeat({n}) {{ f }}",
    "bodies": lambda n: (
        f"stage f = repeat({n}) {{ input x\n u = x -> norm\n v = u * 0.5 + x\n output v }}\n y = z -> f"
    ),
    "objective": lambda n: (
        f"target t : float[5, 8]\n stage f = repeat({n}) {{ {LAYER} }}\n y = z -> f\n"
        "objective mse(y, t) + 0.1 * sparse_rate(f)"
    ),
    "bindings": lambda n: "y0 = z\n" + "\n".join(
        f"y{i + 1} = y{i} -> norm" for i in range(n)
    ) + f"\n y = y{n} + z",
    "live values": lambda n: "\n".join(f"y{i} = z -> norm" for i in range(n))
    + "\n y = " + " + ".join(f"y{i}" for i in range(n)),
}  # fmt: skip


def load(shape: str, size: int) -> ModelGraph:
    text = f"model grown {{\n input z : float[5, 8]\n {SHAPES[shape](size)}\n output y\n}}\n"
    return load_source(Source("grown.crate", text), Target("grown.crate"))


def growth(shallow: Callable[[], object], deep: Callable[[], object]) -> float:
    """How many times the processor time of the shallow one the deep one takes: the medians of rounds in turn."""
    runs = (shallow, deep)
    found: tuple[list[float], list[float]] = ([], [])
    for run in runs:  # what is made once is not measured
        run()
    for _ in range(ROUNDS):
        for run, times in zip(runs, found, strict=True):
            gc.collect()
            start = process_time()
            run()
            times.append(process_time() - start)
    return median(found[1]) / median(found[0])


@pytest.mark.parametrize("shape", SHAPES)
def test_a_spec_is_read_in_linear_time(shape: str) -> None:
    assert growth(lambda: load(shape, SHALLOW), lambda: load(shape, DEEP)) < BOUND


def test_ten_thousand_layers_are_no_other_thing() -> None:
    assert growth(lambda: load("repeat", 1_000), lambda: load("repeat", 10_000)) < BOUND


@pytest.mark.parametrize("shape", SHAPES)
def test_forward_and_file_are_written_in_linear_time(shape: str) -> None:
    graphs = [load(shape, size) for size in (SHALLOW, DEEP)]
    texts = [lambda graph=graph: written(graph) for graph in graphs]
    assert growth(*texts) < BOUND
    weights = [
        {path: np.zeros(slot.shape, np.float32) for path, slot in graph.slots.items()} for graph in graphs
    ]
    models = [
        lambda graph=graph, own=own: emit(graph, own) for graph, own in zip(graphs, weights, strict=True)
    ]
    assert growth(*models) < BOUND


def written(graph: ModelGraph) -> None:
    torch_source(graph)
    if graph.objective is not None:
        TorchWriter(graph).objective()


@pytest.mark.parametrize("fold", [True, False])
def test_a_network_is_shown_in_linear_time(fold: bool) -> None:
    graphs = [load("repeat", size) for size in (SHALLOW, DEEP)]
    shown = [lambda graph=graph: (table(graph, fold=fold), svg(graph, fold=fold)) for graph in graphs]
    assert growth(*shown) < BOUND


def test_layers_that_say_the_same_are_one_operator_and_one_typing() -> None:
    """What memory holds of a further layer is where it stands and what it reads."""
    steps = [node for node in load("repeat", 10).nodes if node.word == "compress"]
    assert len({id(node.operator) for node in steps}) == len({id(node.typing) for node in steps}) == 1


def test_layers_that_say_something_else_are_not() -> None:
    """A name that means something else in each layer is read again in each."""
    steps = [node for node in load("layer", 10).nodes if node.word == "dropout"]
    assert [vars(node.operator)["p"] for node in steps] == [layer / 10000 for layer in range(10)]


def test_layers_of_another_width_are_typed_again() -> None:
    graph = load_source(
        Source("g.crate", "model g(d = [6, 7, 7]) { input z : float[5, 8]\n y = z -> repeat(3) { linear(d[layer]) }\n"
               " output y }"),
        Target("g.crate"),
    )  # fmt: skip
    assert [str(node.typing.output) for node in graph.nodes] == ["float[5, 6]", "float[5, 7]", "float[5, 7]"]
    assert [slot.shape for slot in graph.slots.values()] == [(6, 8), (6,), (7, 6), (7,), (7, 7), (7,)]
