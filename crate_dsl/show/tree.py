"""A syntax tree as an outline, and as data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from crate_dsl.language.syntax import Identifier, Node, Number, children


def outline(node: Node, depth: int = 0) -> Iterator[str]:
    """A line for each node: its kind, its names, words and numbers, and where it stands."""
    words = "".join(f" {word}" for word in _words(node))
    yield f"{'  ' * depth}{type(node).__name__}{words}  {node.span.line}:{node.span.column}"
    for child in children(node):
        if not isinstance(child, Identifier):
            yield from outline(child, depth + 1)


def as_data(node: Node) -> dict[str, Any]:
    """A tree as JSON takes it: the node's kind, its place, and its fields."""
    fields = {name: _plain(getattr(node, name)) for name in type(node).model_fields if name != "span"}
    return {"node": type(node).__name__, "line": node.span.line, "column": node.span.column, **fields}


def _plain(value: Any) -> Any:
    if isinstance(value, Identifier):
        return value.text
    if isinstance(value, Node):
        return as_data(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, bool | str) else str(value)


def _words(node: Node) -> Iterator[str]:
    """What a node itself says: its names, and the text of a leaf."""
    if isinstance(node, Number):
        yield node.text
        return
    for name in type(node).model_fields:
        for value in _items(getattr(node, name)):
            if isinstance(value, Identifier):
                yield value.text
            elif isinstance(value, str):
                yield value


def _items(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)
