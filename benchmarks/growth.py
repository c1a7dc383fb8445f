"""How time grows with the tokens and with the depth: ours in onnxruntime, and the published network in torch.

Each size is measured at batch 1, both in turns; `exponent` is p where seconds ~ size^p. Attention takes the square of
the tokens, everything else grows as they do, so that p rises from 1 towards 2.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

import crate_dsl
from benchmarks import exported, networks
from benchmarks.measure import Effort, error, exponent, interleaved, local_exponents, rows
from benchmarks.published import with_weights_of
from benchmarks.sessions import onnxruntime_call

REFERENCE, OURS = "published, torch", "crate-dsl, onnxruntime"
#: The same network: rounding of float32, summed over many tokens and layers.
ALLOWED = 1e-3


def measured(
    network: str, setting: str, values: list[int], effort: dict[str, Any], changes: dict[str, int]
) -> dict[str, Any]:
    """Rows by size, where the spec's `setting` takes the values; images of `size` are told by their tokens."""
    found: dict[str, dict[str, Any]] = {}
    for value in values:
        graph = networks.crate(network, {**changes, setting: value})
        settings = networks.sizes(graph)
        tokens = (settings["size"] // settings["patch"]) ** 2
        found[str(tokens if setting == "size" else value)] = _compared(graph, settings, Effort(**effort))
    sizes = [float(size) for size in found]
    slopes = {}
    for name in (REFERENCE, OURS):
        costs = [row[name]["median"] for row in found.values()]
        slopes[name] = {"exponent": exponent(sizes, costs), "between": list(local_exponents(sizes, costs))}
    return {"sizes": found, "exponents": slopes}


def _compared(graph: Any, settings: dict[str, int], effort: Effort) -> dict[str, Any]:
    net = crate_dsl.build(graph, seed=0).eval()
    published = with_weights_of(net, settings).eval()
    image_bchw = torch.randn(1, settings["channels"], settings["size"], settings["size"])
    ours = partial(
        onnxruntime_call(exported.lowered_model(net).SerializeToString()), {"image": image_bchw.numpy()}
    )
    with torch.no_grad():
        off = error(ours(), published(image_bchw))
        assert off <= ALLOWED, f"{settings}: onnxruntime is off by {off:.1e}"
        return rows(interleaved({REFERENCE: lambda: published(image_bchw), OURS: ours}, effort), REFERENCE)
