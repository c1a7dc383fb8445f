"""What an expression means: exact numbers, tensors, and the arithmetic that joins them."""

from __future__ import annotations

from fractions import Fraction
from typing import Any, ClassVar

from crate_dsl.compiler import not_yet
from crate_dsl.compiler.exact import ArithmeticProblem, combine, show_number
from crate_dsl.compiler.meanings import POISON, Constant, LearnMeaning, Meaning, Poison, Tensor, Tensors
from crate_dsl.compiler.operators import Mistake, Operator, Port, Weight
from crate_dsl.compiler.record import Place, Recorder
from crate_dsl.compiler.steps import operators
from crate_dsl.compiler.types import Dim
from crate_dsl.language import syntax
from crate_dsl.language.diagnostics import Diagnostic, Label, Report, did_you_mean
from crate_dsl.language.source import Span

_OPERATOR_WORDS = {"+": "add", "-": "subtract", "*": "multiply", "/": "divide"}


class Expressions:
    """Evaluates expressions; pipelines and steps are the business of the class that builds on this one."""

    #: Names that are defined further down in the model: using one early is its own mistake.
    later: dict[str, Span]
    _kinds: ClassVar[dict[type, str]] = {}

    def __init__(self, recorder: Recorder, report: Report) -> None:
        self.recorder = recorder
        self.report = report
        self.later = {}

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
                uses=place.uses if place else (),
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
            case syntax.Attribute() | syntax.Comparison() | syntax.And() | syntax.Or():
                return self.error(
                    "E0309", written.span, "a comparison has no value of its own: it may stand in `mask = …` alone", place=place
                )
            case syntax.Learn():
                return self.error(
                    "E0334",
                    written.span,
                    "`learn(…)` is an argument of a step, which then owns the number",
                    "write a statement, `learn s : float = 1.0`, and use `s` here",
                    place=place,
                )
        raise AssertionError(f"an expression of an unknown kind: {written!r}")

    def pipe(self, written: syntax.Pipe, place: Place) -> Meaning:
        raise NotImplementedError

    def call(self, written: syntax.Step, place: Place) -> Meaning:
        raise NotImplementedError

    def name(self, written: syntax.Name, place: Place) -> Meaning:
        text = written.text
        definition = place.names.find(text)
        if definition is not None:
            definition.used = True
            if definition.role == "target" and not place.objective:
                return self.error(
                    "E0602",
                    written.span,
                    f"`{text}` is a target: the objective alone reads it",
                    f"a value that conditions the network is an input: `input {text} : …`",
                    also=[(definition.span, "declared here")] if definition.span else [],
                    place=place,
                )
            return definition.meaning
        if text in ("true", "false"):
            return Constant(text == "true")
        return self.unknown(text, written.span, place)

    def unknown(self, text: str, span: Span, place: Place) -> Poison:
        """Report a name that means nothing here, as what it most likely is."""
        hidden = place.names.hidden(text)
        if hidden is not None:
            also = [(hidden.span, "defined here")] if hidden.span else []
            if hidden.role == "layer":
                return self.error("E0205", span, "`layer` is not seen inside this body", "hand it over as an argument", place=place)
            return self.error(
                "E0205",
                span,
                f"`{text}` is not seen inside this body: it must be handed over",
                f"declare `input {text}` in the body, and pass `{text} = {text}` where it is used",
                also=also,
                place=place,
            )
        if text in self.later:
            return self.error(
                "E0207", span, f"`{text}` is used before it is defined", also=[(self.later[text], "defined here")], place=place
            )
        if text in operators() or text in not_yet.STEPS or text in ("repeat", "residual", "copy", "frozen"):
            return self.error("E0211", span, f"`{text}` is a step, and a value is wanted here", f"pipe a value into it: `value -> {text}`", place=place)
        near = did_you_mean(text, [d.name for d in place.names.visible()])
        return self.error("E0201", span, f"unknown name `{text}`", *([f"did you mean `{near}`?"] if near else []), place=place)

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
            return self._arithmetic("negative", {"value": value}, {"value": written.value.span}, written.span, place)
        return self.combine("-", Constant(Fraction(0)), written.span, value, written.value.span, place)

    def combine(self, operator: Any, left: Meaning, left_span: Span, right: Meaning, right_span: Span, place: Place) -> Meaning:
        """`left operator right`, for numbers and for tensors."""
        if isinstance(left, Poison) or isinstance(right, Poison):
            return POISON
        span = left_span.to(right_span)
        numbers: list[Any] = []
        for value, where in ((left, left_span), (right, right_span)):
            if isinstance(value, Constant) and isinstance(value.value, Fraction | Dim) and not isinstance(value.value, bool):
                numbers.append(value.value)
            elif not isinstance(value, Tensor | LearnMeaning):
                return self.error("E0332", where, f"{self.describe(value)} has no part in arithmetic", place=place)
        if len(numbers) == 2:
            try:
                return Constant(combine(operator, *numbers))
            except ArithmeticProblem as problem:
                return self.error("E0331", span, f"cannot compute this: {problem}", place=place)
        if any(isinstance(number, Dim) for number in numbers):
            return self.error("E0332", span, "a length known at run time has no part in arithmetic with tensors", place=place)
        return self._arithmetic(
            _OPERATOR_WORDS[operator], {"left": left, "right": right}, {"left": left_span, "right": right_span}, span, place
        )

    def _arithmetic(self, word: str, operands: dict[str, Meaning], spans: dict[str, Span], span: Span, place: Place) -> Meaning:
        fields: dict[str, Any] = {}
        ports = {}
        for name, operand in operands.items():
            if isinstance(operand, Tensor):
                fields[name], ports[name] = Port(operand.type), operand.value
            elif isinstance(operand, LearnMeaning):
                fields[name] = Weight(operand.path, operand.type)
            else:
                assert isinstance(operand, Constant) and isinstance(operand.value, Fraction)
                fields[name] = float(operand.value)
        return self.record(operators()[word](**fields), (), ports, spans, span, place)

    def _list(self, written: syntax.List, place: Place) -> Meaning:
        items = [self.expression(item, place) for item in written.items]
        if any(isinstance(item, Poison) for item in items):
            return POISON
        for item, text in zip(items, written.items, strict=True):
            if not isinstance(item, Constant):
                return self.error("E0332", text.span, f"{self.describe(item)} has no place in a list", place=place)
        return Constant(tuple(item.value for item in items if isinstance(item, Constant)))

    def _index(self, written: syntax.Index, place: Place) -> Meaning:
        value = self.name(syntax.Name(span=written.value.span, text=written.value.text), place)
        index = self.expression(written.index, place)
        if isinstance(value, Poison) or isinstance(index, Poison):
            return POISON
        if not isinstance(index, Constant) or not isinstance(index.value, Fraction) or index.value.denominator != 1:
            return self.error("E0330", written.index.span, "an index is a whole number, counted from 0", place=place)
        at = int(index.value)
        if isinstance(value, Tensor):
            operator = operators()["item"](value=Port(value.type), index=at)
            spans = {"value": written.value.span, "index": written.index.span}
            return self.record(operator, (), {"value": value.value}, spans, written.span, place)
        if not isinstance(value, Constant) or not isinstance(value.value, tuple):
            return self.error("E0330", written.span, f"{self.describe(value)} has no items", place=place)
        if not 0 <= at < len(value.value):
            return self.error(
                "E0330", written.index.span, f"`{written.value}` has {len(value.value)} items, from 0, and no item {at}", label=str(at), place=place
            )
        return Constant(value.value[at])

    # -------------------------------------------------------------- recording

    def record(
        self, operator: Operator, inputs: tuple[Tensor, ...], ports: dict[str, Any], spans: dict[str, Span], span: Span, place: Place,
        path: str | None = None,
    ) -> Meaning:
        """Type one use of a step and enter it into the graph; mistakes of its type rule are placed and reported."""
        path = path or place.owner.path_of(operator.word)
        if place.dry:
            return POISON
        try:
            typing = operator.infer(*(tensor.type for tensor in inputs))
        except Mistake as mistake:
            where = spans.get(mistake.at, span) if mistake.at else span
            also = [(spans["left"], str(_type_of(operator, "left")))] if mistake.at == "right" and "left" in spans else []
            return self.error(mistake.code, where, mistake.message, *mistake.help, label=mistake.label, also=also, place=place)
        results = self.recorder.step(path, operator, typing, tuple(t.value for t in inputs), ports, span, place)
        return results[0] if len(results) == 1 else Tensors(results)

    def describe(self, meaning: Meaning) -> str:
        """A meaning in a sentence: `a stage`, `the word causal`, `a tensor float[3]`."""
        match meaning:
            case Constant(value=bool() as value):
                return f"`{show_number(value)}`"
            case Constant(value=str() as value):
                return f"the word `{value}`"
            case Constant(value=tuple()):
                return "a list"
            case Constant(value=value):
                return f"the number {show_number(value)}"
            case Tensor():
                return f"a tensor {meaning.type}"
            case LearnMeaning():
                return f"a learn {meaning.type}"
            case Tensors():
                return f"a step with {len(meaning.items)} results"
        return {"StageMeaning": "a stage", "BlockMeaning": "a block"}[type(meaning).__name__]


def _type_of(operator: Operator, name: str) -> str:
    value = getattr(operator, name, None)
    return str(value.type) if isinstance(value, Port | Weight) else show_number(Fraction(value)) if value is not None else ""
