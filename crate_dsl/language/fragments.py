"""A value alone, as it is written on a command line: `192`, `tied`, `[1, 2]`, `adamw(lr = 2e-3)`."""

from __future__ import annotations

from typing import Any

from crate_dsl.language.parser import parse
from crate_dsl.language.source import Source, Span
from crate_dsl.language.syntax import Expression, Node

_BEFORE, _AFTER = "model m(value = ", ") { }"


def parse_expression(name: str, text: str) -> Expression | None:
    """The expression that a text is, its places those of the text, called `name`; None where it is none, or several.

    >>> parse_expression("--set", "[1, 2]").span.text
    '[1, 2]'
    """
    parsed = parse(Source(name, f"{_BEFORE}{text}{_AFTER}"))
    models = parsed.tree.models
    if parsed.diagnostics or len(parsed.tree.items) != 1 or not models or models[0].statements:
        return None
    parameters = models[0].parameters
    if len(parameters) != 1 or parameters[0].default is None:
        return None
    moved: Expression = _moved(parameters[0].default, Source(name, text), len(_BEFORE))
    return moved


def _moved(value: Any, source: Source, by: int) -> Any:
    """A node whose places are those of the text that the user wrote."""
    if isinstance(value, Span):
        return Span(source, value.start - by, value.end - by)
    if isinstance(value, Node):
        fields = {name: _moved(getattr(value, name), source, by) for name in type(value).model_fields}
        return value.model_copy(update=fields)
    return tuple(_moved(item, source, by) for item in value) if isinstance(value, tuple) else value
