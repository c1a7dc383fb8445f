"""Bodies with a name: blocks, which are expanded with fresh weights, and stages, which own theirs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from crate_dsl.compiler.apply import Steps
from crate_dsl.compiler.arguments import (
    report_positional,
    report_too_many,
    report_unknown,
)
from crate_dsl.compiler.meanings import (
    POISON,
    SEEN_BY_GRAPH_BODIES,
    BlockMeaning,
    Constant,
    Handed,
    Meaning,
    Namespace,
    Poison,
    Role,
    StageMeaning,
    Tensor,
)
from crate_dsl.compiler.record import (
    MAXIMUM_DEPTH,
    Averaging,
    LayoutMismatch,
    Owner,
    PathClash,
    Place,
    Recorder,
    SlotMismatch,
)
from crate_dsl.language import syntax
from crate_dsl.language.diagnostics import Report
from crate_dsl.language.source import Span

Body = syntax.Chain | syntax.Graph


class Bodies(Steps):
    """Applies blocks and stages. Bodies that are graphs are the business of the classes that build on this one."""

    def __init__(self, recorder: Recorder, report: Report) -> None:
        super().__init__(recorder, report)
        self._open_stages: set[str] = set()
        #: The slow copies that are used, by path, each with where it is used first.
        self.slow_copies: dict[str, tuple[StageMeaning, Span]] = {}
        self._own_copies: dict[str, StageMeaning] = {}

    def graph_body(
        self, body: syntax.Graph, value: Meaning, named: Mapping[str, Handed], place: Place, span: Span
    ) -> Meaning:
        raise NotImplementedError

    def unused(self, names: Namespace, place: Place) -> None:
        """Remember names that somebody should read; told at the end, if the rest is sound."""
        raise NotImplementedError

    # -------------------------------------------------------------- bodies

    def body(
        self, body: Body, value: Meaning, named: Mapping[str, Handed], place: Place, span: Span
    ) -> Meaning:
        """A body applied to a value: a chain, or a graph with a namespace of its own."""
        if isinstance(body, syntax.Chain):
            return self.run(body.steps, value, place)
        layer: frozenset[Role] = frozenset({"layer"} if "layer" in place.names.own else ())
        inner = replace(place, names=Namespace(place.names, SEEN_BY_GRAPH_BODIES | layer))
        return self.graph_body(body, value, named, inner, span)

    def too_deep(self, span: Span, place: Place) -> bool:
        """Whether too many uses are inside one another; reported, if so."""
        if len(place.uses) < MAXIMUM_DEPTH:
            return False
        message = f"more than {MAXIMUM_DEPTH} blocks, stages and repeats are inside one another"
        self.error("E0522", span, message, place=replace(place, uses=place.uses[:3]))
        return True

    # -------------------------------------------------------------- blocks

    def apply_block(self, meaning: BlockMeaning, step: syntax.Step, value: Meaning, place: Place) -> Meaning:
        """A block is expanded where it is used, with fresh weights, owned by whoever uses it."""
        block, name = meaning.block, meaning.block.name.text
        self.recorder.count(step.name.span)
        if name in place.blocks:
            circle = [*reversed(place.blocks[: place.blocks.index(name) + 1]), name]
            message = f"blocks cannot use each other in a circle: {' -> '.join(circle)}"
            also = [(block.name.span, "the block")]
            return self.error("E0504", step.name.span, message, also=also, place=place)
        if self.too_deep(step.name.span, place):
            return POISON
        self.no_body(step, place)
        inner = replace(
            place.within(f"in block `{name}`, used", step.name.span),
            names=Namespace(meaning.names),
            blocks=(name, *place.blocks),
        )
        if is_broken(block.body):  # what its arguments are, nobody can tell
            inner.names.doubtful |= {parameter.name.text for parameter in block.parameters}
            self.body(block.body, POISON, {}, replace(inner, dry=True), step.name.span)
            return POISON
        named = self._block_arguments(block, step, place, inner)
        if isinstance(block.body, syntax.Chain):
            result = self.run(block.body.steps, value, inner)
        else:
            result = self.body(block.body, value, named, inner, step.name.span)
        self.unused(inner.names, inner)
        return result

    def _block_arguments(
        self, block: syntax.Block, step: syntax.Step, place: Place, inner: Place
    ) -> dict[str, Handed]:
        """Define a block's parameters in `inner`; the meanings of what is handed to its further inputs."""
        name = block.name.text
        inputs = graph_inputs(block.body)[1:]
        order = [parameter.name.text for parameter in block.parameters]
        given: dict[str, Constant | Poison] = {}
        named: dict[str, Handed] = {}
        sound = True
        for argument, key in self._keys(name, step, order, [*order, *inputs], place):
            if key is None:
                sound = False
            elif key in order:
                given[key] = self.plain(argument.value, place, f"`{key}` of `{name}`")
            else:
                named[key] = Handed(self.expression(argument.value, place), argument.value.span)
        if not sound:  # what is missing may be what was meant
            named = {name: named.get(name, Handed(POISON, step.span)) for name in inputs}
        missing = [p for p in block.parameters if p.default is None and p.name.text not in given]
        if missing and sound:
            names = " and ".join(f"`{parameter.name}`" for parameter in missing)
            help = f"{name}({', '.join([*order, *inputs])})"
            self.error("E0302", step.name.span, f"`{name}` needs {names}", help, place=place)
        for parameter in block.parameters:
            key = parameter.name.text
            if key in inner.names.own:
                also = [(inner.names.own[key].span or parameter.span, "first here")]
                self.error("E0203", parameter.name.span, f"`{key}` is defined twice", also=also)
                continue
            if key in given:
                value = given[key]
            elif parameter.default is not None:
                value = self.plain(parameter.default, inner, f"`{key}`")
            else:
                value = POISON
            inner.names.define(key, "parameter", value, parameter.name.span)
        return named

    def _keys(
        self, name: str, step: syntax.Step, order: list[str], known: list[str], place: Place
    ) -> Iterator[tuple[syntax.Argument, str | None]]:
        """Each argument of a block or stage with its name; None after reporting that there is no such argument."""
        taken: dict[str, Span] = {}
        error = self.reader(place).error
        by_name = False
        for position, argument in enumerate(step.arguments or ()):
            key: str | None
            if argument.name is None and by_name:
                report_positional(error, argument)
                key = None
            elif argument.name is None:
                key = order[position] if position < len(order) else None
                if key is None:
                    report_too_many(error, name, argument, order, known)
            else:
                by_name = True
                key = argument.name.text if argument.name.text in known else None
                if key is None:
                    report_unknown(error, name, argument.name, known)
            if key is not None and key in taken:
                message = f"`{key}` of `{name}` is given twice"
                error("E0308", argument.span, message, also=[(taken[key], "first here")])
                key = None
            if key is not None:
                taken[key] = argument.span
            yield argument, key

    def plain(self, written: syntax.Expression, place: Place, what: str) -> Constant | Poison:
        """A number, boolean, word or list: a parameter's value. A bare word that is no name stands for itself."""
        if isinstance(written, syntax.Name) and self._is_word(written.text, place):
            return Constant(written.text)
        value = self.expression(written, place)
        if isinstance(value, Constant | Poison):
            return value
        message = f"{what} is a number, a boolean, a word or a list, not {self.describe(value)}"
        return self.error("E0333", written.span, message, place=place)

    def _is_word(self, text: str, place: Place) -> bool:
        names = place.names
        known = names.find(text) or names.hidden(text) or names.upcoming(text)
        outside = place.blocks and self.model_names.find(text)
        return not known and not outside and text not in ("true", "false", "layer")

    # -------------------------------------------------------------- stages

    def apply_stage(self, stage: StageMeaning, step: syntax.Step, value: Meaning, place: Place) -> Meaning:
        """A stage's weights are its own: the first use makes them, every further one shares them."""
        if is_broken(stage.body):
            return POISON
        named = self.stage_inputs(stage, step, place)
        self.no_body(step, place)
        return self.use_stage(stage, value, named, step.name.span, place)

    def stage_inputs(self, stage: StageMeaning, step: syntax.Step, place: Place) -> dict[str, Handed]:
        """What a use of a stage hands to its further inputs, in their order."""
        inputs = graph_inputs(stage.body)[1:]
        given: dict[str, Handed] = {}
        sound = True
        for argument, key in self._keys(stage.name, step, [], inputs, place):
            if key is not None:
                given[key] = Handed(self.expression(argument.value, place), argument.value.span)
            sound &= key is not None
        if not sound:  # what is missing may be what was meant
            given = {name: given.get(name, Handed(POISON, step.span)) for name in inputs}
        return {name: given[name] for name in inputs if name in given}

    def use_stage(
        self,
        stage: StageMeaning,
        value: Meaning,
        named: Mapping[str, Handed],
        span: Span,
        place: Place,
        frozen: bool = False,
    ) -> Meaning:
        real = isinstance(value, Tensor) and not place.dry
        self.recorder.count(span)
        if stage.follows is not None and place.averaging is not None:
            return self.nested_copy(stage.name, span, place)
        if real and stage.follows is not None:
            self.slow_copies.setdefault(stage.path, (stage, span))
        stage, averaging = self.own_copy(stage, place)
        again = stage.path in self._open_stages  # used before it is defined, which has been reported
        if (stage.read and not real) or again or self.too_deep(span, place):
            return POISON
        stage.read = True
        record = real and stage.path not in self.recorder.scopes
        inner = replace(
            place.within(f"in stage `{stage.name}`, used", span, None if real else stage.body.span),
            owner=Owner(stage.path),
            scope=self.recorder.scope(stage.path, stage.span) if record else None,
            names=stage.names,
            frozen=place.frozen or frozen or averaging is not None,
            dry=not real,
            blocks=(),
            averaging=averaging,
        )
        before = len(self.report)
        self._open_stages.add(stage.path)
        try:
            result = self.scoped_body(stage.body, value, named, inner, span)
        except (SlotMismatch, LayoutMismatch) as problem:
            return self._disagreement(stage, problem, value, span, place)
        except PathClash as problem:
            return self._clash(problem, span, place)
        finally:
            self._open_stages.remove(stage.path)
        if isinstance(value, Tensor):
            stage.used.setdefault(value.type.shape, (span, value.type))
        if isinstance(result, Tensor) and isinstance(value, Tensor):
            arguments = tuple(tensor.value for tensor in _tensors(value, named))
            self.recorder.apply(place, stage.path, arguments, (result.value,), frozen)
            return result
        if len(self.report) == before and not isinstance(result, Poison):
            message = f"`{stage.name}` ends in {self.describe(result)}, and a stage has one"
            return self.error("E0503", span, message, place=place)
        return POISON

    def own_copy(self, stage: StageMeaning, place: Place) -> tuple[StageMeaning, Averaging | None]:
        """The stage whose weights are used, and what they follow: a slow copy has its own of all that it uses."""
        outer = place.averaging
        if stage.follows is not None:
            return stage, Averaging(stage.path, stage.path, stage.follows.path, stage.momentum)
        if outer is None or outer.holds(stage.path):
            return stage, outer
        path = outer.inside(stage.path)
        fresh = StageMeaning(stage.name, path, stage.body, stage.names, stage.span, read=True)
        return self._own_copies.setdefault(path, fresh), replace(outer, here=path, source=stage.path)

    def nested_copy(self, name: str, span: Span, place: Place) -> Poison:
        """Report a slow copy inside a slow copy."""
        message = f"`{name}` is a slow copy already, and is used inside another one"
        help = "copy the stages that are trained, each once"
        return self.error("E0535", span, message, help, place=place)

    def _clash(self, problem: PathClash, span: Span, place: Place) -> Poison:
        both = f"`{problem.first}` and `{problem.second}`"
        message = f"a slow copy holds {both}, and each of them would be `{problem.path}` in it"
        help = "give one of them another name: what a block calls its own, for example"
        return self.error("E0535", span, message, help, place=place)

    def scoped_body(
        self, body: Body, value: Meaning, named: Mapping[str, Handed], place: Place, span: Span
    ) -> Meaning:
        """A body that is a scope of its own: what goes in and comes out is remembered where it is recorded."""
        result = self.body(body, value, named, place, span)
        scope = place.scope
        if scope is not None and isinstance(value, Tensor) and isinstance(result, Tensor):
            scope.parameters = [tensor.value for tensor in _tensors(value, named)]
            scope.names = [*graph_inputs(body)[:1], *named]
            scope.results = [result.value]
        return result

    def _disagreement(
        self, stage: StageMeaning, problem: Exception, value: Meaning, span: Span, place: Place
    ) -> Poison:
        """A stage is used on something that its weights, or what it knows of its tokens, do not fit."""
        if not stage.used or not isinstance(value, Tensor):
            raise problem
        first_use, first_type = next(iter(stage.used.values()))
        first, found = str(first_type), str(value.type)
        if isinstance(problem, SlotMismatch):
            weight = problem.path.removeprefix(f"{stage.path}.")
            was, would = (list(slot.shape) for slot in (problem.first, problem.second))
            message = f"`{stage.name}` owns weights for {first}, and these cannot take {found}"
            lines = (
                f"its `{weight}` is {was} from the first use, and would have to be {would}",
                f"a stage of the same text with weights of its own: `stage other = copy({stage.name})`",
            )
            also = [(first_use, f"first used on {first}")]
            return self.error(
                "E0404", span, message, *lines, label=f"used on {found}", also=also, place=place
            )
        first_use, first_type = stage.used.get(value.type.shape, (first_use, first_type))
        layouts = first_type.layout, value.type.layout
        if all(layouts) and str(layouts[0]) != str(layouts[1]):
            first, found = f"tokens {layouts[0]}", f"tokens {layouts[1]}"
        message = f"`{stage.name}` is settled on the layout of its first tokens of this shape, and these have another"
        help = f"a stage of the same text, settled anew: `stage other = copy({stage.name})`"
        also = [(first_use, f"first used on {first}")]
        return self.error("E0409", span, message, help, label=f"used on {found}", also=also, place=place)


def _tensors(value: Meaning, named: Mapping[str, Handed]) -> list[Tensor]:
    """What goes into a body, the piped value first."""
    meanings = (value, *(handed.meaning for handed in named.values()))
    return [meaning for meaning in meanings if isinstance(meaning, Tensor)]


def is_broken(body: Body) -> bool:
    """Whether a graph has a statement that could not be read."""
    statements = () if isinstance(body, syntax.Chain) else body.statements
    return any(isinstance(statement, syntax.Broken) for statement in statements)


def graph_inputs(body: Body) -> list[str]:
    """The names of a graph body's inputs; a chain has one, without a name."""
    if isinstance(body, syntax.Chain):
        return ["z"]
    return [statement.name.text for statement in body.statements if isinstance(statement, syntax.Input)]
