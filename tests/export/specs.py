"""Small networks for the tests of export: rectangular, so that N, d, K p and batch all differ."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from crate_dsl.compiler.build import build
from crate_dsl.compiler.graph import ModelGraph
from crate_dsl.compiler.network import Network
from crate_dsl.language.source import Source
from crate_dsl.workspace import Target, load_source

IMAGES = """# A small classifier.
model images(dim = 10, depth = 3, subspaces = 2, rank = 4, patch = 2, classes = 7) {
    input image : float[3, 4, 6]
    learn class_token : float[dim] = normal(1)
    stage encoder = repeat(depth) {
        compress(subspaces, rank)
        sparsify(step = 0.1, penalty = 0.1)
    }
    tokens = image -> patchify(patch) -> norm -> linear(dim) -> norm -> prepend(class_token)
                   -> position(learned) -> dropout(0.1)
    logits = tokens -> encoder -> select(class_token) -> norm -> linear(classes)
    output logits
}
"""

TEXT = """
model text(vocab = 17, context = 9, dim = 10, classes = 3) {
    input ids   : index(vocab)[n <= context]
    input kept  : bool[n]
    input noise : float[n, dim] = normal(0.5)
    stage embedding = embed(dim)
    tokens = ids -> embedding -> position(learned, length = context)
    once   = tokens + noise -> compress(3, rank = 4, mask = kept)
    twice  = once -> compress(3, rank = 4, mask = causal) -> sparsify(step = learn(0.1), penalty = 0.1)
    logits = twice -> pool -> linear(classes)
    words  = twice -> transpose(embedding)
    output logits, words
}
""".replace("tokens + noise ->", "(tokens + noise) ->")


def graph_of(text: str, name: str = "spec.crate", **settings: object) -> ModelGraph:
    """The graph of a spec's text."""
    return load_source(Source(name, text), Target(name), settings)


@cache
def images() -> tuple[ModelGraph, Network]:
    """A built image classifier. Shared: tests leave it as it is."""
    graph = graph_of(IMAGES)
    return graph, build(graph, seed=3).eval()


@cache
def text() -> tuple[ModelGraph, Network]:
    """A built network on texts of unknown length. Shared: tests leave it as it is."""
    graph = graph_of(TEXT)
    return graph, build(graph, seed=3).eval()


def weights_of(net: Network) -> dict[str, NDArray[np.float32]]:
    return {name: value.numpy() for name, value in net.state_dict().items()}
