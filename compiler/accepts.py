"""What may be written for an argument: read off the annotation of its operator's field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from crate_dsl.compiler.masks import Rule
from crate_dsl.compiler.operators import Form, Inside, Learned, Port, Tokens, Weight


@dataclass(frozen=True)
class Accepts:
    """What may be written for an argument."""

    words: tuple[str, ...] = ()
    forms: Mapping[str, type[Form]] = field(default_factory=dict)
    kinds: frozenset[type] = frozenset()
    items: Accepts | None = None

    @property
    def choices(self) -> list[str]:
        """The words that may stand here."""
        return [*self.words, *self.forms, *(("true", "false") if bool in self.kinds else ())]

    def describe(self) -> str:
        """The choices, as a sentence's object: `attention or softmax`, `a number, a learned number or a tensor`."""
        names = {
            float: "a number",
            int: "a whole number",
            bool: "true or false",
            str: "a text in quotes",
            Learned: "learn(…)",
            Weight: "the name of a `learn`",
            Port: "a tensor",
            Rule: "a rule over `query` and `key`",
            Tokens: "the name of a segment",
            Inside: "the name of a stage",
        }
        choices = [*self.words, *self.forms, *(text for kind, text in names.items() if kind in self.kinds)]
        if self.items is not None:
            choices.append("a list")
        return choices[0] if len(choices) == 1 else f"{', '.join(choices[:-1])} or {choices[-1]}"


@cache
def accepted(model: type[BaseModel]) -> Mapping[str, Accepts]:
    """What each field of an operator, form or recipe accepts, in positional order."""
    return {name: _accepts(info.annotation) for name, info in model.model_fields.items()}


def _accepts(annotation: Any) -> Accepts:
    words: list[str] = []
    forms: dict[str, type[Form]] = {}
    kinds: set[type] = set()
    items: Accepts | None = None
    for member in _members(annotation):
        if get_origin(member) is Literal:
            words.extend(get_args(member))
        elif get_origin(member) is tuple:
            items = _accepts(get_args(member)[0])
        elif isinstance(member, type) and issubclass(member, Form):
            forms[member.word] = member
        elif member is not type(None):
            kinds.add(member)
    return Accepts(tuple(words), forms, frozenset(kinds), items)


def _members(annotation: Any) -> list[Any]:
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [found for member in get_args(annotation) for found in _members(member)]
    return [annotation]


def spelled(name: str) -> str:
    """How the language spells a field: what Python keeps for itself has an underscore behind it there.

    >>> spelled("except_")
    'except'
    """
    return name.removesuffix("_")


def required(model: type[BaseModel]) -> list[str]:
    """The fields that have no default."""
    return [name for name, info in model.model_fields.items() if info.is_required()]
