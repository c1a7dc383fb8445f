"""From the tree to the model graph: statements, in order, and what a model as a whole must be."""

from __future__ import annotations

import keyword
from collections.abc import Iterable, Mapping
from dataclasses import replace
from fractions import Fraction
from typing import Any, ClassVar, cast

from crate_dsl.compiler.apply import Steps
from crate_dsl.compiler.arguments import Broken, accepted
from crate_dsl.compiler.draws import Draw
from crate_dsl.compiler.graph import Entry, ModelGraph, Node, Value
from crate_dsl.compiler.meanings import (
    POISON,
    SEEN_BY_GRAPH_BODIES,
    Constant,
    LearnMeaning,
    Meaning,
    Namespace,
    Poison,
    Role,
    StageMeaning,
    Tensor,
    Tensors,
)
from crate_dsl.compiler.operators import Constant as ConstantInitial
from crate_dsl.compiler.operators import Form, Initial, Normal, Slot
from crate_dsl.compiler.recipe import Recipe
from crate_dsl.compiler.record import MAXIMUM_NODES, Owner, Place, Recorder, TooLarge
from crate_dsl.compiler.settings import resolve
from crate_dsl.compiler.steps import operators
from crate_dsl.compiler.types import Dim, Symbol, TensorType
from crate_dsl.language import syntax
from crate_dsl.language.diagnostics import Report
from crate_dsl.language.source import Source, Span

#: Names that an `nn.Module` has for itself: a submodule or weight so called would break it.
TAKEN_BY_TORCH = frozenset(
    "T add_module apply bfloat16 buffers call_super_init children compile cpu cuda double dump_patches eval extra_repr "
    "float forward get_buffer get_extra_state get_parameter get_submodule half ipu load_state_dict modules mtia "
    "named_buffers named_children named_modules named_parameters parameters register_backward_hook register_buffer "
    "register_forward_hook register_forward_pre_hook register_full_backward_hook register_full_backward_pre_hook "
    "register_load_state_dict_post_hook register_load_state_dict_pre_hook register_module register_parameter "
    "register_state_dict_post_hook register_state_dict_pre_hook requires_grad_ set_extra_state set_submodule "
    "share_memory state_dict to to_empty train training type xpu zero_grad graph objective layers draw accept".split()
    + keyword.kwlist
)


class _LearnSource(Form):
    """The accepted initial values of a `learn`, read as an argument."""

    word: ClassVar[str] = "learn"
    initial: Initial | float


class _InputSource(Form):
    word: ClassVar[str] = "input"
    source: Draw


class Elaborator(Steps):
    """Reads the statements of models and of graph bodies."""

    # -------------------------------------------------------------- names

    def define(self, identifier: syntax.Identifier, role: Role, meaning: Meaning, place: Place) -> None:
        """Enter a name. One namespace, no shadowing, not of steps either."""
        name, span = identifier.text, identifier.span
        known = place.names.find(name)
        if name in operators() or name in self.forms:
            self.error("E0204", span, f"`{name}` is a step of the language, and cannot be a name", place=place)
        elif known is not None:
            also = [(known.span, "first here")] if known.span else []
            self.error("E0203", span, f"`{name}` is defined twice", also=also, place=place)
            known.meaning = POISON if known.span is None or known.span.source is span.source else known.meaning
            return
        elif role in ("stage", "binding", "learn", "input", "target") and name in TAKEN_BY_TORCH:
            self.error("E0206", span, f"Python and torch have a `{name}` of their own: choose another name", place=place)
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
                for name in statement.names:
                    if place.names.find(name.text) is None:
                        place.names.define(name.text, "binding", POISON, name.span).used = True
            case _:
                kind = type(statement).__name__.removesuffix("Statement").lower()
                self.error("E0512", statement.span, f"`{kind}` belongs at the top of a model", place=place)

    def learn(self, statement: syntax.LearnStatement, place: Place) -> None:
        name = statement.name.text
        type_ = self.type(statement.type, place, "learn")
        path = f"{place.owner.path}.{name}" if place.owner.path else name
        initial: Initial | None = Normal(std=0.02)
        if statement.initial is not None:
            initial = self._initial(statement.initial, place)
        if type_ is None or initial is None:
            self.define(statement.name, "learn", POISON, place)
            return
        shape = tuple(dim.static for dim in type_.shape)
        if type_.kind != "float" or None in shape:
            self.error("E0464", statement.type.span, f"a `learn` is a float tensor of a known shape, not {type_}", place=place)
            self.define(statement.name, "learn", POISON, place)
            return
        if not place.dry:
            self.recorder.learn(path, Slot(cast(tuple[int, ...], shape), initial), type_)
        self.define(statement.name, "learn", LearnMeaning(path, type_), place)

    def _initial(self, written: syntax.Expression, place: Place) -> Initial | None:
        try:
            value, _ = self.reader(place).value("learn", "initial value", accepted(_LearnSource)["initial"], written)
        except Broken:
            return None
        return ConstantInitial(value=value) if isinstance(value, float | int) else value

    def stage(self, statement: syntax.Stage, place: Place) -> None:
        name = statement.name.text
        path = f"{place.owner.path}.{name}" if place.owner.path else name
        names = Namespace(place.names, SEEN_BY_GRAPH_BODIES)
        body = statement.body
        if isinstance(body, syntax.Chain):
            first = body.steps[0]
            if first.arguments is None and first.body is None and self._names_a_value(first, place):
                self.error(
                    "E0502", first.span, f"a stage starts with a step, but `{first.name}` is a value",
                    f"to compute a value, write a binding: `{name} = {first.name} -> …`", place=place,
                )  # fmt: skip
                self.define(statement.name, "stage", POISON, place)
                return
            if len(body.steps) == 1 and first.name.text == "copy":
                original = self.stage_argument(first, place)
                if original is None:
                    self.define(statement.name, "stage", POISON, place)
                    return
                body, names = original.body, original.names
        meaning = StageMeaning(name, path, body, names, statement.name.span)
        # Read once without a value: what is wrong with the stage's own words is found even where it is never used.
        self.use_stage(meaning, POISON, {}, statement.name.span, replace(place, uses=place.uses, dry=True))
        self.define(statement.name, "stage", meaning, place)

    def _names_a_value(self, step: syntax.Step, place: Place) -> bool:
        definition = place.names.find(step.name.text)
        return definition is not None and isinstance(definition.meaning, Tensor | LearnMeaning | Constant)

    def binding(self, statement: syntax.Binding, place: Place) -> None:
        names = statement.names
        owner = next((name.text for name in names if name.text != "_"), "_")
        path = f"{place.owner.path}.{owner}" if place.owner.path else owner
        value = self.expression(statement.value, replace(place, owner=Owner(path)))
        if not isinstance(value, Tensor | Tensors | Poison):
            hint = [f"a number with a name is a parameter of the model: `model name({owner} = …)`"] if isinstance(value, Constant) else []
            value = self.error(
                "E0405", statement.value.span, f"a binding is a tensor, not {self.describe(value)}", *hint, place=place
            )
        items: tuple[Meaning, ...]
        if isinstance(value, Poison):
            items = (POISON,) * len(names)
        else:
            items = value.items if isinstance(value, Tensors) else (value,)
        if len(items) != len(names):
            have = "one result" if len(items) == 1 else f"{len(items)} results"
            self.error("E0503", statement.value.span, f"{len(names)} names for {have}", place=place)
            items = (POISON,) * len(names)
        for name, item in zip(names, items, strict=True):
            if name.text != "_":
                self.define(name, "binding", item, place)
                if isinstance(item, Tensor):
                    self.recorder.name(item.value, name.text)

    # -------------------------------------------------------------- types

    def type(self, written: syntax.Type, place: Place, what: str) -> TensorType | None:
        """A type as written; None after reporting."""
        kind = written.name.text
        if kind not in ("float", "index", "bool"):
            self.error("E0461", written.name.span, f"unknown type `{kind}`", "types are float, index and bool", place=place)
            return None
        classes: int | None = None
        arguments = written.arguments or ()
        if kind == "index":
            if len(arguments) != 1:
                self.error("E0462", written.span, "an index needs its bound", "index(classes): whole numbers below `classes`", place=place)
                return None
            classes = self._whole(arguments[0].value, place, "the bound of an index", 1)
            if classes is None:
                return None
        elif arguments:
            self.error("E0462", written.span, f"`{kind}` takes no arguments; a shape stands in brackets: `{kind}[3, 32]`", place=place)
            return None
        dims = [self._dimension(dim, place, what) for dim in written.dimensions or ()]
        if any(dim is None for dim in dims):
            return None
        return TensorType(kind, tuple(dim for dim in dims if dim is not None), classes)  # type: ignore[arg-type]

    def _whole(self, written: syntax.Expression, place: Place, what: str, least: int) -> int | None:
        value = self.expression(written, place)
        if isinstance(value, Poison):
            return None
        if not isinstance(value, Constant) or not isinstance(value.value, Fraction):
            self.error("E0463", written.span, f"{what} is a whole number, not {self.describe(value)}", place=place)
            return None
        if value.value.denominator != 1:
            self.reader(place).not_whole(what, written, value.value)
            return None
        if value.value < least:
            self.error("E0306", written.span, f"{what} must be at least {least}, but is {value.value}", place=place)
            return None
        return int(value.value)

    def _dimension(self, written: syntax.Expression, place: Place, what: str) -> Dim | None:
        if isinstance(written, syntax.Bounded):
            if what != "input":
                self.error("E0463", written.span, f"a {what} has no length of its own: only an input has", place=place)
                return None
            bound = self._whole(written.bound, place, "the bound of a length", 1)
            if bound is None:
                return None
            dim = Dim.symbolic(Symbol(written.name.text, bound))
            self.define(written.name, "length", Constant(dim), place)
            place.names.own[written.name.text].used = True
            return dim
        value = self.expression(written, place)
        if isinstance(value, Constant) and isinstance(value.value, Dim):
            return value.value
        whole = None if isinstance(value, Poison) else self._whole(written, place, "a dimension", 1)
        return None if whole is None else Dim.of(whole)

    # -------------------------------------------------------------- graph bodies

    def graph_body(
        self, body: syntax.Graph, value: Meaning, named: dict[str, Meaning], names: Namespace, place: Place, span: Span
    ) -> Meaning:
        inner = replace(place, names=names)
        result: Meaning | None = None
        first = True
        for statement in body.statements:
            if isinstance(statement, syntax.Input):
                given = value if first else named.get(statement.name.text)
                first = False
                self._body_input(statement, given, inner, span)
            elif isinstance(statement, syntax.Output):
                if len(statement.values) > 1 or result is not None:
                    self.error("E0513", statement.span, "a body has one output", place=inner)
                    result = POISON
                    continue
                result = self.expression(statement.values[0], inner)
                if not isinstance(result, Tensor | Poison):
                    result = self.error("E0405", statement.values[0].span, f"an output is a tensor, not {self.describe(result)}", place=inner)
            else:
                self.statement(statement, inner)
        if first:
            self.error("E0513", body.span, "a body needs an input: the piped value", "input z", place=inner)
            result = POISON
        if result is None:
            result = self.error("E0513", body.span, "a body needs an output", "output z", place=inner)
        self.unused(names, inner)
        return result

    def _body_input(self, statement: syntax.Input, given: Meaning | None, place: Place, span: Span) -> None:
        """A body's input: what is handed over, held against the type that the body declares."""
        name = statement.name.text
        if statement.source is not None:
            self.error("E0514", statement.source.span, "only a model's input is drawn; a body's is handed over", place=place)
        if given is None:
            if not place.dry:
                self.error("E0508", span, f"`{name}` must be handed over", f"{name} = …", also=[(statement.name.span, "declared here")], place=place)
            given = POISON
        if not isinstance(given, Tensor | Poison):
            given = self.error("E0508", span, f"`{name}` must be a tensor, not {self.describe(given)}", place=place)
        if statement.type is not None:
            given = self._unify(statement, statement.type, given, place, span)
        self.define(statement.name, "input", given, place)

    def _unify(self, statement: syntax.Input, written: syntax.Type, given: Meaning, place: Place, span: Span) -> Meaning:
        """Hold what is handed over against a declared type, whose lengths take the values of the caller's."""
        actual = given.type if isinstance(given, Tensor) else None
        dims = written.dimensions or ()
        if actual is not None and len(dims) == actual.rank:
            for dim, size in zip(dims, actual.shape, strict=True):
                if isinstance(dim, syntax.Bounded):
                    bound = self._whole(dim.bound, place, "the bound of a length", 1)
                    if bound is not None and size.bound > bound:
                        return self.error(
                            "E0408", span, f"`{statement.name}` takes at most {bound} {dim.name}, but is given {actual}",
                            also=[(dim.span, "declared here")], place=place,
                        )  # fmt: skip
                    if place.names.find(dim.name.text) is None:
                        place.names.define(dim.name.text, "length", Constant(size if size.symbol else Fraction(size.offset)), dim.span).used = True
        else:
            for dim in dims:
                if isinstance(dim, syntax.Bounded) and place.names.find(dim.name.text) is None:
                    place.names.define(dim.name.text, "length", POISON, dim.span).used = True
        if actual is None:
            return POISON
        plain = tuple(syntax.Name(span=d.span, text=d.name.text) if isinstance(d, syntax.Bounded) else d for d in dims)
        declared = self.type(written.model_copy(update={"dimensions": plain}), place, "input")
        if declared is None:
            return POISON
        if declared != actual:
            return self.error(
                "E0408", span, f"`{statement.name}` takes {declared}, but is given {actual}", label=str(actual),
                also=[(written.span, f"declared {declared}")], place=place,
            )  # fmt: skip
        return given


class ModelElaborator(Elaborator):
    """Reads one model with its parameters in force."""

    def __init__(self, recorder: Recorder, report: Report) -> None:
        super().__init__(recorder, report)
        self._namespaces: dict[int, Namespace] = {}
        self.inputs: dict[str, Entry] = {}
        self.targets: dict[str, Entry] = {}
        self.outputs: dict[str, Value] = {}
        self.objective: Value | None = None
        self.train: Mapping[str, Any] = {}

    def unused(self, names: Namespace, place: Place) -> None:
        if not place.dry:
            self._namespaces[id(names)] = names

    def model(self, model: syntax.Model, names: Namespace) -> None:
        """Every statement of the model, in order."""
        scope = self.recorder.scope("", model.name.span)
        place = Place(Owner(""), scope, names)
        self._namespaces[id(names)] = names
        self.later = dict(_definitions(model))
        stated: dict[str, Span] = {}
        for statement in model.statements:
            for name, _ in _definitions_of(statement):
                self.later.pop(name, None)
            match statement:
                case syntax.Input():
                    self.input(statement, place)
                case syntax.Target():
                    self.target(statement, place)
                case syntax.Output():
                    self.output(statement, place)
                case syntax.Objective() | syntax.Train():
                    word = type(statement).__name__.lower()
                    if word in stated:
                        self.error("E0515", statement.span, f"a model has one `{word}`", also=[(stated[word], "first here")])
                    stated[word] = statement.span
                    if isinstance(statement, syntax.Objective):
                        self.objective_statement(statement, place)
                    else:
                        self.train_statement(statement, place)
                case syntax.Variant():
                    pass
                case _:
                    self.statement(statement, place)
        if not any(isinstance(statement, syntax.Output) for statement in model.statements) and not self.report.errors:
            self.error("E0601", model.name.span, f"`{model.name}` has no output", "output logits")
        if not self.report.errors:
            self._warn_unused()

    def input(self, statement: syntax.Input, place: Place) -> None:
        if statement.type is None:
            self.error("E0460", statement.span, f"`{statement.name}` needs a type: it may be left out only inside a body", f"input {statement.name} : float[3, 224, 224]")
            self.define(statement.name, "input", POISON, place)
            return
        type_ = self.type(statement.type, place, "input")
        source: Draw | None = None
        if statement.source is not None:
            try:
                source, _ = self.reader(place).value("input", "draw", accepted(_InputSource)["source"], statement.source)
            except Broken:
                type_ = None
        if type_ is None:
            self.define(statement.name, "input", POISON, place)
            return
        if source is not None and statement.source is not None:
            problem = source.check(type_)
            if problem is not None:
                self.error("E0465", statement.source.span, problem, label=str(type_))
        entry = Entry(statement.name.text, type_, statement.name.span, source)
        if place.names.find(entry.name) is None:
            self.inputs[entry.name] = entry
            self.define(statement.name, "input", self.recorder.entry(entry), place)
        else:
            self.define(statement.name, "input", POISON, place)

    def target(self, statement: syntax.Target, place: Place) -> None:
        type_ = self.type(statement.type, place, "target")
        if type_ is None or place.names.find(statement.name.text) is not None:
            self.define(statement.name, "target", POISON, place)
            return
        entry = Entry(statement.name.text, type_, statement.name.span)
        self.targets[entry.name] = entry
        self.define(statement.name, "target", self.recorder.entry(entry), place)

    def output(self, statement: syntax.Output, place: Place) -> None:
        for written in statement.values:
            if not isinstance(written, syntax.Name):
                self.error("E0516", written.span, "a model's outputs are named: bind the value first, and output its name")
                continue
            value = self.expression(written, place)
            if isinstance(value, Poison):
                continue
            if not isinstance(value, Tensor):
                self.error("E0405", written.span, f"an output is a tensor, and `{written.text}` is {self.describe(value)}")
            elif written.text in self.outputs:
                self.error("E0517", written.span, f"`{written.text}` is an output twice")
            else:
                self.outputs[written.text] = value.value

    def objective_statement(self, statement: syntax.Objective, place: Place) -> None:
        value = self.expression(statement.value, replace(place, owner=Owner("objective"), scope=self.recorder.scope("objective", statement.span), objective=True))
        if isinstance(value, Poison):
            return
        if not isinstance(value, Tensor) or value.type.kind != "float" or value.type.shape:
            self.error("E0603", statement.value.span, f"an objective is one number for each sample, not {self.describe(value)}")
            return
        owned = [path for path in self.recorder.slots if path.startswith("objective.")]
        if owned:
            self.error("E0605", statement.value.span, "an objective owns no weights: name the step as a stage first")
            return
        self.objective = value.value

    def train_statement(self, statement: syntax.Train, place: Place) -> None:
        """The recipe: settings read and checked as a step's arguments are."""
        arguments = tuple(syntax.Argument(span=s.span, name=s.name, value=s.value) for s in statement.settings)
        reader = self.reader(place)
        read = reader.read("train", Recipe, arguments, statement.span)
        if read is None or reader.construct("train", Recipe, read, statement.span) is None:
            return
        self.train = read.values

    def _warn_unused(self) -> None:
        for names in self._namespaces.values():
            for definition in names.own.values():
                if definition.used or definition.span is None or definition.name == "_":
                    continue
                if definition.role == "binding" and isinstance(definition.meaning, Tensor) and definition.meaning.value in self.outputs.values():
                    continue
                if definition.role in ("block", "length", "layer"):
                    continue
                self.error("W0801", definition.span, f"`{definition.name}` is never used")


def _definitions(model: syntax.Model) -> Iterable[tuple[str, Span]]:
    for statement in reversed(model.statements):
        yield from _definitions_of(statement)


def _definitions_of(statement: syntax.Statement) -> list[tuple[str, Span]]:
    match statement:
        case syntax.Input() | syntax.LearnStatement() | syntax.Target() | syntax.Stage():
            return [(statement.name.text, statement.name.span)]
        case syntax.Binding():
            return [(name.text, name.span) for name in statement.names]
    return []


def elaborate(
    model: syntax.Model,
    blocks: Namespace,
    *,
    variant: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    sources: tuple[Source, ...] = (),
    report: Report,
) -> ModelGraph | None:
    """The graph of a model, its parameters set by `variant` and `overrides`; None where `report` has errors afterwards.

    `blocks` are the blocks that the model's file sees.
    """
    recorder = Recorder()
    elaborator = ModelElaborator(recorder, report)
    names = Namespace()
    names.own.update(blocks.own)
    resolve(model, variant, overrides or {}, names, elaborator)
    try:
        elaborator.model(model, names)
    except TooLarge:
        elaborator.error("E0006", model.name.span, f"`{model.name}` expands to more than {MAXIMUM_NODES:,} steps")
    if report.errors:
        return None
    settings = {
        name: definition.meaning.value
        for name, definition in names.own.items()
        if definition.role == "parameter" and isinstance(definition.meaning, Constant)
    }
    items = (data["item"] for _, data in recorder.graph.nodes(data=True))
    used = {ref.slot for item in items if isinstance(item, Node) for ref in item.weights.values()}
    return ModelGraph(
        model=model.name.text,
        variant=variant,
        settings=settings,
        sources=sources,
        graph=recorder.graph,
        scopes=recorder.scopes,
        slots=recorder.slots,
        learns=recorder.learns,
        frozen=frozenset(path for path in recorder.slots if path in used and path not in recorder.trained),
        inputs=elaborator.inputs,
        targets=elaborator.targets,
        outputs=elaborator.outputs,
        objective=elaborator.objective,
        names=recorder.names,
        train=elaborator.train,
        warnings=report.warnings,
    )
