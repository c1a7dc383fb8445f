"""The syntax tree: what a `.crate` file says, before anything is known of what it means.

Frozen nodes, each with the span of text it was read from. Chains of one operator (`a + b + c`, `a -> f -> g`) are flat
tuples, so that no walker recurses in the length of an expression; what nests is bounded by the parser.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, InstanceOf
from pydantic_core.core_schema import CoreSchema, is_instance_schema

from crate_dsl.language.source import Span


class Node(BaseModel):
    """What every node has: the place it was read from."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True, extra="forbid", defer_build=True)

    span: InstanceOf[Span]

    _outermost: ClassVar[bool] = True

    @classmethod
    def __get_pydantic_core_schema__(cls, source: type, handler: GetCoreSchemaHandler) -> CoreSchema:
        """A node's children are held to be nodes of their kind, and not validated again: a tree is built bottom-up.

        So no schema contains another one, which is most of what pydantic would do when a spec is first read.
        """
        if not Node._outermost:
            return is_instance_schema(cls)
        Node._outermost = False
        try:
            return handler(source)
        finally:
            Node._outermost = True


class Identifier(Node):
    """A name where it is written."""

    text: str

    def __str__(self) -> str:
        return self.text


# ------------------------------------------------------------------ expressions


class Expression(Node):
    """Anything that has a value: a number, a word, a list, a tensor, a stage."""


class Number(Expression):
    """A number, exactly as written."""

    text: str
    value: Fraction


class String(Expression):
    value: str


class Name(Expression):
    """A bare word: a parameter, an input, a binding, a learn, a stage, or a word such as `causal`."""

    text: str


class Argument(Node):
    """`value` or `name = value` between a step's parentheses."""

    name: Identifier | None
    value: Expression


class Step(Expression):
    """`name(arguments) { body }`: a step of a pipeline, or a call in an expression such as `lion(lr = 1e-4)`."""

    name: Identifier
    arguments: tuple[Argument, ...] | None
    body: Chain | Graph | None


class Learn(Expression):
    """`learn(1.0)` or `learn(1e-5, shape = [dim])` as an argument: a fresh learned number owned by the step."""

    arguments: tuple[Argument, ...]


class Index(Expression):
    """`steps[layer]`."""

    value: Identifier
    index: Expression


class Attribute(Expression):
    """`key.patch` in a mask rule."""

    value: Identifier
    attribute: Identifier


class List(Expression):
    items: tuple[Expression, ...]


class Parenthesis(Expression):
    """Kept, since `z + z -> f` is refused where `z + (z -> f)` is not."""

    value: Expression


class Negative(Expression):
    value: Expression


class Term(Node):
    """One operand of a `Sum` or a `Product`, with the operator written before it."""

    operator: Literal["+", "-", "*", "/"]
    value: Expression


class Sum(Expression):
    """`first + a - b`."""

    first: Expression
    rest: tuple[Term, ...]


class Product(Expression):
    """`first * a / b`."""

    first: Expression
    rest: tuple[Term, ...]


class Comparison(Expression):
    operator: Literal["==", "!=", "<", "<=", ">", ">="]
    left: Expression
    right: Expression


class And(Expression):
    values: tuple[Expression, ...]


class Or(Expression):
    values: tuple[Expression, ...]


class Pipe(Expression):
    """`value -> step -> step`."""

    value: Expression
    steps: tuple[Step, ...]


# ------------------------------------------------------------------ types


class Bounded(Expression):
    """`n <= 1024` as a dimension: a length known when the network runs."""

    name: Identifier
    bound: Expression


class Type(Node):
    """`float[3, size, size]`, `index(classes)`, `bool[n]`."""

    name: Identifier
    arguments: tuple[Argument, ...] | None
    dimensions: tuple[Expression, ...] | None


# ------------------------------------------------------------------ statements


class Statement(Node):
    """One statement of a model or of a graph body."""


class Input(Statement):
    name: Identifier
    type: Type | None
    source: Expression | None


class LearnStatement(Statement):
    name: Identifier
    type: Type
    initial: Expression | None


class Target(Statement):
    name: Identifier
    type: Type


class Stage(Statement):
    """`stage name = step -> step` (a `Chain`) or `stage name = { … }` (a `Chain` or a `Graph`)."""

    name: Identifier
    body: Chain | Graph


class Binding(Statement):
    names: tuple[Identifier, ...]
    value: Expression


class Output(Statement):
    values: tuple[Expression, ...]


class Objective(Statement):
    value: Expression


class Setting(Node):
    name: Identifier
    value: Expression


class Variant(Statement):
    name: Identifier
    settings: tuple[Setting, ...]


class Train(Statement):
    """`train { … }`: the recipe of a model; `train fashion { … }`: of one of its variants."""

    variant: Identifier | None = None
    settings: tuple[Setting, ...]


class Broken(Statement):
    """A statement that could not be read. Its names are known, so that using them is no second mistake."""

    names: tuple[Identifier, ...]


class Chain(Node):
    """`{ a -> b  c }`: steps in order. A line is a run of steps joined by arrows; lines are for the formatter."""

    lines: tuple[tuple[Step, ...], ...]

    @property
    def steps(self) -> tuple[Step, ...]:
        return tuple(step for line in self.lines for step in line)


class Graph(Node):
    """`{ input z  …  output y }`."""

    statements: tuple[Statement, ...]


# ------------------------------------------------------------------ files


class Parameter(Node):
    name: Identifier
    default: Expression | None


class Import(Node):
    path: String


class Block(Node):
    name: Identifier
    parameters: tuple[Parameter, ...]
    body: Chain | Graph


class Model(Node):
    name: Identifier
    parameters: tuple[Parameter, ...]
    statements: tuple[Statement, ...]


class BrokenItem(Node):
    """A block, model or import that could not be read: a mistake in its head, or in the chain that is its body."""

    names: tuple[Identifier, ...]


class File(Node):
    items: tuple[Import | Block | Model | BrokenItem, ...]

    @property
    def imports(self) -> tuple[Import, ...]:
        return tuple(item for item in self.items if isinstance(item, Import))

    @property
    def blocks(self) -> tuple[Block, ...]:
        return tuple(item for item in self.items if isinstance(item, Block))

    @property
    def models(self) -> tuple[Model, ...]:
        return tuple(item for item in self.items if isinstance(item, Model))


Step.model_rebuild()


# ------------------------------------------------------------------ questions


def children(node: Node) -> Iterator[Node]:
    """The nodes directly below a node, in the order in which they are written."""
    for field in type(node).model_fields:
        yield from _nodes(getattr(node, field))


def _nodes(value: Any) -> Iterator[Node]:
    if isinstance(value, Node):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from _nodes(item)


def walk(node: Node) -> Iterator[Node]:
    """A node and everything below it, in the order in which it is written."""
    yield node
    for child in children(node):
        yield from walk(child)


def shape(value: Any) -> Any:
    """A node without its places: two texts mean the same tree where their shapes are equal."""
    if isinstance(value, Node):
        fields = {name: shape(getattr(value, name)) for name in type(value).model_fields if name != "span"}
        if isinstance(value, Number):
            del fields["text"]
        return (type(value).__name__, *fields.values())
    if isinstance(value, tuple):
        return tuple(shape(item) for item in value)
    return value
