"""Lowering: the same numbers with less work, by exact rewrites for inference, on graph and weights together.

Each rewrite has a file, which states what it needs and why its result is equal. That it is equal is proved with every
file that is exported, against the network as it was trained.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from crate_dsl.compiler.build import build
from crate_dsl.compiler.draft import Draft
from crate_dsl.compiler.graph import ModelGraph
from crate_dsl.compiler.lower.constants import constants
from crate_dsl.compiler.lower.demand import demand
from crate_dsl.compiler.lower.fold import fold
from crate_dsl.compiler.lower.norm import norm
from crate_dsl.compiler.lower.parts import parts
from crate_dsl.compiler.lower.patches import patches
from crate_dsl.compiler.lower.pool import pool
from crate_dsl.compiler.lower.precision import Precision, reduced, stored
from crate_dsl.compiler.lower.rows import rows
from crate_dsl.compiler.lower.share import share
from crate_dsl.compiler.lower.softmax import softmax
from crate_dsl.compiler.network import Network
from crate_dsl.compiler.steps.reduced.operator import Half
from crate_dsl.compiler.weights import plain_weights
from crate_dsl.language.diagnostics import UserError, did_you_mean

#: Every rewrite by name, in the order in which they work: each finds what those before it have brought to light.
REWRITES: dict[str, Callable[[Draft], Draft]] = {
    "constants": constants,
    "parts": parts,
    "share": share,
    "fold": fold,
    "norm": norm,
    "patches": patches,
    "softmax": softmax,
    "pool": pool,
    "demand": demand,
    "rows": rows,
}


@dataclass(frozen=True, slots=True)
class Effect:
    """What one rewrite did: steps and operations for one sample, before it and after."""

    rewrite: str
    steps: tuple[int, int]
    flops: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Lowered:
    """A lowered network: a flat graph whose weights are no longer those that were trained, and what was done."""

    graph: ModelGraph
    weights: Mapping[str, NDArray[np.float32]]
    effects: tuple[Effect, ...]


def chosen(text: str) -> tuple[str, ...]:
    """The rewrites that a choice names: `all`, `none`, `fold,norm` (these alone), or `-fold,-norm` (all but these).

    >>> chosen("-fold,-norm")
    ('constants', 'parts', 'share', 'patches', 'softmax', 'pool', 'demand', 'rows')

    Raises:
        UserError: there is no rewrite of that name, or some are named and others left out.
    """
    if text in ("all", "none"):
        return tuple(REWRITES) if text == "all" else ()
    named = [name.strip() for name in text.split(",")]
    wanted = {name.removeprefix("-") for name in named}
    for name in sorted(wanted - REWRITES.keys()):
        near = did_you_mean(name, REWRITES)
        known = f"did you mean `{near}`?" if near else f"all, none, or some of {', '.join(REWRITES)}"
        raise UserError(f"there is no rewrite `{name}`", known, exit_code=2)
    without = [name.startswith("-") for name in named]
    if any(without) and not all(without):
        help = "`fold,norm` are these alone, `-fold,-norm` all but these"
        raise UserError(f"`{text}` names some rewrites and leaves out others", help, exit_code=2)
    return tuple(name for name in REWRITES if (name in wanted) != all(without))


def lower_graph(graph: ModelGraph, weights: Mapping[str, NDArray[Any]], rewrites: str = "all") -> Lowered:
    """Lower the exported part of a network.

    Args:
        graph: The network as elaborated.
        weights: Its arrays by slot path.
        rewrites: Which, as `chosen` takes it.

    Raises:
        UserError: there is no such rewrite.
    """
    draft = Draft.of(graph, weights)
    effects = []
    for name in chosen(rewrites):
        after = REWRITES[name](draft)
        effects.append(Effect(name, (len(draft.nodes), len(after.nodes)), (draft.flops, after.flops)))
        draft = after
    return Lowered(*draft.graph(), tuple(effects))


def built(graph: ModelGraph, weights: Mapping[str, NDArray[np.float32]]) -> Network:
    """A lowered network as a torch module, with its weights."""
    net = build(graph)
    net.load_state_dict({path: torch.from_numpy(array) for path, array in weights.items()})
    return net.eval()


def lower(net: Network, rewrites: str = "all", precision: Precision = "float32") -> Network:
    """The same network with less work, for inference: exact, frozen, and like any network compiled, copied, saved.

    Its weights are no longer those that were trained, so it is neither trained nor inspected nor exported: `export`
    lowers by itself.

    >>> import crate_dsl, torch
    >>> net = crate_dsl.build(crate_dsl.load("specs/crate.crate@fashion"))
    >>> fast = crate_dsl.lower(net)
    >>> fast(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    >>> net.graph.flops, fast.graph.flops
    (31861584, 20783536)

    Args:
        net: The network, float32; it is left as it is.
        rewrites: `all`, `none`, some of them by name (`fold,norm`), or all but some (`-demand`).
        precision: `bfloat16` or `float16`: of the matrices and the products with them, which is then not exact. Norms,
            softmax, all sums of tokens, and what goes in and comes out, stay float32.

    Raises:
        UserError: there is no such rewrite or precision, or the weights are not float32 and finite.
    """
    if precision not in ("float32", *get_args(Half)):
        raise UserError(f"torch computes in {', '.join(('float32', *get_args(Half)))}, not in {precision}")
    lowered = lower_graph(net.graph, plain_weights(net.graph, net), rewrites)
    graph, weights = lowered.graph, lowered.weights
    if precision != "float32":
        graph, weights = reduced(graph, weights, precision, attention=True)
    made = built(graph, weights)
    for path in stored(graph):
        weight = made.get_parameter(path)
        weight.data = weight.data.to(getattr(torch, precision))
    device = next((weight.device for weight in net.parameters()), torch.device("cpu"))
    return made.to(device)
