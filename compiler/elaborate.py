"""From the tree to the model graph: a model's statements in order, and what a model as a whole must be."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar

import networkx as nx

from crate_dsl.compiler.accepts import accepted
from crate_dsl.compiler.arguments import Broken
from crate_dsl.compiler.draws import Draw
from crate_dsl.compiler.graph import Entry, ModelGraph, Node, Value
from crate_dsl.compiler.losses import Losses
from crate_dsl.compiler.meanings import POISON, Constant, Namespace, Poison, Tensor, one_line
from crate_dsl.compiler.operators import Form
from crate_dsl.compiler.recipe import FORMS, TrainBlock
from crate_dsl.compiler.record import MAXIMUM_STEPS, Owner, Place, Recorder, TooLarge
from crate_dsl.compiler.settings import broken_names, nearest, resolve
from crate_dsl.compiler.statements import definitions
from crate_dsl.language import syntax
from crate_dsl.language.diagnostics import Diagnostic, Label, Report
from crate_dsl.language.source import Source, Span


class _InputSource(Form):
    """The accepted draws of an input, read as an argument."""

    word: ClassVar[str] = "input"
    source: Draw


class ModelElaborator(Losses):
    """Reads one model with its parameters in force."""

    def __init__(self, recorder: Recorder, report: Report) -> None:
        super().__init__(recorder, report)
        self._namespaces: list[Namespace] = []
        self.inputs: dict[str, Entry] = {}
        self.targets: dict[str, Entry] = {}
        self.outputs: dict[str, Value] = {}
        self._output_spans: dict[str, Span] = {}
        self.objective: Value | None = None
        self.recipes: dict[str | None, Mapping[str, Any]] = {}

    def unused(self, names: Namespace, place: Place) -> None:
        if not place.dry:
            self._namespaces.append(names)

    def model(self, model: syntax.Model, names: Namespace) -> None:
        """Every statement of the model, in order."""
        place = Place(Owner(""), self.recorder.scope("", model.name.span), names)
        self.model_names = names
        self._namespaces.append(names)
        names.later.update(definitions(model.statements))
        for statement in model.statements:
            match statement:
                case syntax.Input():
                    self.input(statement, place)
                case syntax.Target():
                    self.target(statement, place)
                case syntax.Output():
                    self.output(statement, place)
                case syntax.Objective() | syntax.Variant() | syntax.Train():
                    pass
                case _:
                    self.statement(statement, place)
        self._objectives(model, place)
        self._recipes(model, place)
        self._check_slow_copies()
        self._check_exported()
        whole = not any(isinstance(statement, syntax.Broken) for statement in model.statements)
        if whole and not any(isinstance(statement, syntax.Output) for statement in model.statements):
            bound = [s.names[-1].text for s in model.statements if isinstance(s, syntax.Binding)]
            help = f"output {bound[-1]}" if bound else "a value comes first: `y = z -> …`, then `output y`"
            self.error("E0601", model.name.span, f"`{model.name}` has no output", help)
        if whole and not self.report.errors:
            self._warn_unused()

    # -------------------------------------------------------------- inputs and targets

    def input(self, statement: syntax.Input, place: Place) -> None:
        name = statement.name.text
        if statement.type is None:
            message, help = f"the input `{name}` has no type", f"input {name} : float[3, 224, 224]"
            self.error("E0460", statement.name.span, message, help)
            self.define(statement.name, "input", POISON, place)
            return
        type_ = self.type(statement.type, place, "input")
        source: Draw | None = None
        if statement.source is not None:
            try:
                accepts = accepted(_InputSource)["source"]
                source, _ = self.reader(place).value("input", "draw", accepts, statement.source)
            except Broken:
                type_ = None
        if source is not None and statement.source is not None and type_ is not None:
            problem = source.check(type_)
            if problem is not None:
                self.error("E0465", statement.source.span, problem, label=f"for {type_}")
        if type_ is None or place.names.find(name) is not None:
            self.define(statement.name, "input", POISON, place)
            return
        self.inputs[name] = entry = Entry(name, type_, statement.name.span, source)
        self.define(statement.name, "input", self.recorder.entry(entry), place)

    def target(self, statement: syntax.Target, place: Place) -> None:
        name = statement.name.text
        type_ = self.type(statement.type, place, "target")
        if type_ is None or place.names.find(name) is not None:
            self.define(statement.name, "target", POISON, place)
            return
        self.targets[name] = entry = Entry(name, type_, statement.name.span)
        self.define(statement.name, "target", self.recorder.entry(entry), place)

    # -------------------------------------------------------------- outputs and objective

    def output(self, statement: syntax.Output, place: Place) -> None:
        for written in statement.values:
            if not isinstance(written, syntax.Name):
                message = "an output has a name: bind the value first, and put out its name"
                text = one_line(written.span.text)
                help = f"`y = {text if len(text) <= 60 else '…'}`, then `output y`"
                self.error("E0516", written.span, message, help)
                self.expression(written, replace(place, dry=True))
                continue
            value = self.expression(written, place)
            name = written.text
            if isinstance(value, Poison):
                continue
            if not isinstance(value, Tensor):
                message = f"an output is a tensor, and `{name}` is {self.describe(value)}"
                self.error("E0405", written.span, message)
            elif name in self.outputs:
                message = f"there are two outputs called `{name}`"
                self.error("E0517", written.span, message, also=[(self._output_spans[name], "the first")])
            else:
                self.outputs[name] = value.value
                self._output_spans[name] = written.span

    def _objectives(self, model: syntax.Model, place: Place) -> None:
        """The objective comes last: it may read everything."""
        stated = [s for s in model.statements if isinstance(s, syntax.Objective)]
        for statement in stated[1:]:
            message, help = "a model has one objective", "terms are added: `objective a + 0.1 * b`"
            self.error("E0515", statement.span, message, help, also=[(stated[0].span, "the first")])
        for statement in stated:
            self.objective_statement(statement, place)

    def objective_statement(self, statement: syntax.Objective, place: Place) -> None:
        self.look(statement, place)
        scope = self.recorder.scope("objective", statement.span)
        inner = replace(place, owner=Owner("objective"), scope=scope, objective=True)
        value = self.expression(statement.value, inner)
        if isinstance(value, Poison):
            return
        if not isinstance(value, Tensor) or value.type.kind != "float" or value.type.shape:
            message = f"an objective is one number for each sample, not {self.describe(value)}"
            help = "losses give such a number: `mse(output, target)`, `cross_entropy(logits, label)`"
            self.error("E0603", statement.value.span, message, help)
            return
        items = (data["item"] for _, data in self.recorder.graph.nodes(data=True))
        for node in items:
            if isinstance(node, Node) and node.path.startswith("objective.") and node.slots:
                message = f"`{node.word}` would own weights in the objective, which owns none"
                help = f"name it before: `stage head = {node.word}(…)`, and apply `head` here"
                self.error("E0605", node.span, message, help)
                return
        self.objective = value.value

    # -------------------------------------------------------------- the model as a whole

    def _check_slow_copies(self) -> None:
        """A slow copy follows weights that are there, and of the same shapes."""
        slots = self.recorder.slots
        for copy, span in self.slow_copies.values():
            stage = copy.follows
            assert stage is not None
            if stage.path not in self.recorder.scopes:
                message = (
                    f"`{copy.name}` is a slow copy of `{stage.name}`, which is never used: nothing moves it"
                )
                also = [(stage.span, "not used")]
                self.error("E0536", span, message, f"train it: `value -> {stage.name}`", also=also)
                continue
            for path, average in self.recorder.averages.items():
                if path.startswith(f"{copy.path}.") and slots[path].shape != slots[average.source].shape:
                    (use, type_), (at, other) = (next(iter(s.used.values())) for s in (copy, stage))
                    sizes = f"{list(slots[path].shape)}, and `{average.source}` {list(slots[average.source].shape)}"
                    message = (
                        f"`{copy.name}` is a slow copy of `{stage.name}`, and their weights differ in shape"
                    )
                    help = f"`{path}` is {sizes}: both are used on tokens of one width"
                    also = [(at, f"`{stage.name}` is used on {other}")]
                    self.error("E0404", use, message, help, label=f"used on {type_}", also=also)
                    break

    def _check_exported(self) -> None:
        """What is drawn at random while training is no part of what is exported."""
        graph = self.recorder.graph
        told: set[str] = set()
        for name, value in self.outputs.items():
            reached = nx.ancestors(graph, value.node) | {value.node}
            for node in (data["item"] for at, data in graph.nodes(data=True) if at in reached):
                if not isinstance(node, Node) or node.path in told or not _is_random(node):
                    continue
                told.add(node.path)
                message = f"`{node.word}` is for training alone, and the output `{name}` depends on it"
                help = "what is exported is computed from the value before it; the objective alone may read the rest"
                where, also = Label(span=node.span), (Label(span=self._output_spans[name], text="exported"),)
                self.report.add(
                    Diagnostic(
                        code="E0532", message=message, where=where, also=also, uses=node.uses, help=(help,)
                    )
                )

    # -------------------------------------------------------------- recipes

    def _recipes(self, model: syntax.Model, place: Place) -> None:
        """Every recipe is checked, whichever is in force."""
        variants = {s.name.text: s for s in model.statements if isinstance(s, syntax.Variant)}
        stated: dict[str | None, syntax.Train] = {}
        for statement in model.statements:
            if not isinstance(statement, syntax.Train):
                continue
            name = statement.variant.text if statement.variant else None
            where = statement.variant.span if statement.variant else _first_word(statement)
            if name is not None and name not in variants and name not in broken_names(model):
                help = nearest(name, variants, "its variants are", "it has no variants")
                self.error("E0209", where, f"`{model.name}` has no variant `{name}`", help)
            if name in stated:
                what = f"the variant `{name}`" if name else "the model"
                first = stated[name]
                also = [(first.variant.span if first.variant else _first_word(first), "the first")]
                help = "a variant may have its own: `train tiny { … }`"
                self.error(
                    "E0515", where, f"{what} has one recipe, and this is a second one", help, also=also
                )
                name = f"{name} again"  # read all the same, for its own mistakes
            stated.setdefault(name, statement)
            recipe = self._recipe(statement, place)
            if recipe is not None:
                self.recipes.setdefault(name, recipe)

    def _recipe(self, statement: syntax.Train, place: Place) -> Mapping[str, Any] | None:
        """Settings, read and checked as a step's arguments are."""
        known = accepted(TrainBlock)
        arguments = []
        for setting in statement.settings:
            name = setting.name.text
            if name in known:
                span, value = setting.span, setting.value
                arguments.append(syntax.Argument(span=span, name=setting.name, value=value))
                continue
            owners = [form.word for forms in FORMS.values() for form in forms if name in form.model_fields]
            help = nearest(name, known, "its entries are", "")
            if owners:
                help = f"it is an argument of {' and '.join(owners)}: `{owners[0]}({name} = …)`"
            self.error("E0301", setting.name.span, f"a recipe has no entry `{name}`", help)
        reader = self.reader(place)
        read = reader.read("train", TrainBlock, tuple(arguments), statement.span)
        if read is None or reader.construct("train", TrainBlock, read, statement.span) is None:
            return None
        return read.values

    def recipe(self, variant: str | None) -> Mapping[str, Any]:
        """The recipe in force: the variant's own, or the model's."""
        return self.recipes.get(variant, self.recipes.get(None, {}))

    # -------------------------------------------------------------- warnings

    def _warn_unused(self) -> None:
        for names in self._namespaces:
            for definition in names.own.values():
                if (
                    definition.used
                    or definition.span is None
                    or definition.role in ("block", "length", "layer")
                ):
                    continue
                what = {"parameter": "the parameter", "input": "the input", "target": "the target"}
                shown = f"{what.get(definition.role, '')} `{definition.name}`".strip()
                self.error("W0801", definition.span, f"{shown} is never used")


def _is_random(node: Node) -> bool:
    return node.operator.kind == "training" and not node.operator.identity_at_inference


def _first_word(statement: syntax.Train) -> Span:
    return replace(statement.span, end=statement.span.start + len("train"))


@contextmanager
def _nothing_collected() -> Iterator[None]:
    """Without the collector of cycles: what is read is kept, and it would walk over all of it again and again, which
    for 10,000 layers is a third of the time.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


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
    names = Namespace(own=dict(blocks.own), incomplete=blocks.incomplete)
    resolve(model, variant, overrides or {}, names, elaborator)
    try:
        with _nothing_collected():
            elaborator.model(model, names)
    except TooLarge as problem:
        message = (
            f"`{model.name}` has more than {MAXIMUM_STEPS:,} steps with its blocks and repeats written out"
        )
        elaborator.error("E0521", problem.span, message)
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
        frozen=frozenset(path for path in recorder.slots if path in used and path not in recorder.trained)
        | frozenset(recorder.averages),
        inputs=elaborator.inputs,
        targets=elaborator.targets,
        outputs=elaborator.outputs,
        objective=elaborator.objective,
        names=recorder.names,
        train=elaborator.recipe(variant),
        pairs=tuple(recorder.pairs),
        warnings=report.warnings,
        averages=recorder.averages,
    )


def check_block(block: syntax.Block, blocks: Namespace, report: Report) -> None:
    """Read a block that nobody uses, for the mistakes that can be known without its arguments."""
    elaborator = ModelElaborator(Recorder(), report)
    place = Place(Owner(""), None, Namespace(blocks), blocks=(block.name.text,), dry=True)
    for parameter in block.parameters:
        if parameter.default is not None:
            elaborator.plain(parameter.default, place, f"`{parameter.name}`")
        if parameter.name.text not in place.names.own:
            place.names.define(parameter.name.text, "parameter", POISON, parameter.name.span)
    try:
        elaborator.body(block.body, POISON, {}, place, block.name.span)
    except TooLarge as problem:
        message = (
            f"`{block.name}` has more than {MAXIMUM_STEPS:,} steps with its blocks and repeats written out"
        )
        elaborator.error("E0521", problem.span, message)
