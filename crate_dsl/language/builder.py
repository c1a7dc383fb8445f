"""Tokens that fit the grammar -> the syntax tree, from the leaves up, so that nothing recurses in the text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from typing import Any, TypeVar

from crate_dsl.language import refusals
from crate_dsl.language.diagnostics import Diagnostic
from crate_dsl.language.source import Source, Span
from crate_dsl.language.syntax import (
    And,
    Argument,
    Attribute,
    Binding,
    Block,
    Bounded,
    Broken,
    BrokenItem,
    Chain,
    Comparison,
    Expression,
    File,
    Graph,
    Identifier,
    Import,
    Index,
    Input,
    Learn,
    LearnStatement,
    List,
    Model,
    Name,
    Negative,
    Node,
    Number,
    Objective,
    Or,
    Output,
    Parameter,
    Parenthesis,
    Pipe,
    Product,
    Setting,
    Stage,
    Statement,
    Step,
    String,
    Sum,
    Target,
    Term,
    Train,
    Type,
    Variant,
)
from crate_dsl.language.tables import END, Tables
from crate_dsl.language.tokens import Token

N = TypeVar("N", bound=Node)
Parts = list[Any]

#: Statements that a model may hold and a graph body may not.
MODEL_ONLY = (Target, Objective, Variant, Train)


class Builder:
    """One file's tree. `mended` holds the offsets at which recovery changed the text: the statement around such a place
    is kept as `Broken`, with the names that it would have bound; `skipped` holds those of text that was passed over.
    """

    def __init__(
        self,
        source: Source,
        mended: Iterable[int] = (),
        skipped: Mapping[int, tuple[Identifier, ...]] | None = None,
    ) -> None:
        self.source = source
        self.mended = set(mended)
        self.skipped = skipped or {}
        self.refused: dict[int, Diagnostic] = {}
        self.diagnostics: list[Diagnostic] = []

    def build(self, tables: Tables, tokens: list[Token]) -> File | None:
        """The tree, or None at the first token that does not fit."""
        states = [tables.start]
        values: list[Parts] = []
        symbols = [(token.type, token) for token in tokens]
        for symbol, token in [*symbols, (END, None)]:
            while True:
                action = tables.actions[states[-1]].get(symbol)
                if action is None:
                    return None
                if action >= 0:
                    states.append(action)
                    values.append([token])
                    break
                rule = tables.rules[~action]
                if rule.size:
                    first, *others = values[-rule.size :]
                    for other in others:
                        first.extend(other)
                    del values[-rule.size :], states[-rule.size :]
                else:
                    first = []
                values.append(first if rule.inline else [self._node(rule.name, first)])
                states.append(tables.gotos[states[-1]][rule.name])
                if symbol == END and states[-1] == tables.end:
                    (file,) = values[-1]
                    assert isinstance(file, File)
                    return file
        return None

    def _node(self, rule: str, parts: Parts) -> Node:
        if not parts:  # an empty file
            return File(span=Span(self.source, 0, len(self.source.text)), items=())
        first, last = parts[0], parts[-1]
        start = first.start if isinstance(first, Token) else first.span.start
        end = last.end if isinstance(last, Token) else last.span.end
        node: Node = MAKERS[rule](self, Span(self.source, start, end), parts)
        if isinstance(node, Statement | Import | Block | Model) and (self.mended or self.refused):
            return self._broken(node)
        return node

    def _broken(self, node: Node) -> Node:
        """A statement that recovery changed, or that means two things, as what can still be known of it: its names."""
        inside = {
            offset for offset in (*self.mended, *self.refused) if node.span.start <= offset < node.span.end
        }
        if not inside:
            return node
        if not inside & self.mended:
            self.diagnostics.extend(self.refused[offset] for offset in sorted(inside))
        self.mended -= inside
        self.refused = {offset: refused for offset, refused in self.refused.items() if offset not in inside}
        names = self.skipped.get(node.span.start, bound_names(node))
        kind = Broken if isinstance(node, Statement) else BrokenItem
        return kind(span=node.span, names=names)

    def identifier(self, token: Token) -> Identifier:
        return Identifier(span=Span(self.source, token.start, token.end), text=token.text)

    def names(self, parts: Parts) -> tuple[Identifier, ...]:
        return tuple(
            self.identifier(part) for part in parts if isinstance(part, Token) and part.type == "NAME"
        )

    def name(self, parts: Parts) -> Identifier:
        return self.names(parts)[0]

    def operands(self, span: Span, parts: Parts) -> tuple[Expression, ...]:
        """The operands of an operator. A pipeline among them is a mistake, and makes the statement around it broken."""
        found = only(parts, Expression)
        if any(isinstance(operand, Pipe) for operand in found):
            self.refused[span.start] = refusals.pipeline_as_operand(span, found)
        return found


def bound_names(node: Node) -> tuple[Identifier, ...]:
    """The names that a statement or an item puts into its namespace."""
    if isinstance(node, Binding | Broken):
        return node.names
    if isinstance(node, Input | LearnStatement | Target | Stage | Block | Model):
        return (node.name,)
    return ()


def only(parts: Parts, kind: type[N]) -> tuple[N, ...]:
    """The nodes of a kind."""
    return tuple(part for part in parts if isinstance(part, kind))


def maybe(parts: Parts, kind: type[N]) -> N | None:
    """The node of a kind, if there is one."""
    found = only(parts, kind)
    return found[0] if found else None


def body(parts: Parts) -> Chain | Graph | None:
    """The body, if there is one."""
    return maybe(parts, Chain) or maybe(parts, Graph)


def arguments(parts: Parts) -> tuple[Argument, ...] | None:
    """`f(a)` has arguments, `f()` has none of them, `f` is not called."""
    called = any(isinstance(part, Token) and part.type == "(" for part in parts)
    return only(parts, Argument) if called else None


def terms(values: tuple[Expression, ...], parts: Parts) -> tuple[Term, ...]:
    """What follows the first operand, each with the operator before it."""
    operators = [part for part in parts if isinstance(part, Token)]
    return tuple(
        Term(
            span=Span(value.span.source, operator.start, value.span.end), operator=operator.type, value=value
        )
        for operator, value in zip(operators, values[1:], strict=True)
    )


Maker = Callable[[Builder, Span, Parts], Node]
MAKERS: dict[str, Maker] = {}


def makes(rule: str) -> Callable[[Maker], Maker]:
    """Register what is made of a rule of the grammar."""

    def register(maker: Maker) -> Maker:
        MAKERS[rule] = maker
        return maker

    return register


# ------------------------------------------------------------------ files


@makes("file")
def _file(b: Builder, span: Span, parts: Parts) -> Node:
    return File(span=Span(b.source, 0, len(b.source.text)), items=tuple(parts))


@makes("import")
def _import(b: Builder, span: Span, parts: Parts) -> Node:
    return Import(span=span, path=_string(b, Span(b.source, parts[1].start, parts[1].end), parts[1:]))


@makes("block")
def _block(b: Builder, span: Span, parts: Parts) -> Node:
    return Block(span=span, name=b.name(parts), parameters=only(parts, Parameter), body=body(parts))


@makes("model")
def _model(b: Builder, span: Span, parts: Parts) -> Node:
    return Model(
        span=span, name=b.name(parts), parameters=only(parts, Parameter), statements=only(parts, Statement)
    )


@makes("parameter")
def _parameter(b: Builder, span: Span, parts: Parts) -> Node:
    return Parameter(span=span, name=b.name(parts), default=maybe(parts, Expression))


# ------------------------------------------------------------------ statements


@makes("input")
def _input(b: Builder, span: Span, parts: Parts) -> Node:
    return Input(span=span, name=b.name(parts), type=maybe(parts, Type), source=maybe(parts, Expression))


@makes("learn")
def _learn(b: Builder, span: Span, parts: Parts) -> Node:
    return LearnStatement(
        span=span, name=b.name(parts), type=maybe(parts, Type), initial=maybe(parts, Expression)
    )


@makes("target")
def _target(b: Builder, span: Span, parts: Parts) -> Node:
    return Target(span=span, name=b.name(parts), type=maybe(parts, Type))


@makes("stage")
def _stage(b: Builder, span: Span, parts: Parts) -> Node:
    return Stage(
        span=span,
        name=b.name(parts),
        body=body(parts) or Chain(span=parts[-1].span, lines=(parts[-1].steps,)),
    )


@makes("binding")
def _binding(b: Builder, span: Span, parts: Parts) -> Node:
    return Binding(span=span, names=b.names(parts), value=parts[-1])


@makes("output")
def _output(b: Builder, span: Span, parts: Parts) -> Node:
    return Output(span=span, values=only(parts, Expression))


@makes("objective")
def _objective(b: Builder, span: Span, parts: Parts) -> Node:
    return Objective(span=span, value=parts[-1])


@makes("variant")
def _variant(b: Builder, span: Span, parts: Parts) -> Node:
    return Variant(span=span, name=b.name(parts), settings=only(parts, Setting))


@makes("train")
def _train(b: Builder, span: Span, parts: Parts) -> Node:
    variant = b.names(parts)
    return Train(span=span, variant=variant[0] if variant else None, settings=only(parts, Setting))


@makes("setting")
def _setting(b: Builder, span: Span, parts: Parts) -> Node:
    return Setting(span=span, name=b.name(parts), value=parts[-1])


@makes("type")
def _type(b: Builder, span: Span, parts: Parts) -> Node:
    dimensions = only(parts, Expression)
    return Type(span=span, name=b.name(parts), arguments=arguments(parts), dimensions=dimensions or None)


@makes("bounded")
def _bounded(b: Builder, span: Span, parts: Parts) -> Node:
    return Bounded(span=span, name=b.name(parts), bound=parts[-1])


# ------------------------------------------------------------------ steps and bodies


class _Run(Node):
    """Steps joined by arrows: a line of a chain, before the chain is there."""

    steps: tuple[Step, ...]


@makes("run")
def _run(b: Builder, span: Span, parts: Parts) -> Node:
    return _Run(span=span, steps=only(parts, Step))


@makes("chain")
def _chain(b: Builder, span: Span, parts: Parts) -> Node:
    return Chain(span=span, lines=tuple(run.steps for run in only(parts, _Run)))


@makes("graph")
def _graph(b: Builder, span: Span, parts: Parts) -> Node:
    return Graph(span=span, statements=tuple(_allowed(b, statement) for statement in only(parts, Statement)))


def _allowed(b: Builder, statement: Statement) -> Statement:
    """A statement of a graph body, `Broken` where only a model may hold it."""
    if not isinstance(statement, MODEL_ONLY):
        return statement
    b.diagnostics.append(refusals.model_only(statement.span))
    return Broken(span=statement.span, names=bound_names(statement))


@makes("call")
@makes("step")
def _step(b: Builder, span: Span, parts: Parts) -> Node:
    return Step(span=span, name=b.name(parts), arguments=arguments(parts), body=body(parts))


@makes("argument")
def _argument(b: Builder, span: Span, parts: Parts) -> Node:
    return Argument(span=span, name=b.name(parts) if len(parts) > 1 else None, value=parts[-1])


# ------------------------------------------------------------------ expressions


@makes("or")
def _or(b: Builder, span: Span, parts: Parts) -> Node:
    return Or(span=span, values=b.operands(span, parts))


@makes("and")
def _and(b: Builder, span: Span, parts: Parts) -> Node:
    return And(span=span, values=b.operands(span, parts))


@makes("comparison")
def _comparison(b: Builder, span: Span, parts: Parts) -> Node:
    left, right = b.operands(span, parts)
    return Comparison(span=span, operator=parts[1].type, left=left, right=right)


@makes("sum")
def _sum(b: Builder, span: Span, parts: Parts) -> Node:
    values = b.operands(span, parts)
    return Sum(span=span, first=values[0], rest=terms(values, parts))


@makes("product")
def _product(b: Builder, span: Span, parts: Parts) -> Node:
    values = b.operands(span, parts)
    return Product(span=span, first=values[0], rest=terms(values, parts))


@makes("negative")
def _negative(b: Builder, span: Span, parts: Parts) -> Node:
    (value,) = b.operands(span, parts)
    return Negative(span=span, value=value)


@makes("pipe")
def _pipe(b: Builder, span: Span, parts: Parts) -> Node:
    value, *steps = only(parts, Expression)
    return Pipe(span=span, value=value, steps=tuple(steps))


@makes("number")
def _number(b: Builder, span: Span, parts: Parts) -> Node:
    return Number(span=span, text=parts[0].text, value=Fraction(parts[0].text))


@makes("string")
def _string(b: Builder, span: Span, parts: Parts) -> String:
    return String(span=span, value=parts[0].text[1:-1])


@makes("name")
@makes("word")
def _name(b: Builder, span: Span, parts: Parts) -> Node:
    return Name(span=span, text=parts[0].text)


@makes("index")
def _index(b: Builder, span: Span, parts: Parts) -> Node:
    return Index(span=span, value=b.name(parts), index=parts[2])


@makes("attribute")
def _attribute(b: Builder, span: Span, parts: Parts) -> Node:
    value, attribute = b.names(parts)
    return Attribute(span=span, value=value, attribute=attribute)


@makes("list")
def _list(b: Builder, span: Span, parts: Parts) -> Node:
    return List(span=span, items=only(parts, Expression))


@makes("fresh")
def _fresh(b: Builder, span: Span, parts: Parts) -> Node:
    return Learn(span=span, arguments=only(parts, Argument))


@makes("parenthesis")
def _parenthesis(b: Builder, span: Span, parts: Parts) -> Node:
    return Parenthesis(span=span, value=parts[1])
