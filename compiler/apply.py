"""Applying steps to values: operators, blocks, stages, repeats, and stages derived from stages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

from crate_dsl.compiler import not_yet
from crate_dsl.compiler.arguments import ArgumentReader
from crate_dsl.compiler.expressions import Expressions
from crate_dsl.compiler.meanings import (
    POISON,
    SEEN_BY_GRAPH_BODIES,
    BlockMeaning,
    Constant,
    Meaning,
    Namespace,
    Poison,
    StageMeaning,
    Tensor,
)
from crate_dsl.compiler.operators import Operator, Port, Weight
from crate_dsl.compiler.record import (
    MAXIMUM_DEPTH,
    MAXIMUM_NODES,
    LayoutMismatch,
    Owner,
    Place,
    SlotMismatch,
    TooLarge,
)
from crate_dsl.compiler.steps import operators
from crate_dsl.compiler.types import floats
from crate_dsl.language import syntax
from crate_dsl.language.diagnostics import did_you_mean
from crate_dsl.language.source import Span


class Steps(Expressions):
    """Applies steps. Bodies that are graphs of statements are the business of the class that builds on this one."""

    def graph_body(
        self, body: syntax.Graph, value: Meaning, named: dict[str, Meaning], names: Namespace, place: Place, span: Span
    ) -> Meaning:
        raise NotImplementedError

    # -------------------------------------------------------------- pipelines

    def pipe(self, written: syntax.Pipe, place: Place) -> Meaning:
        if isinstance(written.value, syntax.Name | syntax.Step) and self._is_step(written.value, place):
            return self._starts_with_step(written.value, place)
        value = self.expression(written.value, place)
        if not isinstance(value, Tensor | Poison):
            value = self.error(
                "E0212", written.value.span, f"a pipeline starts with a tensor, not with {self.describe(value)}", place=place
            )
        return self.run(written.steps, value, place)

    def _is_step(self, written: syntax.Name | syntax.Step, place: Place) -> bool:
        """Whether a name that starts a pipeline is a step rather than a value."""
        name = written.text if isinstance(written, syntax.Name) else written.name.text
        definition = place.names.find(name)
        if definition is not None:
            return isinstance(definition.meaning, StageMeaning | BlockMeaning)
        operator = operators().get(name)
        return name in self.forms or (operator is not None and operator.kind == "language")

    def _starts_with_step(self, written: syntax.Name | syntax.Step, place: Place) -> Poison:
        name = written.text if isinstance(written, syntax.Name) else written.name.text
        return self.error(
            "E0501",
            written.span,
            f"a value is computed from a value, but `{name}` is a step",
            f"to name the steps, write `stage`; to compute a value, start with one: `value -> {name}`",
            place=place,
        )

    def call(self, written: syntax.Step, place: Place) -> Meaning:
        """A step in the place of a value: a loss, or a mistake."""
        name = written.name.text
        operator = operators().get(name)
        if place.names.find(name) is None and operator is not None and operator.kind == "objective":
            if not place.objective:
                return self.error("E0604", written.name.span, f"`{name}` is a loss: it belongs to `objective`", place=place)
            return self.apply_operator(operator, written, None, place)
        if self._is_step(written, place):
            return self._starts_with_step(written, place)
        return self.unknown_step(written, place)

    def run(self, steps: tuple[syntax.Step, ...], value: Meaning, place: Place) -> Meaning:
        """A value through steps in order. After a mistake the rest is still read, for its own mistakes."""
        for position, step in enumerate(steps):
            value = self.step(step, value, place)
            last = position == len(steps) - 1
            if not last and not isinstance(value, Tensor | Poison):
                value = self.error(
                    "E0503",
                    step.name.span,
                    f"`{step.name}` has several results: it stands last, and each result gets a name",
                    f"write `a, b = … -> {step.name}(…)`",
                    place=place,
                )
        return value

    def step(self, step: syntax.Step, value: Meaning, place: Place) -> Meaning:
        """One step applied to a value (or to `POISON`, to find further mistakes)."""
        name = step.name.text
        definition = place.names.find(name)
        if definition is not None:
            definition.used = True
            match definition.meaning:
                case StageMeaning() as stage:
                    return self.apply_stage(stage, step, value, place)
                case BlockMeaning() as block:
                    return self.apply_block(block, step, value, place)
                case Poison():
                    return POISON
            return self.error(
                "E0210",
                step.name.span,
                f"`{name}` is {self.describe(definition.meaning)}, not a step",
                also=[(definition.span, "defined here")] if definition.span else [],
                place=place,
            )
        form = self.forms.get(name)
        if form is not None:
            return form(self, step, value, place)
        operator = operators().get(name)
        if operator is None or operator.kind not in ("language", "training"):
            return self.unknown_step(step, place)
        return self.apply_operator(operator, step, value, place)

    def unknown_step(self, step: syntax.Step, place: Place) -> Poison:
        name = step.name.text
        if name in not_yet.STEPS:
            return self.error("E0901", step.name.span, f"`{name}` is not there yet", place=place)
        operator = operators().get(name)
        if operator is not None and operator.kind == "objective":
            return self.error("E0604", step.name.span, f"`{name}` is a loss: it belongs to `objective`", place=place)
        if place.names.hidden(name) or name in self.later:
            return self.unknown(name, step.name.span, place)
        known = [word for word, operator in operators().items() if operator.kind != "expression"]
        known += [*self.forms, *(d.name for d in place.names.visible() if isinstance(d.meaning, StageMeaning | BlockMeaning))]
        near = did_you_mean(name, known)
        return self.error("E0202", step.name.span, f"unknown step `{name}`", *([f"did you mean `{near}`?"] if near else []), place=place)

    # -------------------------------------------------------------- operators

    def reader(self, place: Place) -> ArgumentReader:
        """Reads arguments at a place."""

        def error(code: str, span: Span, message: str, *help: str, **details: Any) -> Poison:
            return self.error(code, span, message, *help, place=place, **details)

        return ArgumentReader(place.names, lambda written: self.expression(written, place), error)

    def apply_operator(self, operator: type[Operator], step: syntax.Step, value: Meaning | None, place: Place) -> Meaning:
        path = place.owner.path_of(operator.word)
        if step.body is not None:
            self.error("E0510", step.body.span, f"`{operator.word}` takes no body", place=place)
        reader = self.reader(place)
        read = reader.read(operator.word, operator, step.arguments or (), step.name.span)
        made = read and reader.construct(operator.word, operator, read, step.span)
        if read is None or not isinstance(made, Operator) or isinstance(value, Poison):
            return POISON
        inputs = (value,) if isinstance(value, Tensor) else ()
        return self.record(made, inputs, read.ports, read.spans, step.name.span, place, path)

    # -------------------------------------------------------------- bodies

    def body(
        self, body: syntax.Chain | syntax.Graph, value: Meaning, named: dict[str, Meaning], place: Place, span: Span
    ) -> Meaning:
        """A body applied to a value: a chain, or a graph with a namespace of its own."""
        if isinstance(body, syntax.Chain):
            return self.run(body.steps, value, place)
        return self.graph_body(body, value, named, Namespace(place.names, SEEN_BY_GRAPH_BODIES), place, span)

    def apply_block(self, meaning: BlockMeaning, step: syntax.Step, value: Meaning, place: Place) -> Meaning:
        """A block is expanded where it is used, with fresh weights, owned by whoever uses it."""
        block = meaning.block
        if block.name.text in place.blocks or place.depth >= MAXIMUM_DEPTH:
            chain = " -> ".join([*reversed(place.blocks), block.name.text])
            return self.error(
                "E0504", step.name.span, f"blocks cannot call each other in a circle: {chain}",
                also=[(block.name.span, "the block")], place=place,
            )
        inputs = _graph_inputs(block.body)
        arguments = step.arguments or ()
        parameters = {parameter.name.text: parameter for parameter in block.parameters}
        names = Namespace(meaning.names)
        given: dict[str, tuple[Constant | Poison, Span]] = {}
        named: dict[str, Meaning] = {}
        order = list(parameters)
        sound = True
        for position, argument in enumerate(arguments):
            name = argument.name.text if argument.name else (order[position] if position < len(order) else None)
            if name in given or name in named:
                self.error("E0308", argument.span, f"`{name}` of `{block.name}` is given twice", place=place)
                sound = False
            elif name in parameters:
                given[name] = (self.plain(argument.value, place, f"`{name}` of `{block.name}`"), argument.value.span)
            elif name in inputs[1:]:
                named[name] = self.expression(argument.value, place)
            else:
                self._no_such_argument(block.name.text, argument, [*order, *inputs[1:]], place)
                sound = False
        inner = replace(
            place.within(f"in block `{block.name}`, used", step.name.span), names=names, blocks=(block.name.text, *place.blocks)
        )
        for name, parameter in parameters.items():
            if name in given:
                names.define(name, "parameter", given[name][0], parameter.name.span)
            elif parameter.default is not None:
                names.define(name, "parameter", self.plain(parameter.default, inner, f"`{name}`"), parameter.name.span)
            else:
                if sound:
                    self.error("E0302", step.name.span, f"`{block.name}` needs `{name}`", f"{block.name}({', '.join(order)})", place=place)
                names.define(name, "parameter", POISON, parameter.name.span)
        if step.body is not None:
            self.error("E0510", step.body.span, f"`{block.name}` takes no body", place=place)
        if isinstance(block.body, syntax.Chain):
            return self.run(block.body.steps, value, inner)
        body_names = Namespace(names, SEEN_BY_GRAPH_BODIES)
        result = self.graph_body(block.body, value, named, body_names, inner, step.name.span)
        self.unused(names, inner)
        return result

    def _no_such_argument(self, name: str, argument: syntax.Argument, known: list[str], place: Place) -> None:
        if argument.name is None:
            self.error("E0303", argument.span, f"`{name}` takes at most {len(known)} argument{'s' if len(known) != 1 else ''}", place=place)
            return
        near = did_you_mean(argument.name.text, known)
        help = [f"did you mean `{near}`?"] if near else [f"its arguments are {', '.join(known)}"] if known else []
        self.error("E0301", argument.name.span, f"`{name}` has no argument `{argument.name}`", *help, place=place)

    def plain(self, written: syntax.Expression, place: Place, what: str) -> Constant | Poison:
        """A number, boolean, word or list: a parameter's value. A bare word that is no name stands for itself."""
        if isinstance(written, syntax.Name) and place.names.find(written.text) is None and written.text not in ("true", "false"):
            if written.text in self.later or place.names.hidden(written.text):
                return self.unknown(written.text, written.span, place)
            return Constant(written.text)
        value = self.expression(written, place)
        if isinstance(value, Constant | Poison):
            return value
        return self.error("E0333", written.span, f"{what} is a number, a boolean, a word or a list, not {self.describe(value)}", place=place)

    def unused(self, names: Namespace, place: Place) -> None:
        """Remember names that nobody read; told at the end, if the rest is sound."""

    # -------------------------------------------------------------- stages

    def apply_stage(self, stage: StageMeaning, step: syntax.Step, value: Meaning, place: Place) -> Meaning:
        """A stage's weights are its own: the first use makes them, every further one shares them."""
        inputs = _graph_inputs(stage.body)
        named: dict[str, Meaning] = {}
        for argument in step.arguments or ():
            if argument.name is None or argument.name.text not in inputs[1:]:
                self._no_such_argument(stage.name, argument, inputs[1:], place)
            else:
                named[argument.name.text] = self.expression(argument.value, place)
        if step.body is not None:
            self.error("E0510", step.body.span, f"`{stage.name}` takes no body", place=place)
        in_order = {name: named[name] for name in inputs[1:] if name in named}
        return self.use_stage(stage, value, in_order, step.name.span, place)

    def use_stage(
        self, stage: StageMeaning, value: Meaning, named: dict[str, Meaning], span: Span, place: Place, frozen: bool = False
    ) -> Meaning:
        if place.depth >= MAXIMUM_DEPTH:
            return self.error("E0504", span, f"more than {MAXIMUM_DEPTH} stages, blocks and repeats inside one another", place=place)
        real = isinstance(value, Tensor) and not place.dry
        record = real and not stage.recorded
        scope = self.recorder.scope(stage.path, stage.span) if record else None
        stage.recorded |= record
        stage.applications += real
        outside = place.within(f"in stage `{stage.name}`, used", span) if stage.span != span else place
        inner = replace(
            outside,
            owner=Owner(stage.path), scope=scope, names=stage.names, frozen=place.frozen or frozen,
            dry=place.dry or not isinstance(value, Tensor), blocks=(),
        )  # fmt: skip
        before = len(self.report)
        try:
            result = self._body_in_scope(stage.body, value, named, inner, span)
        except (SlotMismatch, LayoutMismatch) as problem:
            return self._disagreement(stage, problem, value, span, place)
        if isinstance(value, Tensor) and stage.first_use is None:
            stage.first_use, stage.first_types = span, (value.type,)
        if isinstance(result, Tensor) and isinstance(value, Tensor):
            arguments = tuple(t.value for t in (value, *named.values()) if isinstance(t, Tensor))
            self.recorder.apply(place, stage.path, arguments, (result.value,), frozen)
            return result
        if len(self.report) == before and not isinstance(result, Poison):
            return self.error("E0503", span, f"`{stage.name}` has {self.describe(result)} at its end", place=place)
        return POISON

    def _body_in_scope(
        self, body: syntax.Chain | syntax.Graph, value: Meaning, named: dict[str, Meaning], place: Place, span: Span
    ) -> Meaning:
        """A body that is a scope of its own: what goes in and comes out is remembered where it is recorded."""
        result = self.body(body, value, named, place, span)
        if place.scope is not None and isinstance(value, Tensor) and isinstance(result, Tensor):
            place.scope.parameters = [t.value for t in (value, *named.values()) if isinstance(t, Tensor)]
            place.scope.names = _graph_inputs(body)[:1] + list(named) if isinstance(body, syntax.Graph) else ["z"]
            place.scope.results = [result.value]
        return result

    def _disagreement(self, stage: StageMeaning, problem: Exception, value: Meaning, span: Span, place: Place) -> Poison:
        if stage.first_use is None:
            raise problem
        first = stage.first_types[0]
        also = [(stage.first_use, f"first used on {first}")]
        found = f"{value.type}" if isinstance(value, Tensor) else ""
        help = f"a stage of the same text with fresh weights: `stage other = copy({stage.name})`"
        if isinstance(problem, SlotMismatch):
            what = f"`{stage.name}` owns weights for {first}, and cannot take {found}"
            return self.error("E0404", span, what, help, label=found, also=also, place=place)
        what = f"`{stage.name}` works on the layout of its first tokens, and these have another"
        return self.error("E0409", span, what, help, label=found, also=also, place=place)

    # -------------------------------------------------------------- forms

    def repeat(self, step: syntax.Step, value: Meaning, place: Place) -> Meaning:
        """`repeat(depth) { … }`: the body `depth` times, with fresh weights."""
        count = self._repeat_count(step, place)
        if step.body is None:
            return self.error("E0511", step.span, "`repeat` needs a body", "repeat(depth) { … }", place=place)
        if count is None or place.depth >= MAXIMUM_DEPTH:
            if place.depth >= MAXIMUM_DEPTH:
                self.error("E0504", step.span, f"more than {MAXIMUM_DEPTH} stages, blocks and repeats inside one another", place=place)
            self._layer(step, 0, "", POISON, replace(place, dry=True))
            return POISON
        prefix = place.owner.layers()
        layers: list[str] = []
        start = value
        nodes_before = len(self.recorder.graph)
        for layer in range(count):
            path = f"{prefix}.{layer}" if prefix else f"{layer}"
            value = self._layer(step, layer, path, value, place)
            layers.append(path)
            if isinstance(value, Poison):
                return POISON
            per_layer = len(self.recorder.graph) - nodes_before
            if layer == 0 and nodes_before + per_layer * count > MAXIMUM_NODES:
                raise TooLarge
        if isinstance(start, Tensor) and isinstance(value, Tensor):
            self.recorder.loop(place, tuple(layers), start.value, value.value)
        return value

    def _repeat_count(self, step: syntax.Step, place: Place) -> int | None:
        arguments = step.arguments or ()
        if len(arguments) != 1 or (arguments[0].name and arguments[0].name.text != "depth"):
            self.error("E0302", step.name.span, "`repeat` needs how often", "repeat(depth) { … }", place=place)
            return None
        written = arguments[0].value
        value = self.expression(written, place)
        if isinstance(value, Poison):
            return None
        if not isinstance(value, Constant) or not isinstance(value.value, Fraction):
            self.error("E0307", written.span, f"`repeat` takes a whole number, not {self.describe(value)}", place=place)
            return None
        if value.value.denominator != 1:
            self.reader(place).not_whole("the count of `repeat`", written, value.value)
            return None
        if value.value < 1:
            self.error("E0306", written.span, f"the count of `repeat` must be at least 1, but is {value.value}", place=place)
            return None
        if value.value > MAXIMUM_NODES:
            self.error("E0006", written.span, f"a spec expands to at most {MAXIMUM_NODES:,} steps, and this repeat alone makes more", place=place)
            return None
        return int(value.value)

    def _layer(self, step: syntax.Step, layer: int, path: str, value: Meaning, place: Place) -> Meaning:
        assert step.body is not None
        names = Namespace(place.names)
        names.define("layer", "layer", Constant(Fraction(layer)), None)
        recording = place.scope is not None and isinstance(value, Tensor)
        scope = self.recorder.scope(path, step.span) if recording else None
        inner = replace(place.within(f"in layer {layer} of the repeat", step.name.span), owner=Owner(path), scope=scope, names=names)
        if isinstance(step.body, syntax.Chain):
            return self._body_in_scope(step.body, value, {}, inner, step.span)
        body_names = Namespace(place.names, SEEN_BY_GRAPH_BODIES)
        body_names.define("layer", "layer", Constant(Fraction(layer)), None)
        result = self.graph_body(step.body, value, {}, body_names, inner, step.span)
        if scope is not None and isinstance(value, Tensor) and isinstance(result, Tensor):
            scope.parameters, scope.names, scope.results = [value.value], _graph_inputs(step.body)[:1], [result.value]
        return result

    def residual(self, step: syntax.Step, value: Meaning, place: Place) -> Meaning:
        """`residual { … }`: x + f(x)."""
        if step.arguments:
            self.error("E0303", step.arguments[0].span, "`residual` takes no arguments, only a body", place=place)
        if step.body is None:
            return self.error("E0511", step.span, "`residual` needs a body", "residual { … }", place=place)
        self._warn_residual_compress(step.body, place)
        inner = place.within("in the residual", step.name.span)
        if place.depth >= MAXIMUM_DEPTH:
            return self.error("E0504", step.span, f"more than {MAXIMUM_DEPTH} stages, blocks and repeats inside one another", place=place)
        branch = self.body(step.body, value, {}, inner, step.span)
        if not isinstance(value, Tensor) or not isinstance(branch, Tensor):
            return POISON
        if value.type != branch.type:
            return self.error(
                "E0403", step.name.span, f"a residual adds its body to what goes in: {value.type} goes in, {branch.type} comes out",
                place=place,
            )  # fmt: skip
        operator = operators()["add"](left=Port(value.type), right=Port(branch.type))
        ports = {"left": value.value, "right": branch.value}
        return self.record(operator, (), ports, {}, step.name.span, place, place.owner.path_of("residual"))

    def _warn_residual_compress(self, body: syntax.Chain | syntax.Graph, place: Place) -> None:
        if isinstance(body, syntax.Chain) and len(body.steps) == 1 and body.steps[0].name.text == "compress":
            self.error("W0802", body.steps[0].name.span, "`compress` contains its residual: this adds a second one", place=place)

    def copy(self, step: syntax.Step, value: Meaning, place: Place) -> Meaning:
        """`copy(encoder)` in a pipeline: the same text, fresh weights, owned here."""
        stage = self.stage_argument(step, place)
        if stage is None:
            return POISON
        fresh = StageMeaning(stage.name, place.owner.path_of(stage.name), stage.body, stage.names, step.span)
        return self.use_stage(fresh, value, {}, step.name.span, place)

    def frozen(self, step: syntax.Step, value: Meaning, place: Place) -> Meaning:
        """`frozen(encoder)`: the same weights, not trained."""
        stage = self.stage_argument(step, place)
        return POISON if stage is None else self.use_stage(stage, value, {}, step.name.span, place, frozen=True)

    def transpose(self, step: syntax.Step, value: Meaning, place: Place) -> Meaning:
        """`transpose(embedding)`: the stage's one linear map, with the same weights, the other way."""
        stage = self.stage_argument(step, place)
        path = place.owner.path_of("transpose")
        if stage is None or not isinstance(value, Tensor) or place.dry:
            return POISON
        word = stage.body.steps[0].name.text if isinstance(stage.body, syntax.Chain) and len(stage.body.steps) == 1 else ""
        slot = getattr(operators().get(word), "transposable", None)
        if slot is None:
            return self.error(
                "E0505", step.name.span, f"`{stage.name}` cannot be transposed: a single `linear` or `embed` can",
                also=[(stage.span, "the stage")], place=place,
            )  # fmt: skip
        name = f"{stage.path}.{word}.{slot}"
        if name not in self.recorder.slots:
            return self.error("E0506", step.name.span, f"`{stage.name}` must be used before it is transposed: its first use makes its weights", place=place)
        shape = self.recorder.slots[name].shape
        operator = operators()["transpose"](weight=Weight(name, floats(*shape)), of=word)
        return self.record(operator, (value,), {}, {}, step.name.span, place, path)

    def stage_argument(self, step: syntax.Step, place: Place) -> StageMeaning | None:
        """The stage that `copy`, `frozen` or `transpose` is given."""
        arguments = step.arguments or ()
        if len(arguments) != 1 or not isinstance(arguments[0].value, syntax.Name):
            self.error("E0507", step.span, f"`{step.name}` takes the name of one stage", f"{step.name}(encoder)", place=place)
            return None
        written = arguments[0].value
        meaning = self.expression(written, place)
        if isinstance(meaning, StageMeaning):
            return meaning
        if not isinstance(meaning, Poison):
            self.error("E0507", written.span, f"`{step.name}` takes a stage, and `{written.text}` is {self.describe(meaning)}", place=place)
        return None

    #: What looks like a step and is a form of the language: it has a body, or takes a stage.
    forms: dict[str, Callable[..., Meaning]] = {  # noqa: RUF012
        "repeat": repeat,
        "residual": residual,
        "copy": copy,
        "frozen": frozen,
        "transpose": transpose,
    }


def _graph_inputs(body: syntax.Chain | syntax.Graph) -> list[str]:
    """The names of a graph body's inputs; a chain has one, without a name."""
    if isinstance(body, syntax.Chain):
        return ["z"]
    return [statement.name.text for statement in body.statements if isinstance(statement, syntax.Input)]
