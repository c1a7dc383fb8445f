"""The statements that models and graph bodies have in common: names, types, learns, stages, bindings, bodies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from typing import ClassVar, cast

from crate_dsl.compiler import reserved
from crate_dsl.compiler.accepts import accepted
from crate_dsl.compiler.arguments import LARGEST, Broken
from crate_dsl.compiler.bodies import is_broken
from crate_dsl.compiler.exact import show_number
from crate_dsl.compiler.meanings import (
    POISON,
    SEEN_BY_GRAPH_BODIES,
    Constant,
    Handed,
    LearnMeaning,
    Meaning,
    Namespace,
    Poison,
    Role,
    StageMeaning,
    Tensor,
    Tensors,
    words,
)
from crate_dsl.compiler.operators import Constant as ConstantInitial
from crate_dsl.compiler.operators import Form, Initial, Normal, Slot
from crate_dsl.compiler.pairing import Pairing
from crate_dsl.compiler.record import Owner, Place
from crate_dsl.compiler.types import Dim, Kind, Symbol, TensorType
from crate_dsl.language import syntax
from crate_dsl.language.diagnostics import did_you_mean
from crate_dsl.language.source import Span

#: What a `learn` without an initial value starts from.
USUAL_INITIAL = Normal(std=0.02)


class _LearnSource(Form):
    """The accepted initial values of a `learn`, read as an argument."""

    word: ClassVar[str] = "learn"
    initial: Initial | float


class Statements(Pairing):
    """Reads statements."""

    # -------------------------------------------------------------- names

    def define(self, identifier: syntax.Identifier, role: Role, meaning: Meaning, place: Place) -> None:
        """Enter a name. One namespace, no shadowing, not of steps either."""
        name, span = identifier.text, identifier.span
        known = place.names.find(name)
        if known is not None and known.role != "layer":
            also = [(known.span, "first here")] if known.span else []
            help = [f"`{name}` is seen from there on: write it without `<= …`"] if role == "length" else []
            self.error("E0203", span, f"`{name}` is defined twice", *help, also=also, place=place)
            # Which of the two is meant from here on, nobody can tell.
            place.names.define(name, role, POISON, known.span or span)
            return
        if name == "layer":
            self.error(
                "E0204", span, "`layer` counts the layers of a repeat, and cannot be a name", place=place
            )
        elif reserved.is_step(name):
            message = f"`{name}` is a step of the language, and cannot be a name"
            self.error("E0204", span, message, place=place)
        elif role in ("stage", "binding", "learn", "input", "target") and reserved.is_python(name):
            what = "begin with `_`" if name.startswith("_") else f"are called `{name}`"
            message = f"names that {what} are Python's and torch's own: choose another one"
            self.error("E0206", span, message, place=place)
        place.names.define(name, role, meaning, span)

    # -------------------------------------------------------------- statements

    def statement(self, statement: syntax.Statement, place: Place) -> None:
        """A statement that models and graph bodies have in common."""
        match statement:
            case syntax.LearnStatement():
                self.learn(statement, place)
            case syntax.Stage():
                self.stage(statement, place)
            case syntax.Binding():
                self.binding(statement, place)
            case syntax.Broken():
                place.names.doubtful |= words(statement.span.text)
                for name in statement.names:
                    if place.names.find(name.text) is None:
                        place.names.define(name.text, "binding", POISON, name.span)
            case _:
                raise AssertionError(f"the parser lets a {type(statement).__name__} stand in a body")

    def learn(self, statement: syntax.LearnStatement, place: Place) -> None:
        path = place.owner.path_of(statement.name.text)
        type_ = self.type(statement.type, place, "learn")
        initial: Initial | None = USUAL_INITIAL
        if statement.initial is not None:
            initial = self._initial(statement.initial, place)
        meaning: Meaning = POISON
        if type_ is not None and initial is not None:
            shape = tuple(dim.static for dim in type_.shape)
            if type_.kind != "float" or None in shape:
                message = f"a `learn` is a float tensor of a known shape, not {type_}"
                self.error("E0464", statement.type.span, message, place=place)
            else:
                if not place.dry and place.names.find(statement.name.text) is None:
                    self.recorder.learn(path, Slot(cast(tuple[int, ...], shape), initial), place)
                meaning = LearnMeaning(path, type_)
        self.define(statement.name, "learn", meaning, place)

    def _initial(self, written: syntax.Expression, place: Place) -> Initial | None:
        try:
            accepts = accepted(_LearnSource)["initial"]
            value, _ = self.reader(place).value("learn", "initial", accepts, written)
        except Broken:
            return None
        return ConstantInitial(value=value) if isinstance(value, float | int) else value

    def stage(self, statement: syntax.Stage, place: Place) -> None:
        name, body = statement.name.text, statement.body
        meaning: Meaning = POISON
        if not isinstance(body, syntax.Chain) or not self._starts_with_value(name, body, place):
            meaning = self._stage_of(name, statement, place)
        self.define(statement.name, "stage", meaning, place)

    def _stage_of(self, name: str, statement: syntax.Stage, place: Place) -> StageMeaning | Poison:
        path = place.owner.path_of(name)
        body, names = statement.body, Namespace(place.names, SEEN_BY_GRAPH_BODIES)
        only = body.steps[0] if isinstance(body, syntax.Chain) and len(body.steps) == 1 else None
        if only is not None and only.name.text in ("copy", "ema"):
            derived = self.again if only.name.text == "copy" else self.slow_copy
            return derived(only, name, path, statement.name.span, place) or POISON
        meaning = StageMeaning(name, path, body, names, statement.name.span)
        # Read once without a value: what is wrong with the stage's own words is found even where it is never used.
        self.use_stage(meaning, POISON, {}, statement.name.span, replace(place, dry=True))
        return meaning

    def _starts_with_value(self, name: str, body: syntax.Chain, place: Place) -> bool:
        """Whether a stage starts with a value; reported, if so."""
        first = body.steps[0]
        definition = place.names.find(first.name.text)
        if first.arguments is not None or first.body is not None or definition is None:
            return False
        if not isinstance(definition.meaning, Tensor | LearnMeaning | Constant):
            return False
        definition.used = True
        message = f"a stage starts with a step, but `{first.name}` is {self.describe(definition.meaning)}"
        help = f"to compute a value, write a binding: `{name} = {first.name} -> …`"
        self.error("E0502", first.span, message, help, place=place)
        return True

    def binding(self, statement: syntax.Binding, place: Place) -> None:
        names = statement.names
        owner = next((name.text for name in names if name.text != "_"), None)
        if owner is None:
            message = "`_` drops a result, and nothing is left of this binding"
            help = "leave it out, or give a name to one of its results"
            self.error("E0523", statement.span, message, help, place=place)
            return
        inner = replace(place, owner=Owner(place.owner.path_of(owner)))
        value = self._bound(statement, owner, self.expression(statement.value, inner), place)
        items: tuple[Meaning, ...] = (value,)
        if isinstance(value, Tensors):
            items = value.items
        elif isinstance(value, Poison):
            items = (POISON,) * len(names)
        if len(items) != len(names):
            have = "one result" if len(items) == 1 else f"{len(items)} results"
            count = "one name" if len(names) == 1 else f"{len(names)} names"
            message = f"{count} for {have}"
            self.error("E0503", names[0].span.to(names[-1].span), message, label=count, place=place)
            items = (POISON,) * len(names)
        for name, item in zip(names, items, strict=True):
            if name.text != "_":
                if isinstance(item, Tensor):
                    self.recorder.name(item.value, name.text)
                self.define(name, "binding", item, place)

    def _bound(
        self, statement: syntax.Binding, owner: str, value: Meaning, place: Place
    ) -> Tensor | Tensors | Poison:
        if isinstance(value, Tensor | Tensors | Poison):
            return value
        span = statement.value.span
        if isinstance(value, StageMeaning):
            message = f"a binding is a tensor, and `{value.name}` is a stage"
            lines = (f"apply it to a value: `{owner} = value -> {value.name}`",)
            return self.error("E0405", span, message, *lines, place=place)
        message = f"a binding is a tensor, not {self.describe(value)}"
        help_lines = []
        if isinstance(value, Constant) and not isinstance(value.value, Dim):
            help_lines = [f"a number, word or list with a name is a parameter: `model name({owner} = …)`"]
        return self.error("E0405", span, message, *help_lines, place=place)

    # -------------------------------------------------------------- types

    def type(self, written: syntax.Type, place: Place, what: str) -> TensorType | None:
        """A type as written; None after reporting."""
        kind = written.name.text
        arguments = written.arguments or ()
        classes: int | None = None
        sound = True
        if kind not in ("float", "index", "bool"):
            near = did_you_mean(kind, ("float", "index", "bool"))
            help = f"did you mean `{near}`?" if near else "types are float, index and bool"
            self.error("E0461", written.name.span, f"unknown type `{kind}`", help, place=place)
            sound = False
        elif kind == "index" and (len(arguments) != 1 or arguments[0].name is not None):
            message, help = "an `index` needs its bound", "index(classes): whole numbers below `classes`"
            self.error("E0462", written.name.span, message, help, place=place)
            sound = False
        elif kind == "index":
            classes = self._whole(arguments[0].value, place, "the bound of an index")
            sound = classes is not None
        elif arguments:
            message, help = f"`{kind}` takes no arguments", f"a shape stands in brackets: `{kind}[3, 32]`"
            self.error("E0462", arguments[0].span.to(arguments[-1].span), message, help, place=place)
            sound = False
        dims = [self._dimension(dim, place, what) for dim in written.dimensions or ()]
        if not sound or any(dim is None for dim in dims):
            return None
        return TensorType(cast(Kind, kind), tuple(dim for dim in dims if dim is not None), classes)

    def _whole(self, written: syntax.Expression, place: Place, what: str) -> int | None:
        """A whole number of at least one; None after reporting."""
        value = self.expression(written, place)
        if isinstance(value, Poison):
            return None
        if not isinstance(value, Constant) or not isinstance(value.value, Fraction):
            message = f"{what} is a whole number, not {self.describe(value)}"
            self.error("E0463", written.span, message, place=place)
            return None
        number = value.value
        if number.denominator != 1:
            self.reader(place).not_whole(what, written, number)
            return None
        if not 1 <= number <= LARGEST:
            bound = "at least 1" if number < 1 else f"at most {LARGEST:,}"
            message = f"{what} must be {bound}, but is {show_number(number)}"
            self.error("E0306", written.span, message, place=place)
            return None
        return int(number)

    def _dimension(self, written: syntax.Expression, place: Place, what: str) -> Dim | None:
        if isinstance(written, syntax.Bounded):
            bound = self._whole(written.bound, place, "the bound of a length")
            if what != "input":
                message = f"only an input has a length of its own, and this is a {what}"
                self.error("E0463", written.span, message, place=place)
                return None
            dim = None if bound is None else Dim.symbolic(Symbol(written.name.text, bound))
            self.define(written.name, "length", POISON if dim is None else Constant(dim), place)
            return dim
        value = self.expression(written, place)
        if isinstance(value, Constant) and isinstance(value.value, Dim):
            return value.value
        whole = None if isinstance(value, Poison) else self._whole(written, place, "a dimension")
        return None if whole is None else Dim.of(whole)

    # -------------------------------------------------------------- graph bodies

    def graph_body(
        self, body: syntax.Graph, value: Meaning, named: Mapping[str, Handed], place: Place, span: Span
    ) -> Meaning:
        """Statements with inputs and one output; `place.names` are the body's own."""
        inputs = [s for s in body.statements if isinstance(s, syntax.Input)]
        outputs: list[syntax.Expression] = []
        results: list[Meaning] = []
        whole = not is_broken(body)
        place.names.later.update(definitions(body.statements))
        for statement in body.statements:
            if isinstance(statement, syntax.Input):
                piped = statement is inputs[0]
                handed = Handed(value, span) if piped else named.get(statement.name.text)
                self._body_input(statement, handed, place, span)
            elif isinstance(statement, syntax.Output):
                outputs.extend(statement.values)
                results.extend(self._body_output(written, place) for written in statement.values)
            else:
                self.statement(statement, place)
        if not inputs and whole:
            message, help = "this body has no input: what is piped in has no name", "input z"
            self.error("E0513", body.span, message, help, place=place)
        if not outputs and whole:
            message, help = "this body has no output: nothing comes out of it", "output y"
            self.error("E0513", body.span, message, help, place=place)
        if len(outputs) > 1:
            also = [(outputs[0].span, "the first")]
            message = "a body has one output, and this is a second one"
            self.error("E0513", outputs[1].span, message, also=also, place=place)
        if whole:
            self.unused(place.names, place)
        return results[0] if len(results) == 1 and inputs else POISON

    def _body_output(self, written: syntax.Expression, place: Place) -> Meaning:
        result = self.expression(written, place)
        if isinstance(result, Tensor | Poison):
            return result
        message = f"an output is a tensor, not {self.describe(result)}"
        return self.error("E0405", written.span, message, place=place)

    def _body_input(self, statement: syntax.Input, handed: Handed | None, place: Place, span: Span) -> None:
        """A body's input: what is handed over, held against the type that the body declares."""
        name = statement.name.text
        if statement.source is not None:
            message = "only a model's input is drawn: a body's input is handed over"
            self.error("E0514", statement.source.span, message, place=place)
        if handed is None:
            if not place.dry:
                message, also = f"`{name}` must be handed over", [(statement.name.span, "declared here")]
                self.error("E0508", span, message, f"{span.text}({name} = …)", also=also, place=place)
            handed = Handed(POISON, span)
        given, span = handed.meaning, handed.span
        if not isinstance(given, Tensor | Poison):
            message = f"`{name}` must be a tensor, not {self.describe(given)}"
            given = self.error("E0508", span, message, place=_around(place))
        if statement.type is not None:
            given = self._unify(statement, statement.type, given, place, span)
        self.define(statement.name, "input", given, place)

    def _unify(
        self, statement: syntax.Input, written: syntax.Type, given: Meaning, place: Place, span: Span
    ) -> Meaning:
        """Hold what is handed over against a declared type, whose lengths take the values of the caller's."""
        actual = given.type if isinstance(given, Tensor) else None
        dims = written.dimensions or ()
        sizes = actual.shape if actual is not None and actual.rank == len(dims) else None
        for position, dim in enumerate(dims):
            if isinstance(dim, syntax.Bounded):
                size = sizes[position] if sizes is not None else None
                bound = self._whole(dim.bound, place, "the bound of a length")
                if bound is not None and size is not None and size.bound > bound:
                    message = f"`{statement.name}` takes at most {bound} {dim.name}, but is given {actual}"
                    also = [(dim.span, "declared here")]
                    self.error("E0408", span, message, also=also, place=_around(place))
                    size = None
                length = POISON if size is None else Constant(size if size.symbol else Fraction(size.offset))
                self.define(dim.name, "length", length, place)
        plain = tuple(
            syntax.Name(span=d.span, text=d.name.text) if isinstance(d, syntax.Bounded) else d for d in dims
        )
        declared = self.type(written.model_copy(update={"dimensions": plain}), place, "input")
        if declared is None or actual is None:
            return POISON
        if declared != actual:
            message = f"`{statement.name}` takes {declared}, but is given {actual}"
            also = [(written.span, f"declared {declared}")]
            return self.error("E0408", span, message, label=str(actual), also=also, place=_around(place))
        return given


def _around(place: Place) -> Place:
    """Where a body is used, seen from inside it."""
    return replace(place, uses=place.uses[1:])


def definitions(statements: tuple[syntax.Statement, ...]) -> dict[str, Span]:
    """Where each name is defined first."""
    found: dict[str, Span] = {}
    for statement in statements:
        match statement:
            case syntax.Input() | syntax.LearnStatement() | syntax.Target() | syntax.Stage():
                found.setdefault(statement.name.text, statement.name.span)
            case syntax.Binding() | syntax.Broken():
                for name in statement.names:
                    found.setdefault(name.text, name.span)
    return found
