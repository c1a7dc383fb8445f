"""A small pretty printer: documents that know where they may be broken -> lines.

A `Group` stands on one line if it fits, or is broken at each `Break`; a `Fill` puts as many items on a line as fit. A
comment ends its line, whatever it stands in. Nothing recurses, so that depth is no concern.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

WIDTH = 120
INDENT = 4


@dataclass(frozen=True)
class Text:
    text: str

    @property
    def width(self) -> int | None:
        return len(self.text)


@dataclass(frozen=True)
class Break:
    """A place for a new line: `flat` where there is none, `broken` before it where there is one."""

    flat: str = " "
    broken: str = ""

    @property
    def width(self) -> int | None:
        return len(self.flat)


@dataclass(frozen=True)
class Newline:
    """A new line in any case, after an empty one if `blank`."""

    blank: bool = False
    width = None


@dataclass(frozen=True)
class Comment:
    """A comment, at the end of a line of text or on a line of its own."""

    text: str
    own_line: bool
    width = None


@dataclass(frozen=True)
class Sequence:
    """Documents one after another; further in if `nested`, and a unit that is broken or not if `group`."""

    parts: tuple[Doc, ...]
    nested: bool = False
    group: bool = False
    width: int | None = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "width", _total(self.parts))


@dataclass(frozen=True)
class Fill:
    """Items with a break between them, as many on a line as fit, all but the first further in.

    What does not fit on a line at all starts on one, and so does what follows it; but the first item stays in place.
    """

    items: tuple[Doc, ...]
    width: int | None = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "width", _total((*self.items, Text(" " * (len(self.items) - 1)))))


@dataclass(frozen=True)
class _Rest:
    """The items of a fill that are still to be written."""

    fill: Fill
    index: int
    width = None


Doc = Text | Break | Newline | Comment | Sequence | Fill | _Rest


def _total(parts: Iterable[Doc]) -> int | None:
    """The width on one line; None where something in it ends its line."""
    total = 0
    for part in parts:
        if part.width is None:
            return None
        total += part.width
    return total


def text(*parts: Doc | str) -> Sequence:
    """Documents one after another."""
    return Sequence(tuple(Text(part) if isinstance(part, str) else part for part in parts))


def group(*parts: Doc | str) -> Sequence:
    """Documents on one line if they fit, else broken at each of their own breaks."""
    return Sequence(text(*parts).parts, group=True)


def nest(*parts: Doc | str) -> Sequence:
    """Documents whose further lines stand further in."""
    return Sequence(text(*parts).parts, nested=True)


def render(doc: Doc) -> str:
    """The document as text."""
    return _Printer().run(doc)


class _Printer:
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.line = ""
        self.must_break = False  # after a comment
        self.commented = -1  # the number of the last line that ends in a comment

    def run(self, doc: Doc) -> str:
        todo: list[tuple[Doc, int, bool]] = [(doc, 0, False)]
        while todo:
            part, indent, flat = todo.pop()
            if isinstance(part, Text):
                self.write(part.text, indent)
            elif isinstance(part, Break):
                if self.must_break or not flat:
                    self.line += part.broken if self.line and not self.must_break else ""
                    self.newline()
                else:
                    self.write(part.flat, indent)
            elif isinstance(part, Newline):
                self.newline()
                if part.blank and self.lines and self.lines[-1]:
                    self.lines.append("")
            elif isinstance(part, Comment):
                self.comment(part, indent)
            elif isinstance(part, Sequence):
                indent += INDENT * part.nested
                flat = flat or (part.group and self.fits(part, indent))
                todo.extend((inner, indent, flat) for inner in reversed(part.parts))
            elif isinstance(part, Fill):
                todo.append((_Rest(part, 0), indent, flat))
            else:
                todo.extend(self.rest(part, indent, flat))
        self.newline()
        return "\n".join(self.lines).strip("\n") + "\n"

    def rest(self, rest: _Rest, indent: int, flat: bool) -> list[tuple[Doc, int, bool]]:
        """Break or go on before the next item of a fill. Returns what is to be done next, the last first."""
        items, index = rest.fill.items, rest.index
        if index:
            after_block = items[index - 1].width is None and index > 1
            if flat or (self.fits(text(" ", items[index]), indent) and not after_block):
                self.write(" ", indent)
            else:
                self.newline()
        todo: list[tuple[Doc, int, bool]] = [(items[index], indent + INDENT * (index > 0), flat)]
        return [(_Rest(rest.fill, index + 1), indent, flat), *todo] if index + 1 < len(items) else todo

    def fits(self, doc: Doc, indent: int) -> bool:
        column = len(self.line) or indent
        return doc.width is not None and not self.must_break and column + doc.width <= WIDTH

    def write(self, text: str, indent: int) -> None:
        if self.must_break:
            self.newline()
        if text:
            self.line = self.line or " " * indent
            self.line += text

    def newline(self) -> None:
        """End the line; an empty one is none."""
        if self.line.strip():
            self.lines.append(self.line.rstrip())
        self.line, self.must_break = "", False

    def comment(self, comment: Comment, indent: int) -> None:
        """Write a comment. One that ended a line of text does so again, if only a break came between."""
        if (
            not self.line
            and not comment.own_line
            and self.lines
            and self.commented != len(self.lines) - 1
            and self.lines[-1]
        ):
            self.lines[-1] += f"  {comment.text}"
            self.commented = len(self.lines) - 1
            return
        if comment.own_line or self.must_break:
            self.newline()
        self.line = f"{self.line.rstrip()}  {comment.text}" if self.line else " " * indent + comment.text
        self.commented = len(self.lines)
        self.must_break = True
