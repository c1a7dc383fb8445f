"""A causal network for the next tokens alone, given what it holds of those before: what a text is gone on with.

Every step that acts token by token stays as it is; of every other one `Operator.stepped` says what it holds. With
q = k = v that is one tensor for a layer of `compress`, where `attend` holds two; token statistics hold sums.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch

from crate_dsl.compiler.build import build
from crate_dsl.compiler.graph import Cache, Entry, ModelGraph, Node, Value, flat
from crate_dsl.compiler.network import Network
from crate_dsl.compiler.operators import NotStepped, Operator, Stepped, ports, with_ports
from crate_dsl.compiler.types import PAST, Dim, Layout, Segment, Symbol, TensorType
from crate_dsl.language.diagnostics import UserError


def stepped(net: Network) -> Network:
    """The same network for the next tokens alone, with copies of its weights.

    It takes the next tokens under the name of the network's input, `past`, how many were before, (B,), and what it
    holds of these, `state_1`, `state_2`, …; it gives the network's outputs for the next tokens, and `next_1`, `next_2`,
    …, which are the states after them. A state whose type has the length `past` is empty at first, any other is zero:
    `graph.cache` names them, `empty` makes them. Tokens may come in portions of any sizes.

    >>> import crate_dsl, torch
    >>> net = crate_dsl.build(crate_dsl.load("specs/text.crate:crate_gpt@characters")).eval()
    >>> one = crate_dsl.stepped(net)
    >>> ids, states = torch.randint(128, (1, 9)), empty(one.graph, batch=1)
    >>> for place in range(9):
    ...     found = one(ids[:, place : place + 1], torch.tensor([place]), **states)
    ...     states = {state: found[after] for state, after in one.graph.cache.states}
    >>> bool((found["logits"][:, 0] - net(ids)[:, 8]).abs().max() < 1e-5)
    True

    Raises:
        UserError: some step takes tokens together that are not there yet, or the network needs other inputs.
    """
    graph = step_graph(net.graph)
    made = build(graph)
    weights = net.state_dict()
    made.load_state_dict({path: weights[path] for path in graph.slots})
    first = next(iter(weights.values()), torch.empty(0))
    return made.to(first.device, first.dtype).eval()


def empty(graph: ModelGraph, batch: int, device: str | torch.device = "cpu") -> dict[str, torch.Tensor]:
    """What a network for the next tokens holds before the first one, by the names of its inputs."""
    assert graph.cache is not None
    sizes = {PAST: 0}
    return {
        state: torch.zeros(batch, *graph.inputs[state].type.sizes(sizes), device=device)
        for state, _ in graph.cache.states
    }


def step_graph(graph: ModelGraph) -> ModelGraph:
    """The graph of a network for the next tokens alone. Its weights are those of the network, by the same paths.

    Raises:
        UserError: some step takes tokens together that are not there yet, or the network needs other inputs.
    """
    return _Stepping(graph).graph()


@dataclass
class _Stepping:
    """A network while it is made: what stands for the values of the source, and what is held."""

    source: ModelGraph
    nodes: list[Node] = field(default_factory=list)
    types: dict[Value, TensorType] = field(default_factory=dict)
    states: list[TensorType] = field(default_factory=list)
    after: list[Value] = field(default_factory=list)

    def graph(self) -> ModelGraph:
        source = self.source
        tokens = self._tokens()
        past = _free(PAST, source)
        span = tokens.span
        self.types[Value(tokens.name)] = tokens.type
        self.types[Value(past)] = TensorType("index", (), classes=tokens.type.shape[0].bound)
        for node in source.nodes:
            if node.name in source.exported and self._read(node):
                self._step(node, Value(past))
        outputs = dict(source.outputs)
        for name, value in outputs.items():
            if value not in self.types:
                raise UserError(f"`{source.model}` has no cache: `{name}` does not depend on its tokens")
        names = {f"state_{k}": type_ for k, type_ in enumerate(self.states, 1)}
        after = {f"next_{k}": value for k, value in enumerate(self.after, 1)}
        if taken := sorted({*names, *after} & {*source.inputs, *source.outputs}):
            raise UserError(f"`{taken[0]}` is what a state is called: give it another name in the spec")
        if not any(Value(past) in node.inputs for node in self.nodes):
            raise UserError(f"`{source.model}` needs no cache: its tokens know nothing of each other")
        entries = {tokens.name: tokens, past: Entry(past, self.types[Value(past)], span)}
        entries |= {name: Entry(name, type_, span) for name, type_ in names.items()}
        spoken = {value: name for value, name in source.names.items() if value in self.types}
        made = flat(source, entries, self.nodes, outputs | after, spoken)
        states = tuple(zip(names, after, strict=True))
        return replace(
            made, cache=Cache(tokens=tokens.name, past=past, scores=next(iter(outputs)), states=states)
        )

    def _tokens(self) -> Entry:
        """The input of tokens, of any number from now on. Others are left out; whatever reads them says so."""
        source = self.source
        found = [
            entry
            for entry in source.export_inputs.values()
            if entry.type.rank and entry.type.kind != "bool" and entry.source is None
        ]
        if len(found) != 1:
            names = ", ".join(f"`{entry.name}`" for entry in found) or "none"
            raise UserError(
                f"`{source.model}` has no cache: it needs one input of tokens, and there are {names}"
            )
        (entry,) = found
        first = entry.type.shape[0]
        name = first.symbol.name if first.symbol is not None and first.symbol.name != PAST else "m"
        count = Dim.symbolic(Symbol(name, first.bound))
        layout = Layout((Segment("tokens", count),)) if entry.type.layout is not None else None
        return replace(entry, type=entry.type.with_shape(count, *entry.type.shape[1:], layout=layout))

    def _read(self, node: Node) -> bool:
        """Whether all that the step is piped is there: what stands for a mask alone may have gone."""
        return all(value in self.types for value in node.inputs)

    def _step(self, node: Node, past: Value) -> None:
        """The form of a step for the next tokens."""
        operator, state = self._form(node)
        held = [Value(f"state_{len(self.states) + k}") for k in range(1, len(state) + 1)]
        self.types |= dict(zip(held, state, strict=True))
        self.states += state
        inputs = node.inputs if operator is node.operator else (*node.inputs, past, *held)
        handed = {name: value for name, value in node.ports.items() if name in ports(operator)}
        for value in handed.values():
            if value not in self.types:
                raise self._refusal(
                    node, NotStepped(f"is handed `{value.node}`, which is not known of the next tokens")
                )
        operator = with_ports(operator, {name: self.types[value] for name, value in handed.items()})
        typing = operator.infer(*(self.types[value] for value in inputs))
        self.nodes.append(replace(node, operator=operator, typing=typing, inputs=inputs, ports=handed))
        results = [Value(node.name, index) for index in range(len(typing.outputs))]
        self.types |= dict(zip(results, typing.outputs, strict=True))
        self.after += results[len(results) - len(state) :]

    def _form(self, node: Node) -> tuple[Operator, tuple[TensorType, ...]]:
        """The step's operator for the next tokens, and what it holds.

        Raises:
            UserError: there is none.
        """
        if node.operator.tokenwise:
            return node.operator, ()
        form = node.operator.stepped(*(self.source.type_of(value) for value in node.inputs))
        if isinstance(form, Stepped):
            return form.operator, form.state
        raise self._refusal(node, form)

    def _refusal(self, node: Node, why: NotStepped) -> UserError:
        where = f"{node.span.source.name}:{node.span.line}"
        help = [why.help] if why.help else []
        return UserError(f"`{self.source.model}` has no cache: `{node.path}` ({where}) {why.reason}", *help)


def _free(wanted: str, graph: ModelGraph) -> str:
    """A name that no input and no weight of the network has."""
    taken: set[str] = {*graph.inputs, *graph.outputs, *graph.learns}
    return next(name for name in _numbered(wanted) if name not in taken)


def _numbered(name: str) -> Iterator[str]:
    yield name
    number = 2
    while True:
        yield f"{name}_{number}"
        number += 1
