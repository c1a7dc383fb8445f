"""Applying steps to values: pipelines, and the operators in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

from crate_dsl.compiler import not_yet, reserved
from crate_dsl.compiler.arguments import (
    ArgumentReader,
    Read,
)
from crate_dsl.compiler.expressions import Expressions
from crate_dsl.compiler.meanings import (
    POISON,
    BlockMeaning,
    LearnMeaning,
    Meaning,
    Poison,
    StageMeaning,
    Tensor,
    words,
)
from crate_dsl.compiler.operators import Operator
from crate_dsl.compiler.readings import Reading
from crate_dsl.compiler.record import (
    Place,
    Recorder,
)
from crate_dsl.compiler.steps import operators
from crate_dsl.language import syntax
from crate_dsl.language.diagnostics import Report, did_you_mean
from crate_dsl.language.source import Span


class Steps(Expressions):
    """Applies steps. Blocks, stages and forms are the business of the classes that build on this one."""

    #: `repeat`, `residual`, …: what looks like a step and is a form of the language.
    forms: ClassVar[Mapping[str, Callable[[Any, syntax.Step, Meaning, Place], Meaning]]] = {}

    def __init__(self, recorder: Recorder, report: Report) -> None:
        super().__init__(recorder, report)
        #: By the identity of the step in the tree.
        self._readings: dict[int, Reading] = {}

    def apply_block(self, meaning: BlockMeaning, step: syntax.Step, value: Meaning, place: Place) -> Meaning:
        raise NotImplementedError

    def apply_stage(self, stage: StageMeaning, step: syntax.Step, value: Meaning, place: Place) -> Meaning:
        raise NotImplementedError

    # -------------------------------------------------------------- pipelines

    def pipe(self, written: syntax.Pipe, place: Place) -> Meaning:
        if isinstance(written.value, syntax.Name | syntax.Step) and self._is_step(written.value, place):
            self.run(written.steps, POISON, place)
            return self._starts_with_step(written.value, place)
        value = self.expression(written.value, place)
        if isinstance(value, LearnMeaning):
            return self._learn_piped(written, place)
        if not isinstance(value, Tensor | Poison):
            message = f"a pipeline starts with a tensor, not with {self.describe(value)}"
            value = self.error("E0212", written.value.span, message, place=place)
        return self.run(written.steps, value, place)

    def _learn_piped(self, written: syntax.Pipe, place: Place) -> Poison:
        before = len(self.report)
        self.run(written.steps, POISON, place)
        if len(self.report) == before:
            name = written.value.span.text
            message = f"a pipeline that starts with a `learn`, as `{name}`, is not there yet"
            help = "give it to a step (`prepend`, `append`), or combine it with a value of the network (`z + name`)"
            self.error("E0901", written.value.span, message, help, place=place)
        return POISON

    def _is_step(self, written: syntax.Name | syntax.Step, place: Place) -> bool:
        """Whether a name that starts a pipeline is a step rather than a value."""
        name = written.text if isinstance(written, syntax.Name) else written.name.text
        definition = place.names.find(name)
        if definition is not None:
            return isinstance(definition.meaning, StageMeaning | BlockMeaning)
        operator = operators().get(name)
        return name in reserved.FORMS or (operator is not None and operator.kind in ("language", "training"))

    def _starts_with_step(self, written: syntax.Name | syntax.Step, place: Place) -> Poison:
        name = written.text if isinstance(written, syntax.Name) else written.name.text
        definition = place.names.find(name)
        if definition is not None:
            definition.used = True
        if name in not_yet.OF_NUMBERS and isinstance(written, syntax.Step):
            message = f"`{name}` of a number alone is not there yet"
            return self.error(
                "E0901", written.span, message, f"of a value: `value -> {name}(…)`", place=place
            )
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
                return self._loss_outside(written.name, place)
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
                message = f"`{step.name}` has several results: it stands last, and each result gets a name"
                help = f"write `a, b = … -> {step.name}(…)`"
                value = self.error("E0503", step.name.span, message, help, place=place)
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
            message = f"`{name}` is {self.describe(definition.meaning)}, not a step"
            also = [(definition.span, "defined here")] if definition.span else []
            return self.error("E0210", step.name.span, message, also=also, place=place)
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
            return self._loss_outside(step.name, place)
        if place.names.upcoming(name) or place.names.hidden(name):
            return self.unknown(name, step.name.span, place)
        if place.blocks and self.model_names.find(name):
            message = f"a block does not see the model's `{name}`, only other blocks"
            return self.error("E0205", step.name.span, message, place=place)
        if place.names.doubts(name):
            return POISON
        near = did_you_mean(name, self._known_steps(place))
        help = [f"did you mean `{near}`?"] if near else []
        return self.error("E0202", step.name.span, f"unknown step `{name}`", *help, place=place)

    def _known_steps(self, place: Place) -> Iterator[str]:
        yield from reserved.FORMS
        yield from (word for word in operators() if reserved.is_step(word))
        for definition in place.names.visible():
            if isinstance(definition.meaning, StageMeaning | BlockMeaning):
                yield definition.name

    def _loss_outside(self, name: syntax.Identifier, place: Place) -> Poison:
        if place.objective:
            message = f"`{name}` is a loss, which compares values rather than taking one"
            help = f"write `{name}(…)`, with what it compares as arguments"
            return self.error("E0604", name.span, message, help, place=place)
        return self.error("E0604", name.span, f"`{name}` is a loss: it belongs to `objective`", place=place)

    # -------------------------------------------------------------- operators

    def reader(self, place: Place) -> ArgumentReader:
        """Reads arguments at a place."""

        def error(code: str, span: Span, message: str, *help: str, **details: Any) -> Poison:
            return self.error(code, span, message, *help, place=place, **details)

        return ArgumentReader(place.names, lambda written: self.expression(written, place), error)

    def apply_operator(
        self, operator: type[Operator], step: syntax.Step, value: Meaning | None, place: Place
    ) -> Meaning:
        self.recorder.count(step.name.span)
        path = place.owner.path_of(operator.word)
        self.no_body(step, place)
        found = self._reading(operator, step, place)
        if found is None or isinstance(value, Poison):
            return POISON
        made, read = found
        inputs = (value,) if isinstance(value, Tensor) else ()
        return self.record(made, inputs, read.ports, read.spans, step.name.span, place, path)

    def _reading(
        self, operator: type[Operator], step: syntax.Step, place: Place
    ) -> tuple[Operator, Read] | None:
        """The operator that a step says, and its arguments; None after reporting. Layers that say the same share it."""
        last = self._readings.get(id(step))
        if last is not None and last.holds(place.names):
            return last.operator, last.read
        reader = self.reader(place)
        read = reader.read(operator.word, operator, step.arguments or (), step.name.span)
        made = read and reader.construct(operator.word, operator, read, step.span)
        if read is None or not isinstance(made, Operator):
            return None
        if not read.ports:  # what computes a tensor is a step of its own, each time
            known = last.words if last is not None else tuple(words(step.span.text))
            meant = tuple(map(place.names.find, known))
            self._readings[id(step)] = Reading(step, known, meant, made, read)
        return made, read

    def no_body(self, step: syntax.Step, place: Place) -> None:
        """Report a body where none belongs."""
        if step.body is not None:
            message = f"`{step.name}` takes no body"
            help = f"steps that follow it stand behind an arrow: `{step.name} -> …`"
            self.error(
                "E0510", step.body.span, message, help, label=f"the body of `{step.name}`", place=place
            )
