"""The laws of causal networks: a prefix of what goes in gives that prefix of what comes out, with a cache or without.

    python -m benchmarks.prefix [--length 96]

For every causal step of `STEPS` and every network of text, at weights moved away from where they start: `prefix` is how
far f(X[:n]) is from f(X)[:n], over several n; `cached` how far the network for the next tokens is from the whole pass,
when tokens come one by one, in portions, and all at once. In torch, in float64 and float32, and in the exported file in
onnxruntime; that one is held against torch's whole pass. Differences are absolute, of outputs up to `largest`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor

import crate_dsl
from benchmarks.run import WIDTH
from crate_dsl.compiler.export import lowered_model
from crate_dsl.compiler.graph import ModelGraph
from crate_dsl.compiler.network import Network
from crate_dsl.compiler.prove import perturb
from crate_dsl.compiler.runtime import bare_session
from crate_dsl.compiler.stepping import empty, step_graph, stepped
from crate_dsl.compiler.weights import plain_weights
from crate_dsl.language.source import Source
from crate_dsl.workspace import Target, load_source

#: Every causal step, and what its arguments change of the way that tokens meet.
STEPS = {
    "attention": "compress(3, 6, mask = causal)",
    "attention, learned": (
        "compress(3, 6, mask = causal, out = tied, scale = learn(0.6), step = learn(0.3, shape = [20]))"
    ),
    "attention, rotary": "compress(3, 6, mask = causal, positions = rotary)",
    "attention, window": (
        "compress(3, 6, mask = key.place <= query.place and query.place - key.place < 8, norm = rms)"
    ),
    "statistics": "compress(3, 6, mask = causal, gradient = statistics, length = length)",
    "statistics, tied": (
        "compress(3, 6, mask = causal, gradient = statistics, length = length, out = tied, step = learn(0.3))"
    ),
    "attend": "attend(4, mask = causal)",
    "attend, rotary": "attend(2, mask = causal, positions = rotary, bias = false)",
    "attend, window": "attend(4, mask = key.place <= query.place and query.place - key.place < 8)",
}
MODELS = ("crate_gpt", "tost_gpt", "gpt")
#: What is measured, and where.
COLUMNS = [(law, where) for law in ("prefix", "cached") for where in ("float64", "torch", "onnxruntime")]
SHORT = {"onnxruntime": "onnx"}
#: What the laws are held to, in float32.
LIMIT = 1e-5


@dataclass(frozen=True)
class Errors:
    """Of one network: the largest differences, and the largest number that comes out."""

    largest: float
    prefix_float64: float
    prefix_torch: float
    prefix_onnxruntime: float
    cached_float64: float
    cached_torch: float
    cached_onnxruntime: float

    @property
    def worst(self) -> float:
        """In float32."""
        return max(self.prefix_torch, self.prefix_onnxruntime, self.cached_torch, self.cached_onnxruntime)


#: Tokens (B, N, …) -> what comes out, (B, N, …).
Pass = Callable[[Tensor], Tensor]
#: The next tokens, how many were before, and what is held of them -> what comes out, and what is held then.
Step = Callable[[Tensor, int, dict[str, Tensor]], tuple[Tensor, dict[str, Tensor]]]


def step_network(step: str, length: int, seed: int = 0) -> Network:
    """A step between positions and a norm, its weights moved."""
    text = f"""model example(length = {length}) {{
        input z : float[n <= length, 20]
        y = z -> position(learned, length = length) -> {step} -> norm
        output y
    }}"""
    return moved(load_source(Source("example.crate", text), Target("example.crate")), seed)


def text_network(model: str, seed: int = 0) -> Network:
    return moved(crate_dsl.load(f"specs/text.crate:{model}@characters"), seed)


def moved(graph: ModelGraph, seed: int) -> Network:
    net = crate_dsl.build(graph, seed=seed).eval()
    perturb(net, graph.slots, seed)
    return net


def tokens_of(net: Network, length: int, batch: int = 3, seed: int = 0) -> Tensor:
    (entry,) = net.graph.export_inputs.values()
    generator = torch.Generator().manual_seed(seed)
    if entry.type.kind == "index":
        assert entry.type.classes is not None
        return torch.randint(entry.type.classes, (batch, length), generator=generator)
    return torch.randn(batch, length, entry.type.shape[1].bound, generator=generator)


def portions(length: int) -> Iterator[list[int]]:
    """All at once, one by one, and in portions that are all different."""
    yield [length]
    yield [1] * length
    sizes = [1, 5, 2, 11]
    yield [*sizes, length - sum(sizes)]


def prefixes(length: int) -> list[int]:
    return [1, 2, length // 3, length - 1]


# ------------------------------------------------------------------ the laws


def prefix_error(run: Pass, tokens: Tensor) -> float:
    whole = run(tokens)
    return max(float((run(tokens[:, :n]) - whole[:, :n]).abs().max()) for n in prefixes(tokens.shape[1]))


def cached_error(step: Step, nothing: Mapping[str, Tensor], tokens: Tensor, whole: Tensor) -> float:
    """How far a fold over portions is from the whole."""
    worst = 0.0
    for sizes in portions(tokens.shape[1]):
        states, past = dict(nothing), 0
        for size in sizes:
            found, states = step(tokens[:, past : past + size], past, states)
            worst = max(worst, float((found - whole[:, past : past + size]).abs().max()))
            past += size
    return worst


def in_torch(one: Network) -> Step:
    cache = one.graph.cache
    assert cache is not None

    def step(tokens: Tensor, past: int, states: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        given = {cache.tokens: tokens, cache.past: torch.full((len(tokens),), past), **states}
        found = one(**given)
        return found[cache.scores], {state: found[after] for state, after in cache.states}

    return step


def in_onnxruntime(net: Network, folder: Path) -> tuple[Pass, Step]:
    """The exported file's whole pass, and its pass over the next tokens."""
    one = step_graph(net.graph)
    cache = one.cache
    assert cache is not None
    sessions = []
    for name, graph in (("whole", net.graph), ("cached", one)):
        onnx.save(lowered_model(graph, plain_weights(graph, net), "all", {}), folder / f"{name}.onnx")
        sessions.append(bare_session(folder / f"{name}.onnx"))
    first, second = sessions

    def run(tokens: Tensor) -> Tensor:
        return torch.from_numpy(first.run([cache.scores], {cache.tokens: tokens.numpy()})[0])

    def step(tokens: Tensor, past: int, states: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        held = {name: state.numpy() for name, state in states.items()}
        feeds = {cache.tokens: tokens.numpy(), cache.past: np.full(len(tokens), past), **held}
        found, *after = second.run([cache.scores, *(name for _, name in cache.states)], feeds)
        names = (state for state, _ in cache.states)
        return torch.from_numpy(found), dict(zip(names, map(torch.from_numpy, after), strict=True))

    return run, step


@torch.no_grad()
def errors(net: Network, length: int) -> Errors:
    """Both laws, of one network."""
    tokens = tokens_of(net, length)
    one = stepped(net)
    with TemporaryDirectory() as folder:
        run, step = in_onnxruntime(net, Path(folder))
        nothing = empty(one.graph, len(tokens))
        whole = net(tokens)
        largest = float(whole.abs().max())
        prefix = prefix_error(net, tokens), prefix_error(run, tokens)
        cached = (
            cached_error(in_torch(one), nothing, tokens, whole),
            cached_error(step, nothing, tokens, whole),
        )
    net, one = net.double(), one.double()
    exact = tokens.double() if tokens.is_floating_point() else tokens
    nothing = {name: state.double() for name, state in nothing.items()}
    return Errors(
        largest,
        prefix_error(net, exact),
        *prefix,
        cached_error(in_torch(one), nothing, exact, net(exact)),
        *cached,
    )


def table(rows: Mapping[str, Errors]) -> Table:
    shown = Table(
        title="differences from the whole pass",
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 0, 0, 1),
        width=WIDTH,
    )
    shown.add_column("", no_wrap=True)
    shown.add_column("largest", justify="right")
    for law, where in COLUMNS:
        shown.add_column(f"{law}\n{SHORT.get(where, where)}", justify="right", no_wrap=True)
    for name, row in rows.items():
        found = (getattr(row, f"{law}_{where}") for law, where in COLUMNS)
        shown.add_row(name, f"{row.largest:.1f}", *(f"{error:.0e}" for error in found))
    return shown


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--length", type=int, default=96, help="tokens; at most 128")
    given = parser.parse_args(arguments)
    rows = {name: errors(step_network(step, given.length), given.length) for name, step in STEPS.items()}
    rows |= {model: errors(text_network(model), given.length) for model in MODELS}
    console = Console(width=WIDTH)
    console.print(table(rows))
    worst = max(row.worst for row in rows.values())
    console.print(f"\nat most {worst:.1e} in float32, where {LIMIT:g} is allowed")
    if worst > LIMIT:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
