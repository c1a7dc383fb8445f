"""Text -> syntax tree, with every mistake of the file at once."""

from __future__ import annotations

from dataclasses import dataclass

from crate_dsl.language.brackets import balance, deepest
from crate_dsl.language.builder import Builder
from crate_dsl.language.diagnostics import Diagnostic, Label
from crate_dsl.language.reading import read_source, too_large
from crate_dsl.language.recovery import TooManyMistakes, recover
from crate_dsl.language.source import Source, Span
from crate_dsl.language.syntax import BrokenItem, File, Node, children
from crate_dsl.language.tables import load
from crate_dsl.language.tokens import MOST_BYTES, MOST_MISTAKES, MOST_NESTING, tokenize

__all__ = ["Parsed", "parse", "read_source"]

#: Nodes within nodes: far more than brackets of the permitted nesting hold in practice, and what walkers can bear.
MOST_DEPTH = 200


@dataclass(frozen=True)
class Parsed:
    """A file's tree, its comments in order, and its mistakes in order.

    Statements with a mistake stand in the tree as `Broken` or `BrokenItem`, with the names that they would have bound.
    Where a file could not be read at all, its tree is one `BrokenItem` without a name.
    """

    tree: File
    comments: tuple[Span, ...]
    diagnostics: tuple[Diagnostic, ...]


def parse(source: Source) -> Parsed:
    """Read a text. Never raises for what it says: every mistake is in `diagnostics`.

    >>> parse(Source("example.crate", "model small { input x : float[3] y = x -> norm output y }")).diagnostics
    ()
    """
    if len(source.text) > MOST_BYTES or len(source.text.encode(errors="replace")) > MOST_BYTES:
        return _unreadable(source, (), [too_large()])
    tables = load()
    lexed = tokenize(source, tables)
    comments = tuple(lexed.comments)
    depth, bracket = deepest(lexed.tokens)
    if depth > MOST_NESTING and bracket is not None:
        return _unreadable(source, comments, [*lexed.diagnostics, _too_deep(source, bracket.start)])
    if len(lexed.diagnostics) >= MOST_MISTAKES:
        return _unreadable(source, comments, lexed.diagnostics)
    balanced = balance(source, lexed.tokens)
    found = [*lexed.diagnostics, *balanced.diagnostics]
    if len(found) > MOST_MISTAKES:
        return _unreadable(source, comments, found)
    mended = lexed.mended | balanced.mended

    builder = Builder(source, mended)
    tree = None if found else builder.build(tables, balanced.tokens)
    if tree is None:
        try:
            recovered = recover(source, tables, balanced.tokens, mended, MOST_MISTAKES)
        except TooManyMistakes as stopped:
            return _unreadable(source, comments, [*found, *stopped.diagnostics])
        found.extend(recovered.diagnostics)
        builder = Builder(source, mended | recovered.mended, recovered.skipped)
        tree = builder.build(tables, recovered.tokens)
        if tree is None:
            return _unreadable(source, comments, found)
    found.extend(builder.diagnostics)
    deep = _deep_node(tree) if depth > MOST_NESTING // 4 else None
    if deep is not None:
        return _unreadable(source, comments, [*found, _too_deep(source, deep.span.start)])
    if len(found) > MOST_MISTAKES:
        return _unreadable(source, comments, found)
    return Parsed(tree, comments, _in_order(found))


def _in_order(diagnostics: list[Diagnostic]) -> tuple[Diagnostic, ...]:
    return tuple(sorted(diagnostics, key=Diagnostic.order))


def _unreadable(source: Source, comments: tuple[Span, ...], diagnostics: list[Diagnostic]) -> Parsed:
    """What is left of a file that cannot be read as a whole: a part of its mistakes."""
    shown = _in_order(diagnostics)
    if len(shown) >= MOST_MISTAKES:
        shown = shown[:MOST_MISTAKES]
        message = f"more than {MOST_MISTAKES} mistakes: the rest of the file was not read"
        last = shown[-1].where
        end = last.span.end if last else len(source.text)
        where = Label(span=Span(source, end, end + 1))
        shown = (*shown, Diagnostic(code="E0008", message=message, where=where))
    whole = Span(source, 0, len(source.text))
    return Parsed(File(span=whole, items=(BrokenItem(span=whole, names=()),)), comments, shown)


def _too_deep(source: Source, offset: int) -> Diagnostic:
    return Diagnostic(
        code="E0006",
        message="this is nested too deeply",
        where=Label(span=Span(source, offset, offset + 1)),
        help=(
            f"at most {MOST_NESTING} brackets stand within one another: give what stands inside a name of its own",
        ),
    )


def _deep_node(tree: Node) -> Node | None:
    """A node that lies deeper than walkers can bear."""
    level: list[Node] = [tree]
    for _ in range(MOST_DEPTH):
        level = [child for node in level for child in children(node)]
    return level[0] if level else None
