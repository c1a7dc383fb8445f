"""What looks like a step and is a form of the language: `repeat`, `residual`, `each`, and stages made of stages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from fractions import Fraction
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from crate_dsl.compiler import reserved
from crate_dsl.compiler.arguments import report_unknown
from crate_dsl.compiler.bodies import Bodies, graph_inputs, is_broken
from crate_dsl.compiler.expressions import make
from crate_dsl.compiler.meanings import (
    POISON,
    Constant,
    Meaning,
    Namespace,
    Poison,
    StageMeaning,
    Tensor,
)
from crate_dsl.compiler.operators import Fraction01, Port, Weight
from crate_dsl.compiler.record import MAXIMUM_STEPS, Owner, Place
from crate_dsl.compiler.steps import operators
from crate_dsl.compiler.types import floats
from crate_dsl.language import syntax
from crate_dsl.language.source import Span


class _EmaArguments(BaseModel):
    """What `ema` takes beside the stage."""

    model_config = ConfigDict(defer_build=True)

    momentum: Fraction01 = 0.996


class Forms(Bodies):
    """Reads the forms."""

    # -------------------------------------------------------------- repeat

    def repeat(self, step: syntax.Step, value: Meaning, place: Place) -> Meaning:
        """`repeat(depth) { … }`: the body `depth` times, with fresh weights."""
        self.recorder.count(step.name.span)
        count = self._repeat_count(step, place)
        if step.body is None:
            return self._body_missing(step, "repeat(depth)", place)
        if self.too_deep(step.name.span, place):
            return POISON
        if not self._has_one_input(step, step.body, place) or count is None:
            self._layer(step, step.body, 0, "", POISON, replace(place, dry=True))
            return POISON
        prefix = place.owner.layers()
        layers = tuple(f"{prefix}.{layer}" if prefix else f"{layer}" for layer in range(count))
        start, before = value, self.recorder.steps
        for layer, path in enumerate(layers):
            value = self._layer(step, step.body, layer, path, value, place)
            if isinstance(value, Poison):
                return POISON
            if layer == 0 and (self.recorder.steps - before) * count > MAXIMUM_STEPS:
                return self._too_many(step, place)
        if isinstance(start, Tensor) and isinstance(value, Tensor):
            self.recorder.loop(place, layers, start.value, value.value)
        return value

    def _too_many(self, step: syntax.Step, place: Place) -> Poison:
        message = f"a network has at most {MAXIMUM_STEPS:,} steps, and this repeat makes more"
        return self.error("E0521", step.name.span, message, place=place)

    def _repeat_count(self, step: syntax.Step, place: Place) -> int | None:
        arguments = step.arguments or ()
        if len(arguments) == 1 and arguments[0].name and arguments[0].name.text != "depth":
            report_unknown(self.reader(place).error, "repeat", arguments[0].name, ["depth"])
            return None
        if len(arguments) != 1:
            help = "repeat(depth) { … }"
            self.error("E0302", step.name.span, "`repeat` needs one argument: how often", help, place=place)
            return None
        written = arguments[0].value
        value = self.expression(written, place)
        if isinstance(value, Poison):
            return None
        if not isinstance(value, Constant) or not isinstance(value.value, Fraction):
            message = f"`repeat` takes a whole number, not {self.describe(value)}"
            self.error("E0307", written.span, message, place=place)
            return None
        if value.value.denominator != 1:
            self.reader(place).not_whole("the count of `repeat`", written, value.value)
            return None
        if value.value < 1:
            message = f"the count of `repeat` must be at least 1, but is {value.value}"
            self.error("E0306", written.span, message, place=place)
            return None
        if value.value > MAXIMUM_STEPS:
            self._too_many(step, place)
            return None
        return int(value.value)

    def _layer(
        self,
        step: syntax.Step,
        body: syntax.Chain | syntax.Graph,
        layer: int,
        path: str,
        value: Meaning,
        place: Place,
    ) -> Meaning:
        recording = place.scope is not None and isinstance(value, Tensor)
        # What is wrong in the first layer is wrong with the body: its place says it all.
        evident = step.span if layer == 0 else None
        inner = replace(
            place.within(f"in layer {layer} of the repeat", step.name.span, evident),
            owner=Owner(path),
            scope=self.recorder.scope(path, step.span) if recording else None,
            names=Namespace(place.names),
        )
        inner.names.define("layer", "layer", Constant(Fraction(layer)), None)
        return self.scoped_body(body, value, {}, inner, step.name.span)

    # -------------------------------------------------------------- residual

    def residual(self, step: syntax.Step, value: Meaning, place: Place) -> Meaning:
        """`residual { … }`: x + f(x)."""
        self.recorder.count(step.name.span)
        if step.arguments:
            message = "`residual` takes no arguments, only a body"
            self.error("E0303", step.arguments[0].span, message, place=place)
        if step.body is None:
            return self._body_missing(step, "residual", place)
        if self.too_deep(step.name.span, place):
            return POISON
        if not self._has_one_input(step, step.body, place):
            value, place = POISON, replace(place, dry=True)
        self._warn_residual_compress(step.body, place)
        inner = place.within("in the residual", step.name.span, step.span)
        branch = self.body(step.body, value, {}, inner, step.name.span)
        if not isinstance(value, Tensor) or not isinstance(branch, Tensor):
            if not isinstance(branch, Tensor | Poison):
                self.error("E0503", step.name.span, f"the body ends in {self.describe(branch)}", place=place)
            return POISON
        if value.type != branch.type:
            message = f"a residual adds its body to what goes in, but {value.type} goes in and {branch.type} comes out"
            width = value.type.shape[-1] if value.type.rank == branch.type.rank and value.type.rank else None
            fits = width is not None and value.type.shape[:-1] == branch.type.shape[:-1]
            help = [f"`linear({width})` at its end leads back to that width"] if fits else []
            return self.error("E0403", step.name.span, message, *help, place=place)
        operator = make("add", left=Port(value.type), right=Port(branch.type))
        ports = {"left": value.value, "right": branch.value}
        path = place.owner.path_of("residual")
        return self.record(operator, (), ports, {}, step.name.span, place, path)

    # -------------------------------------------------------------- each

    def each(self, step: syntax.Step, value: Meaning, place: Place) -> Meaning:
        """`each { … }`: the body on every item of the leading axis, (V, …) -> (V, …), with one set of weights."""
        self.recorder.count(step.name.span)
        if step.arguments:
            message = "`each` takes no arguments, only a body"
            self.error("E0303", step.arguments[0].span, message, place=place)
        if step.body is None:
            return self._body_missing(step, "each", place)
        if self.too_deep(step.name.span, place):
            return POISON
        if not self._has_one_input(step, step.body, place):
            value, place = POISON, replace(place, dry=True)
        path = place.owner.path_of("fold")
        inner = replace(place.within("in `each`", step.name.span, step.span), batch=path)
        items = self._items(step, value, inner, path)
        result = self.body(step.body, items, {}, inner, step.name.span)
        path = place.owner.path_of("unfold")
        if not isinstance(value, Tensor) or not isinstance(result, Tensor):
            if not isinstance(result, Tensor | Poison):
                self.error("E0503", step.name.span, f"the body ends in {self.describe(result)}", place=place)
            return POISON
        operator, ports = make("unfold", like=Port(value.type)), {"like": value.value}
        return self.record(operator, (result,), ports, {}, step.name.span, place, path)

    def _items(self, step: syntax.Step, value: Meaning, inner: Place, path: str) -> Meaning:
        """The items of a value, as samples of a batch of their own."""
        if not isinstance(value, Tensor):
            return POISON
        count = value.type.shape[0].static if value.type.rank > 1 else None
        if count is None:
            message = (
                f"`each` takes a known number of items, float[items, …], but is given {value.type}"
                if value.type.rank > 1
                else f"`each` takes items of at least one axis, float[items, …], but is given {value.type}"
            )
            return self.error("E0533", step.name.span, message, place=inner)
        return self.record(make("fold", count=count), (value,), {}, {}, step.name.span, inner, path)

    def _warn_residual_compress(self, body: syntax.Chain | syntax.Graph, place: Place) -> None:
        if isinstance(body, syntax.Chain) and len(body.steps) == 1 and body.steps[0].name.text == "compress":
            message = "`compress` contains its residual, and this adds a second one"
            help = "without it: `compress(…)` is Z + MSSA(norm Z)"
            self.error("W0802", body.steps[0].name.span, message, help, place=place)

    def _has_one_input(self, step: syntax.Step, body: syntax.Chain | syntax.Graph, place: Place) -> bool:
        """Whether a body takes the piped value alone: nothing else can be handed to it. Reported, if not."""
        statements = () if isinstance(body, syntax.Chain) else body.statements
        inputs = [statement for statement in statements if isinstance(statement, syntax.Input)]
        for statement in inputs[1:]:
            message = f"`{statement.name}` cannot be handed over: the body of `{step.name}` takes the piped value alone"
            help = "a stage has further inputs: name the body, and use it here"
            self.error("E0508", statement.name.span, message, help, place=place)
        return len(inputs) < 2

    def _body_missing(self, step: syntax.Step, written: str, place: Place) -> Poison:
        message = f"`{step.name}` needs a body in braces"
        return self.error("E0511", step.span, message, f"{written} {{ … }}", place=place)

    # -------------------------------------------------------------- derived stages

    def copy(self, step: syntax.Step, value: Meaning, place: Place) -> Meaning:
        """`copy(encoder)` in a pipeline: the same text, fresh weights, owned here."""
        stage = self.stage_argument(step, place)
        if stage is None:
            return POISON
        fresh = _again(stage, stage.name, place.owner.path_of(stage.name), step.span)
        return self._use_derived(fresh, (step.arguments or ())[1:], step, value, place)

    def again(self, step: syntax.Step, name: str, path: str, span: Span, place: Place) -> StageMeaning | None:
        """`stage other = copy(encoder)`."""
        stage = self.stage_argument(step, place)
        return None if stage is None else _again(stage, name, path, span)

    def ema(self, step: syntax.Step, value: Meaning, place: Place) -> Meaning:
        """`ema(student)` in a pipeline: a slow copy, owned here."""
        stage = self.stage_argument(step, place)
        if stage is None:
            return POISON
        rest, names = (step.arguments or ())[1:], graph_inputs(stage.body)[1:]
        handed = tuple(a for a in rest if a.name is not None and a.name.text in names)
        own = replace_arguments(step, tuple(argument for argument in rest if argument not in handed))
        path = place.owner.path_of(stage.name)
        slow = self._slow_copy(stage, own, stage.name, path, step.span, place)
        return POISON if slow is None else self._use_derived(slow, handed, step, value, place)

    def slow_copy(
        self, step: syntax.Step, name: str, path: str, span: Span, place: Place
    ) -> StageMeaning | None:
        """`stage teacher = ema(student)`: the same text; its weights follow the student's as it is trained."""
        stage = self.stage_argument(step, place)
        if stage is None:
            return None
        own = replace_arguments(step, (step.arguments or ())[1:])
        return self._slow_copy(stage, own, name, path, span, place)

    def _slow_copy(
        self, stage: StageMeaning, step: syntax.Step, name: str, path: str, span: Span, place: Place
    ) -> StageMeaning | None:
        """A slow copy of a stage, with what `ema` is given beside it; None after reporting."""
        if stage.follows is not None:
            message = f"`{stage.name}` is a slow copy already: `ema` takes the stage that is trained"
            help = f"a second copy of the same stage: `ema({stage.follows.name}, momentum = …)`"
            also = [(stage.span, f"it follows `{stage.follows.name}`")]
            self.error("E0535", step.name.span, message, help, also=also, place=place)
            return None
        reader = self.reader(place)
        read = reader.read("ema", _EmaArguments, step.arguments or (), step.name.span)
        made = read and reader.construct("ema", _EmaArguments, read, step.span)
        if not isinstance(made, _EmaArguments):
            return None
        return replace(_again(stage, name, path, span), follows=stage, momentum=made.momentum)

    def frozen(self, step: syntax.Step, value: Meaning, place: Place) -> Meaning:
        """`frozen(encoder)`: the same weights, not trained."""
        stage = self.stage_argument(step, place)
        if stage is None:
            return POISON
        return self._use_derived(stage, (step.arguments or ())[1:], step, value, place, frozen=True)

    def _use_derived(
        self,
        stage: StageMeaning,
        handed: tuple[syntax.Argument, ...],
        step: syntax.Step,
        value: Meaning,
        place: Place,
        frozen: bool = False,
    ) -> Meaning:
        if is_broken(stage.body):
            return POISON
        named = self.stage_inputs(stage, replace_arguments(step, handed), place)
        return self.use_stage(stage, value, named, step.name.span, place, frozen)

    def transpose(self, step: syntax.Step, value: Meaning, place: Place) -> Meaning:
        """`transpose(embedding)`: the stage's one linear map, with the same weights, the other way."""
        self.recorder.count(step.name.span)
        stage = self.stage_argument(step, place)
        path = place.owner.path_of("transpose")
        if stage is None:
            return POISON
        for argument in (step.arguments or ())[1:]:
            self.error(
                "E0303", argument.span, "`transpose` takes the name of one stage, no more", place=place
            )
        chain = stage.body if isinstance(stage.body, syntax.Chain) else None
        word = chain.steps[0].name.text if chain is not None and len(chain.steps) == 1 else ""
        slot = getattr(operators().get(word), "transposable", None)
        if slot is None:
            message = (
                f"`{stage.name}` has no transpose: only a stage that is a single `linear` or `embed` has"
            )
            also = [(stage.span, "the stage")]
            return self.error("E0505", step.name.span, message, also=also, place=place)
        if not isinstance(value, Tensor) or place.dry:
            return POISON
        if stage.follows is not None and place.averaging is not None:
            return self.nested_copy(stage.name, step.name.span, place)
        # A slow copy reads its own of the stage, where it has one so far.
        paths = [f"{own.path}.{word}.{slot}" for own in (self.own_copy(stage, place)[0], stage)]
        name = next((path for path in paths if path in self.recorder.slots), None)
        if name is None:
            message = f"`{stage.name}` must be used before it is transposed: its first use makes its weights"
            also = [(stage.span, "not used so far")]
            return self.error("E0506", step.name.span, message, also=also, place=place)
        shape = self.recorder.slots[name].shape
        operator = make("transpose", weight=Weight(name, floats(*shape)), of=word)
        return self.record(operator, (value,), {}, {}, step.name.span, place, path)

    def stage_argument(self, step: syntax.Step, place: Place) -> StageMeaning | None:
        """The stage that `copy`, `frozen`, `ema` or `transpose` is given."""
        self.no_body(step, place)
        argument = step.arguments[0] if step.arguments else None
        if argument is None or argument.name is not None or not isinstance(argument.value, syntax.Name):
            message, help = f"`{step.name}` takes the name of a stage", f"{step.name}(encoder)"
            self.error("E0507", argument.span if argument else step.span, message, help, place=place)
            return None
        written = argument.value
        definition = place.names.find(written.text)
        if definition is None and reserved.is_step(written.text):
            message = f"`{step.name}` takes a stage, and `{written.text}` is a step without a name"
            help = f"name it before: `stage name = {written.text}…`"
            self.error("E0507", written.span, message, help, place=place)
            return None
        meaning = self.expression(written, place)
        if isinstance(meaning, StageMeaning):
            return meaning
        if not isinstance(meaning, Poison):
            message = f"`{step.name}` takes a stage, and `{written.text}` is {self.describe(meaning)}"
            also = [(definition.span, "defined here")] if definition and definition.span else []
            self.error("E0507", written.span, message, also=also, place=place)
        return None

    forms: ClassVar[Mapping[str, Callable[[Any, syntax.Step, Meaning, Place], Meaning]]] = {
        "repeat": repeat,
        "residual": residual,
        "each": each,
        "copy": copy,
        "frozen": frozen,
        "ema": ema,
        "transpose": transpose,
    }


def _again(stage: StageMeaning, name: str, path: str, span: Span) -> StageMeaning:
    """A stage of the same text, with weights of its own."""
    return StageMeaning(name, path, stage.body, stage.names, span, read=True)


def replace_arguments(step: syntax.Step, arguments: tuple[syntax.Argument, ...]) -> syntax.Step:
    """The same step with other arguments."""
    return step.model_copy(update={"arguments": arguments})
