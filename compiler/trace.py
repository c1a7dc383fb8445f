"""What a network computes on its way: every tap of every step, by spec path."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from crate_dsl.compiler.graph import ModelGraph, Node, Value
from crate_dsl.compiler.modules import StepModule
from crate_dsl.compiler.network import Network, borrowed
from crate_dsl.language.diagnostics import UserError


def trace(net: Network, *globs: str, **inputs: Tensor) -> dict[str, Tensor]:
    """Every tap that the outputs depend on, by spec path: `encoder.3.compress.attention`.

    A step's result stands under the step's own path, `encoder.3.compress`, and an input under its name. Of steps with
    several results each has its number, `path.0`. A second use of a shared step is `path@2`. Draws that are not given
    are drawn, as the network itself draws them.

    The network's forward is left as it is: steps are called one by one, in the plain formula where a tap is wanted.
    Nothing has a gradient; `tapped` can keep it. Whether dropout acts is the network's own mode: `net.eval()`.

    Args:
        net: a network from `build`.
        globs: which paths, as in a shell: `encoder.*.attention`. All of them, where none is given. What they do not
            need is not computed.
        inputs: by name, as the network takes them.

    Raises:
        UserError: a glob that nothing matches, an input that is missing, unknown, or of another shape.

    >>> import crate_dsl, torch
    >>> net = crate_dsl.build(crate_dsl.load("specs/vit.crate@fashion")).eval()
    >>> found = crate_dsl.trace(net, "encoder.0.*", image=torch.zeros(2, 1, 28, 28))
    >>> found["encoder.0.attend.attention"].shape
    torch.Size([2, 4, 50, 50])
    """
    return dict(tapped(net, globs, inputs))


def tapped(
    net: Network, globs: Sequence[str], inputs: Mapping[str, Tensor], *, gradient: bool = False
) -> Iterator[tuple[str, Tensor]]:
    """The pairs of `trace`, one after another, so that nobody has to hold them all.

    With `gradient`, results lead back to the weights and inputs, as far as the caller's own mode has it; weights of
    frozen uses are held fixed.

    Raises:
        UserError: as `trace` does, before anything is computed.
    """
    graph = net.graph
    wanted = _wanted(graph, globs)
    values = _given(net, inputs)
    walk = _walk if gradient else torch.no_grad()(_walk)
    return walk(net, wanted, values)


def paths(graph: ModelGraph) -> list[str]:
    """Every path that `trace` knows: inputs, results and taps, in the order of the network."""
    nodes = (node for node in graph.nodes if node.name in graph.exported)
    return [*graph.export_inputs, *(path for node in nodes for path in (*_taps(node), *_results(node)))]


# ------------------------------------------------------------------ what is wanted


def _results(node: Node) -> list[str]:
    count = len(node.typing.outputs)
    return [node.name] if count == 1 else [f"{node.name}.{index}" for index in range(count)]


def _taps(node: Node) -> list[str]:
    return [f"{node.name}.{tap}" for tap in node.operator.taps]


def _wanted(graph: ModelGraph, globs: Sequence[str]) -> frozenset[str]:
    known = paths(graph)
    if not globs:
        return frozenset(known)
    wanted: set[str] = set()
    for glob in globs:
        found = [path for path in known if fnmatchcase(path, glob)]
        if not found:
            near = get_close_matches(glob, known, cutoff=0.5)
            help = f"near it: {', '.join(near)}" if near else f"the first paths: {', '.join(known[:8])}"
            raise UserError(f"nothing in `{graph.model}` is called `{glob}`", help)
        wanted.update(found)
    return frozenset(wanted)


def _given(net: Network, inputs: Mapping[str, Tensor]) -> dict[Value, Tensor]:
    """The inputs by value, held against the spec; those that are not given are drawn, in the network's own order."""
    entries = net.graph.export_inputs
    for name in inputs:
        if name not in entries:
            help = f"inputs: {', '.join(entries)}"
            raise UserError(f"`{net.graph.model}` computes its outputs without an input `{name}`", help)
    given = {name: net.accept(name, inputs.get(name)) for name, e in entries.items() if e.source is None}
    lengths = {
        dim.symbol.name: size
        for name, tensor in given.items()
        for dim, size in zip(entries[name].type.shape, tensor.shape[1:], strict=True)
        if dim.symbol is not None and (dim.scale, dim.offset) == (1, 0)
    }
    found = {}
    for name in entries:
        if name in given:
            found[Value(name)] = given[name]
        elif name in inputs:
            found[Value(name)] = net.accept(name, inputs[name])
        else:
            found[Value(name)] = net.accept(name, net.draw(name, *list(given.values())[:1], **lengths))
    return found


# ------------------------------------------------------------------ the walk


def _walk(net: Network, wanted: frozenset[str], values: dict[Value, Tensor]) -> Iterator[tuple[str, Tensor]]:
    graph = net.graph
    yield from ((value.node, tensor) for value, tensor in values.items() if value.node in wanted)
    ends = [node.name for node in graph.nodes if not wanted.isdisjoint((*_taps(node), *_results(node)))]
    needed = graph.reached(map(Value, ends))
    nodes = [node for node in graph.nodes if node.name in needed]
    last_reader = {value: node.name for node in nodes for value in (*node.inputs, *node.ports.values())}
    read_last = defaultdict(list)
    for value, reader in last_reader.items():
        read_last[reader].append(value)
    for node in nodes:
        explained = not wanted.isdisjoint(_taps(node))
        piped = [values[value] for value in node.inputs]
        ports = {name: values[value] for name, value in node.ports.items()}
        results, taps = call_step(net, node, piped, ports, explained=explained)
        del piped, ports
        for value in read_last[node.name]:
            del values[value]
        for tap in list(taps):
            if (path := f"{node.name}.{tap}") in wanted:
                yield path, taps.pop(tap)
        del taps
        for index, (path, tensor) in enumerate(zip(_results(node), results, strict=True)):
            if Value(node.name, index) in last_reader:
                values[Value(node.name, index)] = tensor
            if path in wanted:
                yield path, tensor


def call_step(
    net: Network, node: Node, piped: Sequence[Tensor], ports: Mapping[str, Tensor], *, explained: bool = False
) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """One step of a network on other tensors, with the weights of that use: its results, and its taps if asked for.

    `ports` are the tensors that it takes by argument. Gradients are as the caller has them.
    """
    named = {**ports, **borrowed(net, node)}
    if type(node.operator).kind == "expression":
        # Arithmetic has no module: its operator writes it as Python, as it stands in the generated forward.
        text = node.operator.python(**{name: name for name in named})  # type: ignore[attr-defined]
        return (eval(text, {"__builtins__": {}}, named),), {}
    step = net.get_submodule(node.path)
    assert isinstance(step, StepModule)
    frozen = any(ref.view == "detached" for ref in node.weights.values())
    result = _called(_Explained(step) if explained else step, piped, named, frozen)
    taps: dict[str, Tensor] = dict(result) if explained else {}
    out = taps.pop("out") if explained else result
    return (tuple(out) if isinstance(out, tuple) else (out,)), taps


class _Explained(nn.Module):
    """A step whose forward is its `explain`."""

    def __init__(self, step: StepModule) -> None:
        super().__init__()
        self.step = step

    def forward(self, *piped: Tensor, **named: Tensor) -> dict[str, Tensor]:
        return self.step.explain(*piped, **named)


def _called(module: nn.Module, piped: Sequence[Tensor], named: Mapping[str, Tensor], frozen: bool) -> Any:
    if not frozen:
        return module(*piped, **named)
    weights = {name: weight.detach() for name, weight in module.named_parameters()}
    return functional_call(module, weights, tuple(piped), dict(named))
