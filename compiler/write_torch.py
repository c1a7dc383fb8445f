"""The forward of a network as text: one class for each distinct scope, reading like the spec."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import inf

from crate_dsl.compiler.graph import Apply, Call, Entry, Loop, ModelGraph, Node, Value, calls_inside, made_by
from crate_dsl.compiler.narrow import cut, narrowed, opened
from crate_dsl.compiler.steps.tokens.operator import Drop, Keep, Select
from crate_dsl.compiler.types import Dim
from crate_dsl.compiler.wanted import Places, taken


@dataclass(frozen=True, slots=True)
class Paired:
    """The layer that a layer of an inverse undoes."""


#: What a captured thing is: a value of an outer scope, a `learn` or stage at the top of the model, by name, or the
#: layer that this one undoes.
Capture = Value | str | Paired

#: A layer's number in a path.
_LAYER = re.compile(r"\.(\d+)(?=\.|$)")

#: Names that generated code has for itself.
OWN = ("self", "layer", "paired", "batch", "frozen")


@dataclass(frozen=True, slots=True)
class Written:
    """A class as text, and what its forward needs beyond its parameters."""

    name: str
    base: str
    source: str
    captures: tuple[Capture, ...]


@dataclass(slots=True)
class _Body:
    """The statements of one forward while they are written."""

    root: str
    path: str
    pair: str | None = None
    lines: list[str] = field(default_factory=list)
    names: dict[Value, str] = field(default_factory=dict)
    captures: dict[Capture, None] = field(default_factory=dict)
    fixed: set[str] = field(default_factory=lambda: set(OWN))
    last_use: dict[Value, int] = field(default_factory=dict)
    #: What each name means; it may have meant more.
    meanings: dict[str, list[Value]] = field(default_factory=dict)
    #: Of names that are numbered: how many stand before the next one, all of them needed until so far.
    numbered: dict[str, tuple[int, float]] = field(default_factory=dict)
    #: The tokens that values have here, where these are not all.
    narrow: dict[Value, Places] = field(default_factory=dict)

    def enter(self, value: Value, name: str) -> None:
        """Let a value have a name."""
        if value in self.names:
            self.meanings[self.names[value]].remove(value)
        self.names[value] = name
        self.meanings.setdefault(name, []).append(value)

    def needed(self, name: str) -> float:
        """The position of the last statement that needs what a name means now; -1 where none does."""
        if name in self.fixed or name in self.captures:
            return inf
        return max((self.last_use.get(value, -1) for value in self.meanings.get(name, ())), default=-1)

    def free(self, wanted: str, position: int) -> str:
        """A name, with the lowest number that nothing needs behind `position`, and from now on without a meaning."""
        count, until = self.numbered.get(wanted, (1, inf))
        if position >= until:
            count, until = 1, inf
        name = wanted if count == 1 else f"{wanted}_{count}"
        while (last := self.needed(name)) > position:
            count, until = count + 1, min(until, last)
            name = f"{wanted}_{count}"
        self.numbered[wanted] = count, until
        for value in self.meanings.pop(name, ()):
            del self.names[value]
        return name


class TorchWriter:
    """Writes the classes of one model; `classes` holds each scope's."""

    def __init__(self, graph: ModelGraph) -> None:
        self.graph = graph
        self.classes: dict[str, Written] = {}
        #: The name and source of each class by its base and its forward.
        self._taken: dict[tuple[str, str], tuple[str, str]] = {}
        self._numbers: Counter[str] = Counter()
        self._used: set[str] = set()

    # -------------------------------------------------------------- scopes

    def scope(self, path: str) -> Written:
        """The class of a stage or layer, and those of the scopes inside it."""
        if path not in self.classes:
            scope = self.graph.scopes[path]
            body = _Body("self", path, scope.pair)
            parameters = [self._safe(name) for name in scope.names]
            for value, name in zip(scope.parameters, parameters, strict=True):
                body.enter(value, name)
            self._uses(body, scope.body, scope.results)
            self._statements(body, scope.body)
            result = self._name(body, scope.results[0])
            captured = [self._capture_name(body, capture) for capture in body.captures]
            arguments = ["self", *parameters, *captured]
            self.classes[path] = self._class(
                path, "Scope", arguments, [*body.lines, f"return {result}"], tuple(body.captures)
            )
        return self.classes[path]

    def network(self) -> Written:
        """The class of the network: what is exported."""
        graph, scope = self.graph, self.graph.scopes[""]
        body = _Body("self", "")
        items = [item for item in scope.body if made_by(item) & graph.exported]
        outputs = list(graph.outputs.items())
        self._uses(body, items, [value for _, value in outputs])
        entries = list(graph.export_inputs.values())
        for entry in entries:
            body.enter(Value(entry.name), entry.name)
        drawn = [entry for entry in entries if entry.source is not None]
        given = [entry for entry in entries if entry.source is None]
        for entry in drawn:
            body.lines += [
                f"if {entry.name} is None:",
                f"    {entry.name} = self.draw({self._draw_arguments(entry, given)})",
            ]
        for entry in entries:
            body.lines.append(f'{entry.name} = self.accept("{entry.name}", {entry.name})  # {entry.type}')
        self._statements(body, items)
        if len(outputs) == 1:
            body.lines.append(f"return {self._name(body, outputs[0][1])}")
        else:
            pairs = ", ".join(f'"{name}": {self._name(body, value)}' for name, value in outputs)
            body.lines.append(f"return {{{pairs}}}")
        arguments = ["self", *(e.name for e in given), *(f"{e.name}=None" for e in drawn)]
        self.classes[""] = self._class("", "Network", arguments, body.lines, ())
        return self.classes[""]

    def objective(self) -> Written:
        """The class of the objective: everything that it reads, the network's steps as `self.net.…`."""
        graph = self.graph
        assert graph.objective is not None
        needed = graph.reached([graph.objective])
        body = _Body("self.net", "")
        outer, inner = self._objective_items(needed)
        body.narrow = narrowed(graph, [*outer, *inner])
        outer, inner = (opened(graph, items, body.narrow) for items in (outer, inner))
        self._uses(body, [*outer, *inner], [graph.objective])
        entries = [e for e in (*graph.inputs.values(), *graph.targets.values()) if e.name in needed]
        given = [entry for entry in entries if entry.source is None]
        for entry in [*given, *(e for e in entries if e.source is not None)]:
            body.enter(Value(entry.name), entry.name)
            more = self._draw_arguments(entry, given).removeprefix(f'"{entry.name}"') if entry.source else ""
            body.lines.append(f'{entry.name} = self.accept("{entry.name}", batch{more})  # {entry.type}')
        self._statements(body, outer)
        body.root, body.path = "self", "objective"
        self._statements(body, inner, first=len(outer))
        body.lines.append(f"return {self._name(body, graph.objective)}")
        return self._class("objective", "ObjectiveBase", ["self", "batch"], body.lines, ())

    def _objective_items(
        self, needed: frozenset[str]
    ) -> tuple[Sequence[Call | Apply | Loop], Sequence[Call | Apply | Loop]]:
        """What an objective reads and what it does itself, as the model says it; step by step where a loss looks inside
        a stage.
        """
        graph = self.graph
        before, own = graph.scopes[""].body, graph.scopes["objective"].body
        outer = [item for item in before if made_by(item) & needed]
        seen = {*graph.inputs, *graph.targets}.union(*map(made_by, [*outer, *own]))
        steps = [graph.node(item.node) for item in own if isinstance(item, Call)]
        if {value.node for step in steps for value in (*step.inputs, *step.ports.values())} <= seen:
            return outer, own
        # The objective is read last: its steps are those behind the last one that the model makes.
        made = set[str]().union(*map(made_by, before))
        first = max((place for place, node in enumerate(graph.nodes, 1) if node.name in made), default=0)
        calls = [
            [Call(n.name) for n in nodes if n.name in needed]
            for nodes in (graph.nodes[:first], graph.nodes[first:])
        ]
        return calls[0], calls[1]

    def _draw_arguments(self, entry: Entry, given: list[Entry]) -> str:
        """The name of the drawn input, a given one (for batch and device), and the lengths that its type needs."""
        lengths = {}
        for dim in entry.type.shape:
            for other in given:
                for axis, size in enumerate(other.type.shape):
                    if (
                        dim.symbol is not None
                        and size.symbol == dim.symbol
                        and size.scale == 1
                        and size.offset == 0
                    ):
                        lengths[dim.symbol.name] = f"{dim.symbol.name}={other.name}.shape[{axis + 1}]"
        return ", ".join([f'"{entry.name}"', *([given[0].name] if given else []), *lengths.values()])

    # -------------------------------------------------------------- statements

    def _uses(self, body: _Body, items: Iterable[Call | Apply | Loop], results: Iterable[Value]) -> None:
        """Where each value is used last, so that names can be used again; and what a name must not hide."""
        items = list(items)
        for position, item in enumerate(items):
            for value in self._reads(item):
                body.last_use[value] = position
        for value in results:
            body.last_use[value] = len(items)

    def _reads(self, item: Call | Apply | Loop) -> list[Value]:
        match item:
            case Call(node=name):
                node = self.graph.node(name)
                return [*node.inputs, *node.ports.values()]
            case Apply(scope=path, arguments=arguments):
                return [*arguments, *(c for c in self.scope(path).captures if isinstance(c, Value))]
            case Loop(layers=layers, argument=argument):
                return [argument, *(c for c in self.scope(layers[0]).captures if isinstance(c, Value))]

    def _statements(self, body: _Body, items: Iterable[Call | Apply | Loop], first: int = 0) -> None:
        for position, item in enumerate(items, first):
            match item:
                case Call(node=name):
                    self._call(body, self.graph.node(name), position)
                case Apply():
                    self._apply(body, item, position)
                case Loop():
                    self._loop(body, item, position)

    def _call(self, body: _Body, node: Node, position: int) -> None:
        weights = {
            name: self._module(body, ref.slot) for name, ref in node.weights.items() if name not in node.slots
        }
        read = body.narrow.get(Value(node.name))
        given = None if node.operator.narrows else read
        ports = {name: self._part(body, value, given) for name, value in node.ports.items()}
        operator, type_ = node.operator, node.typing.output
        if read is not None:
            type_ = type_.with_shape(Dim.of(len(read)), *type_.shape[1:], layout=None)
        if type(operator).kind == "expression":
            text = operator.python(**ports, **weights)  # type: ignore[attr-defined]
        elif isinstance(operator, Select | Keep | Drop) and body.narrow.keys() & {
            Value(node.name),
            node.inputs[0],
        }:
            text = self._take(body, node, operator, read)
        else:
            inputs = [self._part(body, value, given) for value in node.inputs]
            keywords = [f"{name}={value}" for name, value in {**ports, **weights}.items()]
            if operator.narrows and read is not None:
                keywords.append("read=slice({}, {})".format(*cut(read, None)))
            module = self._module(body, node.path)
            held = body.path in ("", "objective") and self._is_held(node)
            call = f"frozen({module}, " if held else f"{module}("
            text = f"{call}{', '.join([*inputs, *keywords])})"
        values = [Value(node.name, index) for index in range(len(node.typing.outputs))]
        hint = self._hint(body, node.path)
        targets = ", ".join(self._assign(body, value, hint, position) for value in values)
        if targets != text:
            body.lines.append(f"{targets} = {text}  # {type_}")

    def _part(self, body: _Body, value: Value, read: Places) -> str:
        """These tokens of a value, of which the body may have no more than them."""
        name, have = self._name(body, value), body.narrow.get(value)
        if read == have:
            return name
        start, stop = cut(read, have)
        return f"{name}[:, {start}:{'' if stop is None else stop}]"

    def _take(self, body: _Body, node: Node, operator: Select | Keep | Drop, read: Places) -> str:
        """What a step takes of tokens, of which the body may have only some, or wants only some."""
        value = node.inputs[0]
        of = taken(operator, self.graph.type_of(value), node)
        assert of is not None
        if isinstance(operator, Select):
            return f"{self._name(body, value)}[:, {cut(of, body.narrow[value])[0]}]"
        return self._part(body, value, of if read is None else tuple(of[place] for place in read))

    def _apply(self, body: _Body, item: Apply, position: int) -> None:
        written = self.scope(item.scope)
        arguments = [self._name(body, value) for value in item.arguments]
        captured = [self._captured(body, capture) for capture in written.captures]
        module = self._module(body, item.scope)
        call = ", ".join([*arguments, *captured])
        text = f"frozen({module}, {call})" if self._is_shared_frozen(item) else f"{module}({call})"
        target = self._assign(body, item.results[0], self._hint(body, f"{item.owner}.step"), position)
        body.lines.append(f"{target} = {text}  # {self.graph.type_of(item.results[0])}")

    def _is_held(self, node: Node) -> bool:
        """Whether a step is used with its weights held fixed, while other uses train them."""
        return any(
            ref.view == "detached" and ref.slot not in self.graph.frozen for ref in node.weights.values()
        )

    def _is_shared_frozen(self, item: Apply) -> bool:
        """Whether a frozen use shares weights with uses that train them; else the weights themselves are frozen."""
        if not item.frozen:
            return False
        graph = self.graph
        inside = [graph.node(name) for name in calls_inside(graph.scopes, item.scope)]
        read = {ref.slot for node in inside for ref in node.weights.values()}
        return not read <= graph.frozen

    def _loop(self, body: _Body, item: Loop, position: int) -> None:
        written, *others = [self.scope(layer) for layer in item.layers]
        # Layers are one text read again: a name means the same thing in each.
        assert all(other.captures == written.captures for other in others)
        container = item.layers[0].rpartition(".")[0]
        start = self._name(body, item.argument)
        captured = [self._captured(body, capture) for capture in written.captures]
        hint = self._hint(body, f"{container}.layer") if container != body.path else self._hint(body, "")
        target = self._assign(body, item.result, hint, position)
        if target != start:
            body.lines.append(f"{target} = {start}")
        layers, count = f"{self._module(body, container)}.layers", f"{len(item.layers)} layers"
        if f"{container}.{len(item.layers)}" in self.graph.scopes:
            layers = f"[*{layers}][:{len(item.layers)}]"  # those behind are called one by one
        pair = self.graph.scopes[item.layers[0]].pair
        if pair is not None and Paired() in written.captures:
            undone = self._module(body, pair.rpartition(".")[0])
            body.lines.append(f"for layer, paired in zip({layers}, reversed([*{undone}.layers])):  # {count}")
        else:
            body.lines.append(f"for layer in {layers}:  # {count}")
        body.lines.append(
            f"    {target} = layer({', '.join([target, *captured])})  # {self.graph.type_of(item.result)}"
        )

    # -------------------------------------------------------------- names

    def _safe(self, name: str) -> str:
        return f"{name}_" if name in OWN else name

    def _hint(self, body: _Body, path: str) -> str:
        """What to call an intermediate value: by the binding that it belongs to, or `z`."""
        inside = path[len(body.path) + 1 :] if body.path else path
        owner = inside.partition(".")[0] if "." in inside else ""
        if body.path == "objective":
            return "loss"
        return owner if owner and not owner.isdigit() else "z"

    def _assign(self, body: _Body, value: Value, hint: str, position: int) -> str:
        """The name for a new value: its own in the spec, or the hint; never one that is still needed."""
        name = body.free(self._safe(self.graph.names.get(value, hint)), position)
        body.enter(value, name)
        return name

    def _name(self, body: _Body, value: Value) -> str:
        """The local name of a value; one of an outer scope is captured."""
        if value not in body.names:
            body.captures[value] = None
            body.enter(value, self._capture_name(body, value))
        return body.names[value]

    def _capture_name(self, body: _Body, capture: Capture) -> str:
        if isinstance(capture, Paired):
            return "paired"
        if isinstance(capture, str):
            return self._safe(capture)
        return self._safe(self.graph.names.get(capture, f"value_{list(body.captures).index(capture) + 1}"))

    def _captured(self, body: _Body, capture: Capture) -> str:
        """What a callee captures, as this scope knows it."""
        if isinstance(capture, Paired):
            return "paired"
        return self._name(body, capture) if isinstance(capture, Value) else self._top(body, capture)

    def _top(self, body: _Body, name: str) -> str:
        """A `learn` or stage at the top of the model."""
        if body.path in ("", "objective"):
            return f"{'self.net' if body.path == 'objective' else body.root}.{name}"
        body.captures[name] = None
        return self._safe(name)

    def _module(self, body: _Body, path: str) -> str:
        """The module at a path, seen from a scope; layers are indexed: `encoder[3].compress`."""
        return _LAYER.sub(r"[\1]", self._dotted(body, path))

    def _dotted(self, body: _Body, path: str) -> str:
        if path == body.path:
            return body.root
        prefix = f"{body.path}." if body.path else ""
        if path.startswith(prefix):
            return f"{body.root}.{path[len(prefix) :]}"
        if body.pair is not None and path.startswith(f"{body.pair}."):
            body.captures[Paired()] = None
            return f"paired.{path[len(body.pair) + 1 :]}"
        top, _, rest = path.partition(".")
        return self._top(body, top) + (f".{rest}" if rest else "")

    # -------------------------------------------------------------- classes

    def _class(
        self, path: str, base: str, arguments: list[str], lines: list[str], captures: tuple[Capture, ...]
    ) -> Written:
        text = "\n".join(
            [f"    def forward({', '.join(arguments)}):", *(f"        {line}" for line in lines)]
        )
        docstring = {
            "Network": f"`{self.graph.model}`",
            "ObjectiveBase": f"The objective of `{self.graph.model}`",
        }
        where = docstring.get(
            base,
            f"`{path}`"
            if not path.rpartition(".")[2].isdigit()
            else f"A layer of `{path.rpartition('.')[0]}`",
        )
        if (base, text) not in self._taken:
            name = self._class_name(path)
            source = f'class {name}({base}):\n    """{where}."""\n\n{text}\n'
            self._taken[base, text] = name, source
        name, source = self._taken[base, text]
        return Written(name, base, source, captures)

    def _class_name(self, path: str) -> str:
        """A name that no other class has."""
        parts = (
            [self.graph.model]
            if not path
            else ["objective", self.graph.model]
            if path == "objective"
            else path.split(".")
        )
        parts = ["layer" if part.isdigit() else part for part in parts]
        words = [word for part in parts for word in part.split("_")]
        wanted = "".join(word[:1].upper() + word[1:] for word in words)
        name = wanted
        while name in self._used:
            self._numbers[wanted] += 1
            name = f"{wanted}{self._numbers[wanted] + 1}"
        self._used.add(name)
        return name


def torch_source(graph: ModelGraph) -> str:
    """The network as torch code: every distinct class once, the network last."""
    writer = TorchWriter(graph)
    network = writer.network()
    found: dict[str, str] = defaultdict(str)
    for written in [*(w for path, w in writer.classes.items() if path), network]:
        found.setdefault(written.name, written.source)
    return "\n\n".join(found.values())
