"""`inverse(stage, mode = …)`: a stage walked backwards, every step answered by the one that undoes it.

A stage can be undone where it is a chain: what is piped in goes through one step after another. Layer i of a repeat is
paired with layer L - 1 - i, and the graph remembers each pair.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from crate_dsl.compiler.expressions import make
from crate_dsl.compiler.forms import Forms, replace_arguments
from crate_dsl.compiler.graph import Apply, Call, Loop, Node, Pair, Scope, Value, made_by
from crate_dsl.compiler.meanings import POISON, Meaning, StageMeaning, Tensor
from crate_dsl.compiler.operators import (
    Certificate,
    CertifiedInverse,
    FixedPoint,
    Inverse,
    Mistake,
    Mode,
    NoInverse,
    Operator,
    Port,
    Typing,
    Weight,
)
from crate_dsl.compiler.record import Owner, Place
from crate_dsl.compiler.types import TensorType, floats
from crate_dsl.language import syntax
from crate_dsl.language.source import Span


class _Arguments(BaseModel):
    """What `inverse` takes beside the stage."""

    model_config = ConfigDict(defer_build=True)

    mode: Mode


@dataclass(frozen=True, slots=True)
class _Residual:
    """x + f(x): the node that adds, and the steps of f in order."""

    node: Node
    branch: tuple[Node, ...]


#: One link of a chain.
_Link = Node | Apply | Loop | _Residual


class _Stuck(Exception):
    """There is no way back, and that has been reported."""


class Pairing(Forms):
    """Reads `inverse`."""

    def inverse(self, step: syntax.Step, value: Meaning, place: Place) -> Meaning:
        """`inverse(encoder, mode = tied)`: the stage undone, as the mode promises."""
        self.recorder.count(step.name.span)
        stage = self.stage_argument(step, place)
        mode = self._mode(step, place)
        if stage is None or mode is None or not isinstance(value, Tensor) or place.dry:
            return POISON
        if place.averaging is not None:
            message = (
                f"a slow copy holds no inverse: undone, `{stage.name}` would have weights that nothing moves"
            )
            help = "copy the stages that are trained, and undo the one that is not copied"
            return self.error("E0535", step.span, message, help, place=place)
        scope = self.recorder.scopes.get(stage.path)
        if scope is None:
            message = (
                f"`{stage.name}` must be used before it is undone: its first use says what its steps take"
            )
            also = [(stage.span, "not used so far")]
            return self.error("E0506", step.span, message, also=also, place=place)
        try:
            return _Undoing(self, stage, mode, step.span).scope(scope, value, place)
        except _Stuck:
            return POISON

    def _mode(self, step: syntax.Step, place: Place) -> Mode | None:
        reader = self.reader(place)
        given = replace_arguments(step, (step.arguments or ())[1:]).arguments or ()
        read = reader.read("inverse", _Arguments, given, step.name.span)
        made = read and reader.construct("inverse", _Arguments, read, step.span)
        return made.mode if isinstance(made, _Arguments) else None

    forms: ClassVar[Mapping[str, Callable[[Any, syntax.Step, Meaning, Place], Meaning]]] = {
        **Forms.forms,
        "inverse": inverse,
    }


@dataclass(frozen=True, slots=True)
class _Undoing:
    """One use of `inverse`, written at `span`: `stage` walked backwards."""

    steps: Pairing
    stage: StageMeaning
    mode: Mode
    span: Span
    #: By the identities of an operator and of the types that it took, which the graph holds.
    answers: dict[tuple[int, ...], tuple[Inverse | NoInverse, Certificate | NoInverse]] = field(
        default_factory=dict
    )

    def scope(self, scope: Scope, value: Tensor, place: Place) -> Tensor:
        """The links of a stage, or of one layer, undone from the last to the first. Raises `_Stuck`."""
        for link in self._backwards(scope, place):
            match link:
                case Node():
                    value = self._step(link, value, place)
                case Loop():
                    value = self._loop(link, value, place)
                case Apply():
                    value = self.scope(self.steps.recorder.scopes[link.scope], value, place)
                case _Residual():
                    value = self._residual(link, value, place)
        return value

    # -------------------------------------------------------------- the chain

    def _backwards(self, scope: Scope, place: Place) -> Iterator[_Link]:
        """The links of a chain, the last one first."""
        if len(scope.parameters) != 1:
            names = ", ".join(f"`{name}`" for name in scope.names[1:])
            raise self._no_chain(f"it takes {names} beside what is piped in", scope.span, place)
        # A stage that gives back what it is handed is no link: there is nothing to undo.
        made = {name: item for item in scope.body for name in made_by(item) - _handed_to(item)}
        return self._between(scope.parameters[0], scope.results[0], made, scope, place)

    def _between(
        self,
        first: Value,
        last: Value,
        made: Mapping[str, Call | Apply | Loop],
        scope: Scope,
        place: Place,
    ) -> Iterator[_Link]:
        """The links from one value to a later one, the last first."""
        while last != first:
            item = made.get(last.node)
            if item is None:
                raise self._no_chain("its result does not come from what is piped in", scope.span, place)
            if isinstance(item, Call):
                node = self._node(item.node)
                if node.word == "add" and node.path.rpartition(".")[2].startswith("residual"):
                    left, right = node.ports["left"], node.ports["right"]
                    branch = [*self._between(left, right, made, scope, place)]
                    simple = tuple(link for link in reversed(branch) if isinstance(link, Node))
                    if len(simple) != len(branch):
                        raise self._no_chain("a residual's body holds more than steps", node.span, place)
                    yield _Residual(node, simple)
                    last = left
                    continue
                if node.word == "unfold":
                    raise self._no_chain("an `each` in it works on items", node.span, place)
                if len(node.inputs) != 1 or node.ports:
                    raise self._no_chain(_joins(node), node.span, place)
                yield node
                last = node.inputs[0]
            elif isinstance(item, Apply):
                if len(item.arguments) != 1:
                    raise self._no_chain(f"`{item.scope}` in it takes several values", scope.span, place)
                yield item
                last = item.arguments[0]
            else:
                yield item
                last = item.argument

    def _node(self, name: str) -> Node:
        node = self.steps.recorder.graph.nodes[name]["item"]
        assert isinstance(node, Node)
        return node

    def _used(self, node: Node, value: Tensor) -> Node:
        """The use of a step that gave tokens such as these: what undoes it may depend on them."""
        wanted = (value.type, value.type.layout)
        for use in self.steps.recorder.uses_of(node.path):
            if (use.typing.output, use.typing.output.layout) == wanted:
                return use
        return node

    # -------------------------------------------------------------- one link undone

    def _step(self, node: Node, value: Tensor, place: Place) -> Tensor:
        node = self._used(node, value)
        types = map(self.steps.recorder.type_of, node.inputs)
        answer, certificate = self._answer(node.operator, *types)
        if isinstance(answer, NoInverse):
            raise self._no_inverse(node, answer, place)
        self._check_trained(node, place)
        try:
            typing = self.steps.infer(answer.operator, value.type)
        except Mistake as mistake:
            also = [(node.span, f"what `{node.word}` did is to be undone by `{answer.operator.word}`")]
            self.steps.error(mistake.code, self.span, mistake.message, *mistake.help, also=also, place=place)
            raise _Stuck from None
        if answer.shared:
            shared = {name: self._borrowed(node, own) for name, own in answer.shared.items()}
            typing = replace(typing, weights={**typing.weights, **shared})
        return self._record(node, answer, typing, value, certificate, place)

    def _answer(
        self, operator: Operator, *types: TensorType
    ) -> tuple[Inverse | NoInverse, Certificate | NoInverse]:
        """What undoes a step, and what certifies it. Layers that share an operator share the answer."""
        key = (id(operator), *map(id, types))
        if key not in self.answers:
            answer, certificate = operator.inverse(self.mode, *types), operator.certificate(*types)
            if isinstance(answer, Inverse) and isinstance(self.mode, CertifiedInverse):
                answer = certificate if isinstance(certificate, NoInverse) else answer
            self.answers[key] = answer, certificate
        return self.answers[key]

    def _borrowed(self, node: Node, name: str) -> Weight:
        """A weight of the step that is undone, as its inverse reads it."""
        slot = node.weights[name].slot
        return Weight(slot, floats(*self.steps.recorder.slots[slot].shape))

    def _record(
        self,
        node: Node,
        inverse: Inverse,
        typing: Typing,
        value: Tensor,
        certificate: Certificate | NoInverse,
        place: Place,
    ) -> Tensor:
        recorder, operator = self.steps.recorder, inverse.operator
        recorder.count(self.span)
        path = place.owner.path_of(operator.word)
        (result,) = recorder.step(path, operator, typing, (value.value,), {}, self.span, place)
        known = certificate if isinstance(certificate, Certificate) else None
        owner = path.partition(".")[0]
        recorder.pairs.append(Pair(result.value.node, node.name, owner, self.stage.name, self.mode, known))
        return result

    def _loop(self, loop: Loop, value: Tensor, place: Place) -> Tensor:
        """The layers of a repeat from the last to the first, each undone by a layer of its own."""
        recorder, start = self.steps.recorder, value
        prefix = place.owner.layers()
        layers = tuple(f"{prefix}.{layer}" if prefix else f"{layer}" for layer in range(len(loop.layers)))
        for path, undone in zip(layers, reversed(loop.layers), strict=True):
            scope = recorder.scope(path, self.span, undone) if place.scope is not None else None
            inner = replace(
                place.within(f"in the inverse of `{undone}`", self.span), owner=Owner(path), scope=scope
            )
            given, value = value, self.scope(recorder.scopes[undone], value, inner)
            if scope is not None:
                scope.parameters, scope.names, scope.results = [given.value], ["z"], [value.value]
        recorder.loop(place, layers, start.value, value.value)
        return value

    def _residual(self, residual: _Residual, value: Tensor, place: Place) -> Tensor:
        """Solves x + f(x) = y by iterating x = y - f(x) from y (i-ResNet: Behrmann et al. 2019, arXiv 1811.00995)."""
        if not isinstance(self.mode, FixedPoint):
            reason = NoInverse("x + f(x) is undone by iteration alone", "mode = fixed_point(8)")
            raise self._no_inverse(residual.node, reason, place, "residual")
        found = value
        for _ in range(self.mode.iterations):
            branch = found
            for node in residual.branch:
                branch = self._again(node, branch, place)
            operator = make("subtract", left=Port(value.type), right=Port(branch.type))
            ports = {"left": value.value, "right": branch.value}
            meaning = self.steps.record(operator, (), ports, {}, self.span, place)
            if not isinstance(meaning, Tensor):
                raise _Stuck
            found = meaning
        self.steps.recorder.pairs.append(
            Pair(
                found.value.node,
                residual.node.name,
                place.owner.path.partition(".")[0],
                self.stage.name,
                self.mode,
            )
        )
        return found

    def _again(self, node: Node, value: Tensor, place: Place) -> Tensor:
        """A step of the stage itself, with its weights, applied once more."""
        recorder = self.steps.recorder
        recorder.count(self.span)
        self._check_trained(node, place)
        typing = self.steps.infer(node.operator, value.type)
        path, operator = node.path, node.operator
        (result,) = recorder.step(path, operator, typing, (value.value,), {}, self.span, place)
        return result

    # -------------------------------------------------------------- no way back

    def _check_trained(self, node: Node, place: Place) -> None:
        """Refuse a step of a slow copy. Raises `_Stuck`."""
        if node.path in self.steps.recorder.followed:
            reason = NoInverse("it belongs to a slow copy, which follows and is not followed")
            raise self._no_inverse(node, reason, place)

    def _no_inverse(self, node: Node, answer: NoInverse, place: Place, word: str = "") -> _Stuck:
        message = (
            f"`{self.stage.name}` cannot be undone because of its `{word or node.word}`: {answer.reason}"
        )
        also = [(node.span, "this step")]
        self.steps.error("E0530", self.span, message, *filter(None, [answer.help]), also=also, place=place)
        return _Stuck()

    def _no_chain(self, why: str, where: Span, place: Place) -> _Stuck:
        message = f"`{self.stage.name}` cannot be undone: {why}"
        help = "a stage that is undone is a chain: each step takes what the last one gave, and nothing else"
        self.steps.error("E0531", self.span, message, help, also=[(where, "here")], place=place)
        return _Stuck()


def _handed_to(item: Call | Apply | Loop) -> set[str]:
    """The nodes whose results a stage or repeat is given."""
    match item:
        case Apply(arguments=arguments):
            return {value.node for value in arguments}
        case Loop(argument=argument):
            return {argument.node}
    return set()


def _joins(node: Node) -> str:
    """What a step takes beside the value before it."""
    handed = " and ".join(f"`{name}`" for name in node.ports)
    if type(node.operator).kind == "expression" or not handed:
        return "arithmetic joins several values in it"
    return f"{handed} of its `{node.word}` is handed over to it, and nobody hands it to an inverse"
