"""What generated modules have in common: scopes, the network, the objective; copied and pickled by their source."""

from __future__ import annotations

import linecache
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from crate_dsl.compiler.constraints import constrain_
from crate_dsl.compiler.draws import Choose, NormalDraw, Shuffle, UniformDraw
from crate_dsl.compiler.graph import Entry, ModelGraph, Node
from crate_dsl.language.diagnostics import UserError

#: What torch holds for each kind of type.
KINDS = {
    "float": "a floating-point tensor",
    "index": "a tensor of whole numbers (int64)",
    "bool": "a boolean tensor",
}


class Container(nn.Module):
    """An owner of steps without a forward of its own, such as a binding."""

    @property
    def layers(self) -> Iterator[nn.Module]:
        """The layers of a repeat, in order."""
        return iter(
            [module for name, module in self._modules.items() if name.isdigit() and module is not None]
        )

    def __getitem__(self, layer: int) -> nn.Module:
        """A layer of a repeat, counted from 0."""
        return self.get_submodule(str(layer))


class Generated(Container):
    """A module whose class was generated from a spec. `source` is its text."""

    source: str = ""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str, str], dict[str, Any]]:
        return _restore, (type(self).__bases__[0].__name__, type(self).__name__, self.source), self.__dict__


class Scope(Generated):
    """A stage, or a layer of a repeat."""


class Network(Generated):
    """A network built from a spec: an ordinary torch module. `graph` is what it was built from.

    A training loop of your own calls `constrain_` and then `average_` after each step of the optimiser, where the spec
    has constraints or slow copies (`graph.averages`); without them, both do nothing. `crate-dsl train` does.
    """

    graph: ModelGraph

    def accept(self, name: str, value: Tensor | None) -> Tensor:
        """An input, its shape held against the spec's.

        Raises:
            UserError: where it is missing, or of another shape or kind than the spec says.
        """
        return accept(self.graph.inputs[name], value)

    def constrain_(self) -> None:
        """Lead every weight with a constraint back to it: a training loop of your own calls this after each step.

        `crate-dsl train` does. Weights without a constraint are left alone.
        """
        constrain_(dict(self.named_parameters()), self.graph.slots)

    @torch.no_grad()
    def average_(self, momentum: float | None = None) -> None:
        """Let every slow copy (`ema(student)`) follow by one step: t ← m t + (1 - m) s, weight by weight.

        Weights with a constraint are led back to it. Tarvainen and Valpola 2017, arXiv 1703.01780, eq. 3.

        Args:
            momentum: m, in place of each copy's own; 0 makes copies equal to what they copy, as they are when built.

        >>> import crate_dsl
        >>> from crate_dsl.language.source import Source
        >>> from crate_dsl.workspace import Target, load_source
        >>> spec = '''model m { input z : float[6, 8]  stage s = linear(4)
        ...   stage t = ema(s, momentum = 0.75)  y = z -> s  target_ = z -> t  output target_
        ...   objective mse(y, target_) }'''
        >>> net = crate_dsl.build(load_source(Source("m.crate", spec), Target("m.crate")))
        >>> _ = net.s.linear.bias.data.fill_(1.0), net.t.linear.bias.data.fill_(3.0)
        >>> net.average_()
        >>> net.t.linear.bias
        Parameter containing:
        tensor([2.5000, 2.5000, 2.5000, 2.5000])
        """
        weights = dict(self.named_parameters())
        for path, average in self.graph.averages.items():
            kept = average.momentum if momentum is None else momentum
            if kept == 0:
                weights[path].copy_(weights[average.source])  # whatever was there: it may be no number yet
            else:
                weights[path].lerp_(weights[average.source], 1 - kept)
        constrain_(weights, {path: self.graph.slots[path] for path in self.graph.averages})

    def draw(self, name: str, *given: Tensor, **lengths: int) -> Tensor:
        """An input that nobody gave, drawn as the spec declares; `given` tells the batch and the device."""
        if torch.compiler.is_exporting():
            raise UserError(
                f"`{name}` is drawn: give it when exporting, so that it is an input of the export"
            )
        return draw(self.graph.inputs[name], given, lengths)


class ObjectiveBase(Generated):
    """A network's objective as a module: `objective({"image": x, "label": y})` is what training minimises."""

    net: Network

    def accept(self, name: str, batch: Mapping[str, Tensor], *given: Tensor, **lengths: int) -> Tensor:
        """An input or target of the batch by name; an input that is drawn may be left out."""
        graph = self.net.graph
        entry = graph.inputs.get(name) or graph.targets[name]
        if name not in batch and entry.source is not None:
            return draw(entry, given, lengths)
        return accept(entry, batch.get(name))


def accept(entry: Entry, value: Tensor | None) -> Tensor:
    """A tensor for an input or target, held against its type. Raises `UserError`."""
    if value is None:
        raise UserError(f"`{entry.name}` is missing: it is {entry.type} for each sample")
    shape = value.shape[1:]
    fits = value.dim() == entry.type.rank + 1 and all(
        size == dim.static if dim.symbol is None else size <= dim.bound
        for size, dim in zip(shape, entry.type.shape, strict=True)
    )
    if not fits:
        found = ", ".join(map(str, value.shape))
        wanted = ", ".join(["batch", *map(str, entry.type.shape)])
        raise UserError(f"`{entry.name}` is [{wanted}], but is given [{found}]")
    kind = "bool" if value.dtype == torch.bool else "float" if value.is_floating_point() else "index"
    if kind != entry.type.kind:
        raise UserError(f"`{entry.name}` is {KINDS[entry.type.kind]}, but is given {value.dtype}")
    return value


def draw(entry: Entry, given: Sequence[Tensor], lengths: Mapping[str, int]) -> Tensor:
    """A declared draw from torch's own generator; the rules are those of `draws`.

    `given` inputs tell the batch and the device: one sample on the CPU where there is none.

    Raises:
        UserError: the draw has a length that no given input tells.
    """
    batch, device = (given[0].shape[0], given[0].device) if given else (1, torch.device("cpu"))
    unknown = {dim.symbol.name for dim in entry.type.shape if dim.symbol is not None} - set(lengths)
    if unknown:
        raise UserError(f"`{entry.name}` must be given: nothing else tells its length `{min(unknown)}`")
    shape = (batch, *entry.type.sizes(dict(lengths)))
    match entry.source:
        case NormalDraw(std=std):
            return std * torch.randn(shape, device=device)
        case UniformDraw(low=low, high=high):
            return low + (high - low) * torch.rand(shape, device=device)
        case Choose(ratio=float()) as form:
            return torch.rand(shape, device=device).argsort(-1) < form.marked(shape[-1])
        case Choose() | Shuffle():
            assert entry.type.classes is not None
            scores = torch.rand((*shape[:-1], entry.type.classes), device=device)
            return scores.argsort(-1)[..., : shape[-1]]
    raise UserError(f"`{entry.name}` is missing, and the spec declares no draw for it")


def frozen(module: nn.Module, *arguments: Any, **keywords: Any) -> Any:
    """A module applied with weights held fixed, those handed over too: gradients flow through it, not into it."""
    arguments = tuple(map(_held, arguments))
    keywords = {name: _held(value) for name, value in keywords.items()}
    whole = _Together(module, arguments) if any(isinstance(a, nn.Module) for a in arguments) else module
    weights = {name: weight.detach() for name, weight in whole.named_parameters()}
    return functional_call(whole, weights, arguments, keywords)


def _held(argument: Any) -> Any:
    return argument.detach() if isinstance(argument, nn.Parameter) else argument


class _Together(nn.Module):
    """A module and those that it is handed, as one: their weights are held together."""

    def __init__(self, module: nn.Module, handed: Sequence[Any]) -> None:
        super().__init__()
        self.module = module
        self.handed = nn.ModuleList(item for item in handed if isinstance(item, nn.Module))

    def forward(self, *arguments: Any) -> Any:
        return self.module(*arguments)


def borrowed(net: Network, node: Node) -> dict[str, Tensor]:
    """The weights that a use of a step takes from elsewhere, by the names under which it takes them."""
    found = {}
    for name, ref in node.weights.items():
        if name not in node.slots:
            weight = net.get_parameter(ref.slot)
            found[name] = weight.detach() if ref.view == "detached" else weight
    return found


# ------------------------------------------------------------------ classes from their text

_BASES: dict[str, type[Generated]] = {base.__name__: base for base in (Scope, Network, ObjectiveBase)}


@cache
def generated_class(base: str, name: str, source: str) -> type[Generated]:
    """The class of a generated text; made once, and known to `linecache`, so that a traceback shows its lines."""
    digest = sha256(f"{base} {source}".encode()).hexdigest()[:12]
    file = f"<crate_dsl {name} {digest}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    namespace: dict[str, Any] = {base: _BASES[base], "frozen": frozen, "__name__": "crate_dsl.generated"}
    exec(compile(source, file, "exec"), namespace)
    made: type[Generated] = namespace[name]
    made.source = source
    return made


def _restore(base: str, name: str, source: str) -> Generated:
    """An empty instance, for `pickle` to fill."""
    made = generated_class(base, name, source)
    return made.__new__(made)
