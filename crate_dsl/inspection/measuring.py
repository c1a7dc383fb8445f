"""Images through a network, step by step: what every layer does to them. Of an image, nothing but numbers is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from crate_dsl.compiler.graph import Entry, Node
from crate_dsl.compiler.modules import StepModule
from crate_dsl.compiler.network import Network, borrowed
from crate_dsl.compiler.rates import published_rate
from crate_dsl.compiler.trace import call_step, tapped
from crate_dsl.inspection.completion import Completions
from crate_dsl.inspection.layers import Layer
from crate_dsl.inspection.measures import Samples, nonzero, reduction, tokens_rate
from crate_dsl.inspection.pairs import Pairs
from crate_dsl.language.diagnostics import UserError

#: The taps that are measured.
MEASURED = ("norm", "projection", "code")


@dataclass
class LayerSamples:
    """A layer's numbers, one for each image in each list; those that the layer has no step for stay empty."""

    rate: Samples = field(default_factory=Samples)
    step_rate: Samples = field(default_factory=Samples)
    tokens_rate: Samples = field(default_factory=Samples)
    reduction: Samples = field(default_factory=Samples)
    nonzero: Samples = field(default_factory=Samples)
    lasso_before: Samples = field(default_factory=Samples)
    lasso_after: Samples = field(default_factory=Samples)


def measure(
    net: Network,
    layers: tuple[Layer, ...],
    batches: Iterator[dict[str, Tensor]],
    completions: Completions | None,
    advance: Callable[[int], None],
) -> tuple[dict[str, LayerSamples], Pairs]:
    """Every layer's numbers, and those of pairs of steps.

    Args:
        net: in evaluation mode.
        layers: those that are measured.
        batches: images by the names of the network's inputs.
        completions: gathers what the network completes, if it does.
        advance: told after each batch how many images it had.
    """
    found = {layer.name: LayerSamples() for layer in layers}
    pairs = Pairs(net.graph)
    rates = {step.name: layer for layer in layers if (step := layer.with_tap("projection"))}
    codes = {step.name: layer for layer in layers if (step := layer.with_tap("code"))}
    ends = {layer.tokens.node: layer for layer in layers}
    globs = [
        f"{name}.{tap}"
        for name in {**rates, **codes}
        for tap in net.graph.node(name).operator.taps
        if tap in MEASURED
    ]
    kept = pairs.read | (completions.task.values if completions else frozenset())
    globs += [*rates, *codes, *ends, *kept]
    for batch in batches:
        images, held = len(next(iter(batch.values()))), {}
        for node, seen in steps(net, globs, batch):
            result = seen[node.name]
            if isinstance(node, Node) and node.name in rates:
                layer = rates[node.name]
                _compression(net, node, seen, found[layer.name], layer.decodes)
            if isinstance(node, Node) and node.name in codes:
                layer = codes[node.name]
                _sparsity(net, node, seen, found[layer.name], layer.decodes)
            if node.name in ends:
                found[ends[node.name].name].tokens_rate.add(tokens_rate(result))
            if node.name in kept:
                held[node.name] = result
        pairs.compare(net, held)
        if completions is not None:
            completions.see(held)
        del held
        advance(images)
    return found, pairs


def steps(
    net: Network, globs: list[str], inputs: dict[str, Tensor]
) -> Iterator[tuple[Node | Entry, dict[str, Tensor]]]:
    """What globs choose of a network, gathered step by step: each step's taps by name, and its result by its own."""
    seen: dict[str, Tensor] = {}
    for path, tensor in tapped(net, globs, inputs):
        if tensor.is_floating_point() and not tensor.isfinite().all():
            help = "weights that have diverged, most likely: inspect a run of a smaller learning rate"
            raise UserError(f"`{path}` is not finite on these data", help)
        if path in net.graph.graph:
            seen[path] = tensor
            yield net.graph.item(path), seen
            seen = {}
        else:
            seen[path.rpartition(".")[2]] = tensor
        del tensor


def _compression(
    net: Network, node: Node, seen: dict[str, Tensor], samples: LayerSamples, decodes: bool
) -> None:
    """Rᶜ of what the step projects, and of its result in the same subspaces after the same norm.

    A step that undoes another one, or is handed something, is not asked what it would make of its own result.
    """
    samples.rate.add(published_rate(seen["projection"]))
    if "norm" in seen:
        samples.reduction.add(reduction(seen["norm"], seen["projection"]))
    if not node.ports and not decodes:
        with torch.no_grad():
            _, again = call_step(net, node, [seen[node.name]], {}, explained=True)
        samples.step_rate.add(published_rate(again["projection"]))


def _sparsity(
    net: Network, node: Node, seen: dict[str, Tensor], samples: LayerSamples, decodes: bool
) -> None:
    """The code; and the objective where the step starts and where it ends, unless it goes the other way."""
    if node.operator.exact_zeros:
        samples.nonzero.add(nonzero(seen["code"]))
    if node.ports or decodes:
        return
    step = net.get_submodule(node.path)
    assert isinstance(step, StepModule)
    objective = step.descent(seen, **borrowed(net, node))
    if objective is not None:
        for objective_bn, found in zip(objective, (samples.lasso_before, samples.lasso_after), strict=True):
            found.add(objective_bn.double().sum(1))
