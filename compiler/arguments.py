"""From what is written between a step's parentheses to the fields of its operator.

What an argument accepts follows from its field's annotation; a bare word is read by it: `norm = rms` is a form of norm,
`mask = kept` a tensor, `select(class_token)` the name of a segment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from pydantic import BaseModel, ValidationError

from crate_dsl.compiler import not_yet
from crate_dsl.compiler.accepts import Accepts, accepted, required, spelled
from crate_dsl.compiler.exact import divisors, show_number
from crate_dsl.compiler.graph import Value
from crate_dsl.compiler.masks import Rule
from crate_dsl.compiler.meanings import (
    Constant,
    LearnMeaning,
    Meaning,
    Namespace,
    Poison,
    StageMeaning,
    Tensor,
    one_line,
)
from crate_dsl.compiler.operators import Form, Inside, Learned, Port, Tokens, Weight, Whole
from crate_dsl.compiler.reserved import is_step
from crate_dsl.compiler.rules import NoRule, RuleReader
from crate_dsl.language import syntax
from crate_dsl.language.diagnostics import did_you_mean
from crate_dsl.language.source import Span


@dataclass(slots=True)
class Read:
    """The arguments of one use of a step: its fields' values, the tensors among them, and where each is written."""

    values: dict[str, Any] = field(default_factory=dict)
    ports: dict[str, Value] = field(default_factory=dict)
    spans: dict[str, Span] = field(default_factory=dict)


#: The largest whole number that an argument or a dimension may be: shapes hold no larger ones everywhere.
LARGEST = 2**31 - 1

#: What is read like an argument and is none.
_SUBJECTS = {
    ("learn", "initial"): "the initial value of a `learn`",
    ("input", "draw"): "the draw of an input",
}


def subject(word: str, name: str, short: bool = False) -> str:
    """An argument at the beginning of a sentence."""
    own = f"`{spelled(name)}`"
    return _SUBJECTS.get((word, name), own if short else f"{own} of `{word}`")


class Broken(Exception):
    """An argument was wrong, and has been reported."""


@dataclass(frozen=True, slots=True)
class ArgumentReader:
    """Reads arguments in one place of a spec. `evaluate` gives an expression's meaning; `error` reports a mistake."""

    names: Namespace
    evaluate: Callable[[syntax.Expression], Meaning]
    error: Callable[..., Poison]

    def read(
        self, word: str, model: type[BaseModel], given: tuple[syntax.Argument, ...], span: Span
    ) -> Read | None:
        """The fields of `model` from arguments as written, every mistake reported; None if there was one."""
        fields = accepted(model)
        result = Read()
        sound = True
        for position, argument in enumerate(given):
            name = self._name_of(word, position, argument, fields, result.spans, given)
            if name is None:
                sound = False
                continue
            result.spans[name] = argument.value.span
            try:
                value, port = self.value(word, name, fields[name], argument.value)
            except Broken:
                sound = False
                continue
            result.values[name] = value
            if port is not None:
                result.ports[name] = port
        missing = [name for name in required(model) if name not in result.spans]
        if missing and sound:
            names = " and ".join(f"`{spelled(name)}`" for name in missing)
            self.error("E0302", span, f"`{word}` needs {names}", f"{word}({', '.join(_signature(model))})")
            sound = False
        if not sound:
            self.construct(word, model, result, span)  # for numbers out of range
        return result if sound else None

    def _name_of(
        self,
        word: str,
        position: int,
        argument: syntax.Argument,
        fields: Iterable[str],
        taken: Mapping[str, Span],
        given: tuple[syntax.Argument, ...],
    ) -> str | None:
        """Which field this argument is; None after reporting that it is none."""
        by_spelling = {spelled(name): name for name in fields}
        order = list(by_spelling)
        if argument.name is None:
            if any(earlier.name is not None for earlier in given[:position]):
                report_positional(self.error, argument)
                return None
            if position >= len(order):
                report_too_many(self.error, word, argument, order, order)
                return None
            spelling = order[position]
        else:
            spelling = argument.name.text
            if (word, spelling) in not_yet.ARGUMENTS:
                self.error("E0901", argument.name.span, f"`{spelling}` of `{word}` is not there yet")
                return None
            if spelling not in order:
                report_unknown(self.error, word, argument.name, order)
                return None
        name = by_spelling[spelling]
        if name in taken:
            also = [(taken[name], "first here")]
            self.error("E0308", argument.span, f"`{spelling}` of `{word}` is given twice", also=also)
            return None
        return name

    def value(
        self, word: str, name: str, accepts: Accepts, written: syntax.Expression
    ) -> tuple[Any, Value | None]:
        """One argument: the field's value and, where it is a tensor, the tensor. Raises `Broken` after reporting."""
        if isinstance(written, syntax.Parenthesis) and not isinstance(written.value, syntax.Pipe):
            return self.value(word, name, accepts, written.value)
        if isinstance(written, syntax.Name):
            chosen = self._word(word, name, accepts, written)
            if chosen is not None:
                return chosen, None
        if isinstance(written, syntax.Step) and written.body is None:
            if written.name.text in accepts.forms:
                return self._form(accepts.forms[written.name.text], written), None
            self._refuse_not_yet(word, name, written.name.text, written.span)
            if (
                accepts.forms
                and self.names.find(written.name.text) is None
                and not is_step(written.name.text)
            ):
                raise self._no_choice(word, name, accepts, written.name.text, written.name.span)
        if isinstance(written, syntax.Learn) and Learned in accepts.kinds:
            return self._learned(written), None
        if isinstance(written, syntax.List) and accepts.items is not None:
            return tuple(self.value(word, name, accepts.items, item)[0] for item in written.items), None
        if isinstance(written, syntax.String) and str in accepts.kinds:
            return written.value, None
        if isinstance(written, (syntax.Learn, syntax.String, syntax.List)):
            raise self._wrong(word, name, accepts, written, written.span.text)
        if Rule in accepts.kinds and isinstance(
            written, syntax.Comparison | syntax.And | syntax.Or | syntax.Attribute
        ):
            try:
                return RuleReader(self.evaluate, self.error).rule(written)
            except NoRule:
                raise Broken from None
        return self._evaluated(word, name, accepts, written)

    def _word(self, word: str, name: str, accepts: Accepts, written: syntax.Name) -> Any:
        text = written.text
        self._refuse_not_yet(word, name, text, written.span)
        if text in accepts.words:
            return text
        if text in accepts.forms:
            form = accepts.forms[text]
            missing = required(form)
            if missing:
                help = f"{text}({', '.join(_signature(form))})"
                self.error("E0302", written.span, f"`{text}` needs `{missing[0]}`", help)
                raise Broken
            return form()
        if bool in accepts.kinds and text in ("true", "false"):
            return text == "true"
        definition = self.names.find(text)
        if Tokens in accepts.kinds:
            if definition:
                definition.used = True
            return Tokens(text)
        if (
            definition is None
            and accepts.choices
            and not self.names.hidden(text)
            and not self.names.upcoming(text)
        ):
            raise self._no_choice(word, name, accepts, text, written.span)
        return None

    def _no_choice(self, word: str, name: str, accepts: Accepts, text: str, span: Span) -> Broken:
        """A word that is none of those that may stand here."""
        values = [d.name for d in self.names.visible()] if accepts.kinds & {Port, Weight, float, int} else []
        near = did_you_mean(text, [*accepts.choices, *values])
        help = [f"did you mean `{near}`?"] if near else []
        self.error("E0307", span, f"{subject(word, name)} is {accepts.describe()}, not `{text}`", *help)
        return Broken()

    def _refuse_not_yet(self, word: str, name: str, text: str, span: Span) -> None:
        if (word, name, text) in not_yet.WORDS:
            self.error("E0901", span, f"`{spelled(name)} = {text}` of `{word}` is not there yet")
            raise Broken

    def _form(self, form: type[Form], written: syntax.Step) -> Form:
        read = self.read(form.word, form, written.arguments or (), written.span)
        if read is None:
            raise Broken
        made = self.construct(form.word, form, read, written.span)
        if made is None:
            raise Broken
        assert isinstance(made, Form)
        return made

    def _learned(self, written: syntax.Learn) -> Learned:
        read = self.read("learn", _LearnArguments, written.arguments, written.span)
        made = read and self.construct("learn", _LearnArguments, read, written.span)
        if not isinstance(made, _LearnArguments):
            raise Broken
        return Learned(made.initial, made.shape)

    def _evaluated(
        self, word: str, name: str, accepts: Accepts, written: syntax.Expression
    ) -> tuple[Any, Value | None]:
        meaning = self.evaluate(written)
        if isinstance(meaning, Poison):
            raise Broken
        if isinstance(meaning, Tensor) and Port in accepts.kinds:
            return Port(meaning.type), meaning.value
        if isinstance(meaning, LearnMeaning) and Weight in accepts.kinds:
            return Weight(meaning.path, meaning.type), None
        if isinstance(meaning, StageMeaning) and Inside in accepts.kinds:
            return Inside(meaning.name, meaning.path), None
        if isinstance(meaning, Constant):
            return self._plain(word, name, accepts, written, meaning.value), None
        raise self._wrong(word, name, accepts, written, _kind_of(meaning))

    def _plain(self, word: str, name: str, accepts: Accepts, written: syntax.Expression, value: Any) -> Any:
        if isinstance(value, str):
            if value in accepts.words:
                return value
            if value in accepts.forms and not required(accepts.forms[value]):
                return accepts.forms[value]()
        elif isinstance(value, bool):
            if bool in accepts.kinds:
                return value
        elif isinstance(value, tuple) and accepts.items is not None:
            return tuple(self._plain(word, name, accepts.items, written, item) for item in value)
        elif isinstance(value, Fraction):
            if int in accepts.kinds and value.denominator == 1:
                if abs(value) > LARGEST:
                    message = (
                        f"{subject(word, name)} must be at most {LARGEST:,}, but is {show_number(value)}"
                    )
                    self.error("E0306", written.span, message)
                    raise Broken
                return int(value)
            if float in accepts.kinds:
                return self._float(written, value)
            if int in accepts.kinds:
                self.not_whole(subject(word, name, short=True), written, value)
                raise Broken
        raise self._wrong(word, name, accepts, written, show_number(value))

    def _float(self, written: syntax.Expression, value: Fraction) -> float:
        try:
            return float(value)
        except OverflowError:
            self.error(
                "E0306", written.span, f"{show_number(value)} is larger than any floating-point number"
            )
            raise Broken from None

    def not_whole(self, what: str, written: syntax.Expression, value: Fraction) -> None:
        """Report a number that should be whole, with the values that made it so."""
        shown = self.names.substituted(written.span.text)
        text = one_line(written.span.text)
        chain = " = ".join(dict.fromkeys([text, shown, show_number(value)]))
        found = chain if " = " in chain else f"is {chain}"
        label = shown if shown != text else ""
        message = f"{what} must be a whole number, but {found}"
        self.error("E0304", written.span, message, *self._divisor_help(written), label=label)

    def _divisor_help(self, written: syntax.Expression) -> list[str]:
        """For `a / b` with b a name: the values of b that divide a."""
        if not (
            isinstance(written, syntax.Product) and len(written.rest) == 1 and written.rest[0].operator == "/"
        ):
            return []
        below = written.rest[0].value
        above = self.evaluate(written.first)
        if (
            isinstance(below, syntax.Name)
            and isinstance(above, Constant)
            and isinstance(above.value, Fraction)
        ):
            whole = divisors(int(above.value)) if above.value.denominator == 1 else []
            shown = [str(k) for k in whole[:12]] + (["…"] if len(whole) > 12 else [])
            return [f"`{below.text}` that divide {above.value}: {', '.join(shown)}"] if whole else []
        return []

    def _wrong(
        self, word: str, name: str, accepts: Accepts, written: syntax.Expression, found: str
    ) -> Broken:
        shown = found if len(found) <= 60 else found[:57] + "…"
        self.error("E0307", written.span, f"{subject(word, name)} is {accepts.describe()}, not {shown}")
        return Broken()

    def construct(self, word: str, model: type[BaseModel], read: Read, span: Span) -> BaseModel | None:
        """The operator, form or recipe, its ranges checked; None after reporting what is out of range."""
        try:
            return model(**read.values)
        except ValidationError as problem:
            by_name: dict[str, list[Any]] = {}
            for item in problem.errors():
                if item["loc"][0] in read.values:
                    by_name.setdefault(str(item["loc"][0]), []).append(item)
            for name, items in by_name.items():
                value = read.values.get(name)
                message = f"{subject(word, name)} must be {_range(items)}, but is {_shown(value)}"
                self.error("E0306", read.spans.get(name, span), message)
            return None


# ------------------------------------------------------------------ arguments that are none


def report_positional(error: Callable[..., Poison], argument: syntax.Argument) -> None:
    """An argument without a name after one with a name."""
    message = "an argument without a name follows one with a name"
    error("E0335", argument.span, message, "put it first, or give its name: `name = value`")


def report_too_many(
    error: Callable[..., Poison], word: str, argument: syntax.Argument, order: list[str], known: list[str]
) -> None:
    """An argument without a name, beyond those that can be given so."""
    if not known:
        error("E0303", argument.span, f"`{word}` takes no arguments")
    elif not order:
        error("E0303", argument.span, f"the arguments of `{word}` have names", f"{word}({known[0]} = …)")
    else:
        count = f"at most {len(order)} arguments" if len(order) != 1 else "one argument"
        help = f"{'they are' if len(order) != 1 else 'it is'} {', '.join(order)}"
        error("E0303", argument.span, f"`{word}` takes {count}", help)


def report_unknown(
    error: Callable[..., Poison], word: str, name: syntax.Identifier, known: list[str]
) -> None:
    """An argument that a step, block or stage does not have."""
    near = did_you_mean(name.text, known)
    if near:
        help = f"did you mean `{near}`?"
    else:
        help = f"its arguments are {', '.join(known)}" if known else "it takes none"
    error("E0301", name.span, f"`{word}` has no argument `{name}`", help)


class _LearnArguments(BaseModel):
    """`learn(initial, shape = […])`."""

    initial: float = 0.0
    shape: tuple[Whole, ...] = ()


def _kind_of(meaning: Meaning) -> str:
    if isinstance(meaning, Tensor):
        return f"a tensor {meaning.type}"
    if isinstance(meaning, LearnMeaning):
        return f"a learn {meaning.type}"
    return {"StageMeaning": "a stage", "BlockMeaning": "a block", "Tensors": "several tensors"}[
        type(meaning).__name__
    ]


#: What pydantic can find wrong with a value of the right kind.
_RANGES = {
    "greater_than": "above {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "below {lt}",
    "less_than_equal": "at most {le}",
    "too_short": "a list of at least {min_length}",
    "too_long": "a list of at most {max_length}",
}


def _range(items: list[Any]) -> str:
    """What pydantic wanted, in words. Unions report every member: the first that names a bound speaks."""
    for item in items:
        if item["type"] in _RANGES:
            own = "" if len(item["loc"]) == 1 or not isinstance(item["loc"][-1], int) else "numbers, each "
            bounds = {key: _shown(bound) for key, bound in item.get("ctx", {}).items()}
            return own + _RANGES[item["type"]].format(**bounds)
    if all(item["type"] == "missing" for item in items):
        return f"a list of {max(int(item['loc'][-1]) for item in items) + 1}"
    return str(items[0]["msg"]).lower()


def _shown(value: Any) -> str:
    """A field's value as a message shows it."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(_shown, value))}]"
    if isinstance(value, float):
        return repr(value).removesuffix(".0")
    return show_number(Fraction(value)) if type(value) is int else show_number(value)


def _signature(model: type[BaseModel]) -> list[str]:
    """The arguments as help shows them: required ones bare, one optional one as a hint."""
    return [
        spelled(name) if info.is_required() else f"{spelled(name)} = …"
        for name, info in list(model.model_fields.items())[:4]
    ]
