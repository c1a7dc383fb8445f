"""What an expression means: exact numbers, tensors, and the arithmetic that joins them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from typing import Any

from crate_dsl.compiler import not_yet, reserved
from crate_dsl.compiler.exact import ArithmeticProblem, combine, show_number
from crate_dsl.compiler.meanings import (
    POISON,
    BlockMeaning,
    Constant,
    Definition,
    LearnMeaning,
    Meaning,
    Namespace,
    Poison,
    StageMeaning,
    Tensor,
    Tensors,
)
from crate_dsl.compiler.operators import Mistake, Operator, Port, Typing, Weight
from crate_dsl.compiler.record import Place, Recorder
from crate_dsl.compiler.steps import operators
from crate_dsl.compiler.types import Dim, Layout, TensorType
from crate_dsl.language import syntax
from crate_dsl.language.diagnostics import Diagnostic, Label, Report, did_you_mean
from crate_dsl.language.source import Span

_OPERATOR_WORDS = {"+": "add", "-": "subtract", "*": "multiply", "/": "divide"}


class Expressions:
    """Evaluates expressions; pipelines and steps are the business of the class that builds on this one."""

    def __init__(self, recorder: Recorder, report: Report) -> None:
        self.recorder = recorder
        self.report = report
        #: The model's names, which a block does not see.
        self.model_names = Namespace()
        self._types: dict[tuple[TensorType, Layout | None], TensorType] = {}
        self._arithmetics: dict[tuple[Any, ...], Operator] = {}
        #: By the identities of an operator and of the types that go in, which the typing's entry holds.
        self._typings: dict[tuple[int, ...], tuple[Operator, tuple[TensorType, ...], Typing]] = {}

    # -------------------------------------------------------------- reporting

    def error(
        self,
        code: str,
        span: Span,
        message: str,
        *help: str,
        label: str = "",
        also: list[tuple[Span, str]] | None = None,
        place: Place | None = None,
    ) -> Poison:
        """Report a mistake; what it would have been is `POISON`."""
        self.report.add(
            Diagnostic(
                code=code,
                message=message,
                where=Label(span=span, text=label),
                also=tuple(Label(span=s, text=text) for s, text in also or ()),
                uses=place.led_to(span) if place else (),
                help=help,
            )
        )
        return POISON

    # -------------------------------------------------------------- expressions

    def expression(self, written: syntax.Expression, place: Place) -> Meaning:
        """What an expression means. Mistakes are reported, and mean `POISON`."""
        match written:
            case syntax.Number():
                return Constant(written.value)
            case syntax.String():
                return Constant(written.value)
            case syntax.Name():
                return self.name(written, place)
            case syntax.Parenthesis():
                return self.expression(written.value, place)
            case syntax.Sum() | syntax.Product():
                return self._chain(written, place)
            case syntax.Negative():
                return self._negative(written, place)
            case syntax.List():
                return self._list(written, place)
            case syntax.Index():
                return self._index(written, place)
            case syntax.Pipe():
                return self.pipe(written, place)
            case syntax.Step():
                return self.call(written, place)
            case syntax.Attribute():
                message = f"`{written.span.text}` is an attribute of tokens, which only `mask = …` may read"
                return self.error("E0309", written.span, message, place=place)
            case syntax.Comparison() | syntax.And() | syntax.Or():
                message = "a comparison has no value of its own: only `mask = …` may hold one"
                return self.error("E0309", written.span, message, place=place)
            case syntax.Learn():
                message = "`learn(…)` is an argument of a step, which then owns the number"
                help = "write a statement, `learn s : float = 1.0`, and use `s` here"
                return self.error("E0334", written.span, message, help, place=place)
        raise AssertionError(f"an expression of an unknown kind: {written!r}")

    def pipe(self, written: syntax.Pipe, place: Place) -> Meaning:
        raise NotImplementedError

    def call(self, written: syntax.Step, place: Place) -> Meaning:
        raise NotImplementedError

    # -------------------------------------------------------------- names

    def name(self, written: syntax.Name, place: Place) -> Meaning:
        text = written.text
        definition = place.names.find(text)
        if definition is not None:
            definition.used = True
            if definition.role == "target" and not place.objective:
                return self.error(
                    "E0602",
                    written.span,
                    f"`{text}` is a target: only the objective reads it",
                    f"a value that conditions the network is an input: `input {text} : …`",
                    also=[(definition.span, "declared here")] if definition.span else [],
                    place=place,
                )
            return self._of_this_batch(definition, written, place)
        if text in ("true", "false"):
            return Constant(text == "true")
        return self.unknown(text, written.span, place)

    def _of_this_batch(self, definition: Definition, written: syntax.Name, place: Place) -> Meaning:
        """What a name means; reported where it is a value of another batch: of samples inside `each`, or of items."""
        meaning = definition.meaning
        if not isinstance(meaning, Tensor) or place.dry:
            return meaning
        if self.recorder.batches.get(meaning.value.node, "") == place.batch:
            return meaning
        return self.error(
            "E0534",
            written.span,
            f"inside `each`, steps work on items one by one, and `{written.text}` belongs to a whole sample",
            "what an item needs is computed from the item, inside the body; what joins items stands behind it",
            also=[(definition.span, "defined here")] if definition.span else [],
            place=place,
        )

    def unknown(self, text: str, span: Span, place: Place) -> Poison:
        """Report a name that means nothing here, as what it most likely is."""
        upcoming = place.names.upcoming(text)
        if upcoming is not None:
            also = [(upcoming, "defined here")]
            return self.error("E0207", span, f"`{text}` is used before it is defined", also=also, place=place)
        if text == "layer":
            return self._no_layer(span, place)
        hidden = place.names.hidden(text)
        if place.names.doubts(text) or (hidden is not None and isinstance(hidden.meaning, Poison)):
            return POISON
        if hidden is not None:
            message = f"`{text}` is not seen inside this body: it must be handed over"
            help = f"declare `input {text}` in the body, and pass `{text} = {text}` where it is used"
            also = [(hidden.span, "defined here")] if hidden.span else []
            return self.error("E0205", span, message, help, also=also, place=place)
        outside = self.model_names.find(text) if place.blocks else None
        if outside is not None:
            return self._outside_block(text, span, outside.role == "parameter", place)
        if reserved.is_step(text) or text in not_yet.STEPS:
            operator = operators().get(text)
            loss = operator is not None and operator.kind == "objective"
            message = f"`{text}` is a {'loss' if loss else 'step'}, and a value is wanted here"
            help = (
                f"a loss compares values: `{text}(…)`" if loss else f"pipe a value into it: `value -> {text}`"
            )
            return self.error("E0211", span, message, help, place=place)
        near = did_you_mean(text, [d.name for d in place.names.visible()])
        help_lines = [f"did you mean `{near}`?"] if near else []
        return self.error("E0201", span, f"unknown name `{text}`", *help_lines, place=place)

    def _no_layer(self, span: Span, place: Place) -> Poison:
        if place.blocks:
            message = "a block does not see `layer`: it must be handed over"
            help = f"give the block a parameter, and pass it `layer`: `{place.blocks[0]}(…, index = layer)`"
            return self.error("E0205", span, message, help, place=place)
        help = "in `repeat(depth) { … }` it counts the layers from 0; a stage's own body does not see it"
        return self.error("E0205", span, "there is no `layer` here", help, place=place)

    def _outside_block(self, text: str, span: Span, plain: bool, place: Place) -> Poison:
        block = place.blocks[0]
        message = f"a block does not see the model's `{text}`: it must be handed over"
        kind = "a parameter" if plain else f"an `input {text}`"
        help = f"give the block {kind}, and pass it `{text}`: `{block}(…, {text} = {text})`"
        return self.error("E0205", span, message, help, place=place)

    # -------------------------------------------------------------- arithmetic

    def _chain(self, written: syntax.Sum | syntax.Product, place: Place) -> Meaning:
        result = self.expression(written.first, place)
        span = written.first.span
        for term in written.rest:
            right = self.expression(term.value, place)
            result = self.combine(term.operator, result, span, right, term.value.span, place)
            span = span.to(term.value.span)
        return result

    def _negative(self, written: syntax.Negative, place: Place) -> Meaning:
        value = self.expression(written.value, place)
        if isinstance(value, Tensor | LearnMeaning):
            spans = {"value": written.value.span}
            return self._arithmetic("negative", {"value": value}, spans, written.span, place)
        zero = Constant(Fraction(0))
        return self.combine("-", zero, written.span, value, written.value.span, place)

    def combine(
        self, operator: Any, left: Meaning, left_span: Span, right: Meaning, right_span: Span, place: Place
    ) -> Meaning:
        """`left operator right`, for numbers and for tensors."""
        numbers: list[Any] = []
        sound = True
        for value, where in ((left, left_span), (right, right_span)):
            if isinstance(value, Constant) and isinstance(value.value, Fraction | Dim):
                numbers.append(value.value)
            elif not isinstance(value, Tensor | LearnMeaning | Poison):
                message = f"{self.describe(value)} has no part in arithmetic"
                self.error("E0332", where, message, *_instead(value), place=place)
                sound = False
        if not sound or isinstance(left, Poison) or isinstance(right, Poison):
            return POISON
        span = left_span.to(right_span)
        if len(numbers) == 2:
            try:
                return Constant(combine(operator, *numbers))
            except ArithmeticProblem as problem:
                shown = self.substituted(span, place)
                label = shown if shown != span.text else ""
                return self.error("E0331", span, str(problem), label=label, place=place)
        if any(isinstance(number, Dim) for number in numbers):
            message = "a length known only when the network runs has no part in arithmetic with tensors"
            return self.error("E0332", span, message, place=place)
        operands = {"left": left, "right": right}
        spans = {"left": left_span, "right": right_span}
        return self._arithmetic(_OPERATOR_WORDS[operator], operands, spans, span, place)

    def _arithmetic(
        self, word: str, operands: Mapping[str, Meaning], spans: dict[str, Span], span: Span, place: Place
    ) -> Meaning:
        fields: dict[str, Any] = {}
        ports = {}
        for name, operand in operands.items():
            if isinstance(operand, Tensor):
                fields[name], ports[name] = Port(operand.type), operand.value
            elif isinstance(operand, LearnMeaning):
                fields[name] = Weight(operand.path, operand.type)
            else:
                assert isinstance(operand, Constant) and isinstance(operand.value, Fraction)
                number = self.as_float(operand.value, spans[name], place)
                if number is None:
                    return POISON
                fields[name] = number
        return self.record(make(word, **fields), (), ports, spans, span, place)

    def as_float(self, value: Fraction, span: Span, place: Place) -> float | None:
        """A number as tensors hold it; None after reporting that it is too large."""
        try:
            return float(value)
        except OverflowError:
            message = f"{show_number(value)} is larger than any floating-point number"
            self.error("E0306", span, message, place=place)
            return None

    def substituted(self, span: Span, place: Place) -> str:
        """A text with the names in it replaced by their values: `384 / 7` for `dim / subspaces`."""
        return place.names.substituted(span.text)

    # -------------------------------------------------------------- lists

    def _list(self, written: syntax.List, place: Place) -> Meaning:
        items = [self.expression(item, place) for item in written.items]
        if any(isinstance(item, Poison) for item in items):
            return POISON
        for item, text in zip(items, written.items, strict=True):
            if not isinstance(item, Constant):
                return self.error(
                    "E0332", text.span, f"{self.describe(item)} has no place in a list", place=place
                )
        return Constant(tuple(item.value for item in items if isinstance(item, Constant)))

    def _index(self, written: syntax.Index, place: Place) -> Meaning:
        value = self.name(syntax.Name(span=written.value.span, text=written.value.text), place)
        index = self.expression(written.index, place)
        if isinstance(value, Poison) or isinstance(index, Poison):
            return POISON
        if (
            not isinstance(index, Constant)
            or not isinstance(index.value, Fraction)
            or index.value.denominator != 1
        ):
            message = f"an index is a whole number, counted from 0, not {self.describe(index)}"
            return self.error("E0330", written.index.span, message, place=place)
        at = int(index.value)
        if isinstance(value, Tensor | LearnMeaning):
            return self._item(written, value, at, place)
        if not isinstance(value, Constant) or not isinstance(value.value, tuple):
            message = f"`{written.value}` is {self.describe(value)}, and has no items"
            return self.error("E0330", written.value.span, message, place=place)
        if not 0 <= at < len(value.value):
            count = len(value.value)
            have = f"{count} items" if count != 1 else "one item"
            message = f"`{written.value}` has {have}, and no item {show_number(index.value)}"
            help = [f"items are counted from 0 to {count - 1}"] if count else []
            label = "" if written.index.span.text == str(at) else show_number(index.value)
            return self.error("E0330", written.index.span, message, *help, label=label, place=place)
        return Constant(value.value[at])

    def _item(self, written: syntax.Index, value: Tensor | LearnMeaning, at: int, place: Place) -> Meaning:
        spans = {"value": written.value.span, "index": written.index.span}
        if isinstance(value, LearnMeaning):
            operator = make("item", value=Weight(value.path, value.type), index=at)
            return self.record(operator, (), {}, spans, written.span, place)
        operator = make("item", value=Port(value.type), index=at)
        return self.record(operator, (), {"value": value.value}, spans, written.span, place)

    # -------------------------------------------------------------- recording

    def record(
        self,
        operator: Operator,
        inputs: tuple[Tensor, ...],
        ports: dict[str, Any],
        spans: dict[str, Span],
        span: Span,
        place: Place,
        path: str | None = None,
    ) -> Meaning:
        """Type one use of a step and enter it into the graph; mistakes of its type rule are placed and reported."""
        path = path or place.owner.path_of(operator.word)
        if place.dry:
            return POISON
        self.recorder.count(span)
        operator = self._shared(operator)
        try:
            typing = self.infer(operator, *(tensor.type for tensor in inputs))
        except Mistake as mistake:
            where = spans.get(mistake.at, span) if mistake.at else span
            also = _other_types(operator, mistake, spans)
            return self.error(
                mistake.code,
                where,
                mistake.message,
                *mistake.help,
                label=mistake.label,
                also=also,
                place=place,
            )
        for guard in typing.guards:
            where = spans.get(guard.at, span) if guard.at else span
            self.error(guard.code, where, guard.message, guard.help, place=place)
        results = self.recorder.step(
            path, operator, typing, tuple(t.value for t in inputs), ports, span, place
        )
        return results[0] if len(results) == 1 else Tensors(results)

    def infer(self, operator: Operator, *inputs: TensorType) -> Typing:
        """The type rule's answer. Asked the same again, as the layers of a repeat do, it is the same object.

        Raises:
            Mistake: the type rule's.
        """
        key = (id(operator), *map(id, inputs))
        if key not in self._typings:
            typing = operator.infer(*inputs)
            outputs = tuple(self._types.setdefault((type_, type_.layout), type_) for type_ in typing.outputs)
            self._typings[key] = operator, inputs, replace(typing, outputs=outputs)
        return self._typings[key][-1]

    def _shared(self, operator: Operator) -> Operator:
        """One object for all arithmetic that says the same of the same types; other steps share by their text."""
        if type(operator).kind != "expression":
            return operator
        fields = vars(operator).values()
        key = (
            type(operator),
            *((Port, id(field.type)) if isinstance(field, Port) else field for field in fields),
        )
        return self._arithmetics.setdefault(key, operator)

    def describe(self, meaning: Meaning) -> str:
        """A meaning in a sentence: `a stage`, `the word causal`, `a tensor float[3]`."""
        match meaning:
            case Constant(value=bool() as value):
                return f"`{show_number(value)}`"
            case Constant(value=str() as value):
                return f"the word `{value}`"
            case Constant(value=tuple()):
                return "a list"
            case Constant(value=Dim() as value):
                return show_number(value)
            case Constant(value=value):
                return f"the number {show_number(value)}"
            case Tensor():
                return f"a tensor {meaning.type}"
            case LearnMeaning():
                return f"a learned tensor {meaning.type}"
            case Tensors():
                return f"a step with {len(meaning.items)} results"
            case StageMeaning():
                return "a stage"
            case BlockMeaning():
                return "a block"
        return "nothing"


def make(word: str, **fields: Any) -> Operator:
    """The operator of that word, with these arguments."""
    return operators()[word](**fields)


def _instead(value: Meaning) -> list[str]:
    """How something that is no number or tensor would take part in arithmetic."""
    if isinstance(value, StageMeaning):
        return [f"apply it to a value, in parentheses: `(value -> {value.name})`"]
    if isinstance(value, BlockMeaning):
        return [f"apply it to a value, in parentheses: `(value -> {value.block.name}(…))`"]
    if isinstance(value, Constant) and isinstance(value.value, tuple):
        return ["take an item of it: `name[0]`, or `name[layer]` inside a repeat"]
    return []


def _other_types(operator: Operator, mistake: Mistake, spans: dict[str, Span]) -> list[tuple[Span, str]]:
    """Where an operand or a term of a loss is to blame for its type: the types of the others."""
    if mistake.at is None or type(operator).kind not in ("expression", "objective"):
        return []
    blamed = getattr(operator, mistake.at, None)
    if not isinstance(blamed, Port | Weight) or mistake.label != str(blamed.type):
        return []
    others = ((name, getattr(operator, name)) for name in spans if name != mistake.at)
    return [(spans[name], str(value.type)) for name, value in others if isinstance(value, Port | Weight)]
