"""From the model graph to a torch module, and to the module that training minimises."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn

from crate_dsl.compiler import contractions
from crate_dsl.compiler.graph import ModelGraph, Node
from crate_dsl.compiler.modules import ByShape
from crate_dsl.compiler.network import Container, Network, ObjectiveBase, generated_class
from crate_dsl.compiler.operators import Constant, Initial, Normal, Ones, Uniform, Zeros
from crate_dsl.compiler.steps import torch_face
from crate_dsl.compiler.types import Shapes
from crate_dsl.compiler.write_torch import TorchWriter, Written
from crate_dsl.language.diagnostics import UserError

#: How the paths of an objective's own steps begin: its losses, and steps that stand in it.
OWN = "objective."


def build(graph: ModelGraph, seed: int = 0) -> Network:
    """The network of a checked spec, its weights drawn from `seed` in the order of the spec.

    The module is an ordinary one: `state_dict` keys are spec paths (`encoder.3.compress.subspaces`), and its
    `forward` is generated text that reads like the spec (`crate-dsl show --stage torch` prints it).

    >>> import crate_dsl, torch
    >>> net = crate_dsl.build(crate_dsl.load("specs/crate.crate@fashion"))
    >>> net(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])

    Raises:
        UserError: the weights alone are larger than this machine's memory.

    Warns:
        NotCertified: `mode = fixed_point(m)`, and nothing says that its iterations converge for every input.
    """
    _check_memory(graph)
    writer = TorchWriter(graph)
    net = _instance(writer.network())
    assert isinstance(net, Network)
    net.graph = graph
    for name, slot in graph.learns.items():
        net.register_parameter(name, nn.Parameter(torch.empty(slot.shape)))
    for path, uses in _steps(graph).items():
        modules = [
            (shapes, torch_face(type(node.operator))(node.operator, node.typing)) for shapes, node in uses
        ]
        _place(net, path, modules[0][1] if len(modules) == 1 else ByShape(modules))
    for path, scope in graph.scopes.items():
        if path not in ("", "objective") and scope.results:
            _place(net, path, _instance(writer.scope(path)))
    for path, slot in graph.slots.items():
        owner, _, name = path.rpartition(".")
        holder = _owner(net, owner)
        if name not in holder._parameters:
            holder.register_parameter(name, nn.Parameter(torch.empty(slot.shape)))
    _initialise(net, graph, seed)
    contractions.warn(net)
    return net


class Objective(ObjectiveBase):
    """A network's objective as a module: called with a batch by input and target names, it gives what training
    minimises.

    It holds the network as `net`; compile it, or hand it to `DistributedDataParallel`, and the whole of the training
    forward is compiled or distributed. A draw that the batch leaves out is drawn.

    Raises:
        UserError: where the spec has no objective.

    >>> import crate_dsl, torch
    >>> net = crate_dsl.build(crate_dsl.load("specs/crate.crate@fashion"))
    >>> batch = {"image": torch.zeros(2, 1, 28, 28), "label": torch.tensor([3, 7])}
    >>> crate_dsl.Objective(net)(batch).shape
    torch.Size([])
    """

    def __init__(self, net: Network) -> None:
        super().__init__()
        graph = net.graph
        if graph.objective is None:
            raise UserError(
                f"`{graph.model}` has no objective: there is nothing to minimise",
                "objective cross_entropy(…)",
            )
        written = TorchWriter(graph).objective()
        self.net = net
        for node in graph.nodes:
            operator = type(node.operator)
            if operator.kind != "expression" and node.path.startswith(OWN):
                _place(self, node.path.removeprefix(OWN), torch_face(operator)(node.operator, node.typing))
        self.__class__ = generated_class(written.base, written.name, written.source)  # type: ignore[assignment]

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """The objective of a batch: shape ()."""
        raise NotImplementedError("the generated class has the forward")


def _steps(graph: ModelGraph) -> dict[str, list[tuple[Shapes, Node]]]:
    """The uses of each step that are to have a module: the first one, and those that know of other tokens.

    Where they differ in what they know, each shape of what is piped in has a module.
    """
    found: dict[str, dict[Shapes, Node]] = {}
    for node in graph.nodes:
        if type(node.operator).kind != "expression" and not node.path.startswith(OWN):
            shapes = tuple(graph.type_of(value).shape for value in node.inputs)
            found.setdefault(node.path, {}).setdefault(shapes, node)
    several = {path for path, uses in found.items() if len({node.typing.facts for node in uses.values()}) > 1}
    return {path: [*uses.items()][: None if path in several else 1] for path, uses in found.items()}


def _check_memory(graph: ModelGraph) -> None:
    """Refuse weights that this machine cannot hold, before any is made."""
    needed = 4 * (graph.parameters + graph.frozen_parameters)
    have = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else None
    if have is not None and needed > have:
        sizes = f"{needed / 2**30:,.0f} GiB, and this machine has {have / 2**30:,.0f}"
        raise UserError(
            f"the weights of `{graph.model}` take {sizes}", "smaller dimensions, or a larger machine"
        )


def _instance(written: Written) -> Any:
    return generated_class(written.base, written.name, written.source)()


def _owner(root: nn.Module, path: str) -> nn.Module:
    """The module at a path; owners that are bindings are made as they are met."""
    module = root
    for part in path.split(".") if path else []:
        if part not in module._modules:
            module.add_module(part, Container())
        child = module._modules[part]
        assert child is not None
        module = child
    return module


def _place(root: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module at its path, keeping what an owner made earlier already holds."""
    owner, _, name = path.rpartition(".")
    holder = _owner(root, owner)
    known = holder._modules.get(name)
    if known is not None:
        module._modules.update(known._modules)
    holder._modules[name] = module


@torch.no_grad()
def _initialise(net: Network, graph: ModelGraph, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for path, slot in graph.slots.items():
        weight = net.get_parameter(path)
        if path not in graph.averages:  # what is drawn does not depend on who copies it
            _fill(weight, slot.initial, generator)
        weight.requires_grad_(path not in graph.frozen)
    net.constrain_()
    net.average_(momentum=0)


def _fill(weight: Tensor, initial: Initial, generator: torch.Generator) -> None:
    match initial:
        case Normal(std=std):
            weight.normal_(0.0, std, generator=generator)
        case Uniform(limit=limit):
            weight.uniform_(-limit, limit, generator=generator)
        case Zeros():
            weight.zero_()
        case Ones():
            weight.fill_(1.0)
        case Constant(value=value):
            weight.fill_(value)
