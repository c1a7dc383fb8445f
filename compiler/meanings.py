"""What names mean while a spec is read: numbers, tensors, learns, stages, blocks; and who sees which name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal

from crate_dsl.compiler.exact import show_number
from crate_dsl.compiler.graph import Value
from crate_dsl.compiler.types import Dim, TensorType
from crate_dsl.language import syntax
from crate_dsl.language.source import Span

_WORD = re.compile(r"[A-Za-z_]\w*")
_COMMENT = re.compile(r"#[^\r\n]*")
#: A name that is neither part of a number nor the beginning of a call or of an item.
_NAME = re.compile(r"(?<![\w.])[A-Za-z_]\w*(?!\s*[(\[=])")

#: What a parameter, a list item or an argument without tensors may be. `Dim` is a length known only at run time.
Plain = Fraction | bool | str | Dim | tuple  # type: ignore[type-arg]


def one_line(text: str) -> str:
    """A stretch of a spec on one line, without its comments."""
    return " ".join(_COMMENT.sub("", text).split())


def words(text: str) -> set[str]:
    """The words of a stretch of a spec."""
    return set(_WORD.findall(one_line(text)))


@dataclass(frozen=True, slots=True)
class Constant:
    """A number, a boolean, a word or a list."""

    value: Plain


@dataclass(frozen=True, slots=True)
class Tensor:
    """A value of the network."""

    value: Value
    type: TensorType


@dataclass(frozen=True, slots=True)
class Tensors:
    """The results of a step that has several."""

    items: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class LearnMeaning:
    """A `learn`: its slot's path and its type."""

    path: str
    type: TensorType


@dataclass(frozen=True, slots=True)
class Handed:
    """What a use of a block or stage hands to one of its inputs by name, and where that is written."""

    meaning: Meaning
    span: Span


@dataclass(slots=True)
class StageMeaning:
    """A stage: its text, and what its uses made of it. `used` has the first use on each shape.

    `follows` is the stage of which this one is a slow copy, with `momentum`.
    """

    name: str
    path: str
    body: syntax.Chain | syntax.Graph
    names: Namespace
    span: Span
    read: bool = False
    used: dict[tuple[Dim, ...], tuple[Span, TensorType]] = field(default_factory=dict)
    follows: StageMeaning | None = None
    momentum: float = 0.0


@dataclass(frozen=True, slots=True)
class BlockMeaning:
    block: syntax.Block
    names: Namespace


@dataclass(frozen=True, slots=True)
class Poison:
    """What a broken statement would have bound: known, of no known kind, and no cause of a second mistake."""


POISON = Poison()

Meaning = Constant | Tensor | Tensors | LearnMeaning | StageMeaning | BlockMeaning | Poison

Role = Literal["parameter", "input", "target", "learn", "stage", "binding", "block", "length", "layer"]

#: What a graph body sees of the names around it. Inputs and bindings must be handed over.
SEEN_BY_GRAPH_BODIES: frozenset[Role] = frozenset({"parameter", "learn", "stage", "block", "length"})


@dataclass(slots=True)
class Definition:
    """A name where it is defined. `reported` names are looked at for use at the end."""

    name: str
    role: Role
    meaning: Meaning
    span: Span | None
    used: bool = False


@dataclass(slots=True)
class Namespace:
    """Names in scope. A chain body sees all names around it; a graph body only the roles in `sees`.

    `later` are names that are defined further down: using one early is a mistake of its own. Words of statements
    that could not be read are `doubtful`, and a namespace that lacks whole files is `incomplete`: where such a name is
    unknown, that is no second mistake.
    """

    parent: Namespace | None = None
    sees: frozenset[Role] | None = None
    own: dict[str, Definition] = field(default_factory=dict)
    later: dict[str, Span] = field(default_factory=dict)
    doubtful: set[str] = field(default_factory=set)
    incomplete: bool = False

    def define(self, name: str, role: Role, meaning: Meaning, span: Span | None) -> Definition:
        definition = Definition(name, role, meaning, span)
        self.own[name] = definition
        self.later.pop(name, None)
        return definition

    def find(self, name: str) -> Definition | None:
        """The definition that a name means here, or None."""
        if name in self.own:
            return self.own[name]
        found = self.parent.find(name) if self.parent else None
        return found if found and (self.sees is None or found.role in self.sees) else None

    def upcoming(self, name: str) -> Span | None:
        """Where a name will be defined, if it is further down."""
        return self.later.get(name) or (self.parent.upcoming(name) if self.parent else None)

    def hidden(self, name: str) -> Definition | None:
        """A definition of that name further out, which this body does not see."""
        if self.find(name):
            return None
        return (self.parent.find(name) or self.parent.hidden(name)) if self.parent else None

    def substituted(self, text: str) -> str:
        """An expression's text with the names of numbers replaced by them: `384 / 7` for `dim / subspaces`."""

        def value(match: re.Match[str]) -> str:
            definition = self.find(match.group())
            meaning = definition.meaning if definition else None
            number = isinstance(meaning, Constant) and isinstance(meaning.value, Fraction)
            return show_number(meaning.value) if number else match.group()  # type: ignore[union-attr]

        return _NAME.sub(value, one_line(text))

    def doubts(self, name: str) -> bool:
        """Whether a name that is not known may be one that something broken would have defined."""
        here = self.incomplete or name in self.doubtful
        return here or (self.parent is not None and self.parent.doubts(name))

    def visible(self) -> Iterator[Definition]:
        yield from self.own.values()
        if self.parent:
            for definition in self.parent.visible():
                if definition.name not in self.own and (self.sees is None or definition.role in self.sees):
                    yield definition
