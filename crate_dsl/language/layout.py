"""A small pretty printer: documents that know where they may be broken -> lines.

A document has a width, None where something in it ends its line, and is tall if it has several lines in any case. A
group stands on one line if it fits, or is broken at each `Break`; a `Fill` puts as many items on a line as fit. A
comment ends its line, whatever it stands in; those of neighbouring lines stand one below the other. Nothing recurses,
so that depth is no concern.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

WIDTH = 120
INDENT = 4
#: How far to the right lines may begin because another one does.
FARTHEST = 72
#: Spaces before a comment at the end of a line.
APART = "  "


@dataclass(frozen=True)
class Text:
    text: str
    tall = False

    @property
    def width(self) -> int | None:
        return len(self.text)


@dataclass(frozen=True)
class Break:
    """A place for a new line: `flat` where there is none, `broken` before it where there is one."""

    flat: str = " "
    broken: str = ""
    tall = False

    @property
    def width(self) -> int | None:
        return len(self.flat)


@dataclass(frozen=True)
class Newline:
    """A new line in any case, after an empty one if `blank`."""

    blank: bool = False
    width = None
    tall = True


@dataclass(frozen=True)
class Comment:
    """A comment, at the end of a line of text or on a line of its own."""

    text: str
    own_line: bool
    width = None
    tall = False


@dataclass(frozen=True)
class Sequence:
    """Documents one after another; a unit that is broken or not if `group`. Its further lines stand further in if
    `nested`, and below its beginning if `hanging`; where that is too far to the right, it begins on a line of its own.
    """

    parts: tuple[Doc, ...]
    nested: bool = False
    group: bool = False
    hanging: bool = False
    width: int | None = field(init=False)
    tall: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "width", _total(self.parts))
        object.__setattr__(self, "tall", any(part.tall for part in self.parts))


@dataclass(frozen=True)
class Fill:
    """Items with a break between them, as many on a line as fit, all but the first further in by `indent`.

    What does not fit on a line at all starts on one, and so does what follows it; but the first item stays in place,
    and so does the second where it has several lines in any case.
    """

    items: tuple[Doc, ...]
    indent: int = INDENT
    width: int | None = field(init=False)
    tall: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tall", any(item.tall for item in self.items))
        object.__setattr__(self, "width", _total((*self.items, Text(" " * (len(self.items) - 1)))))


@dataclass(frozen=True)
class _Rest:
    """The items of a fill that are still to be written."""

    fill: Fill
    index: int
    width = None
    tall = False


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


def hang(*parts: Doc | str) -> Sequence:
    """Documents whose further lines stand below their beginning."""
    return Sequence(text(*parts).parts, hanging=True)


def render(doc: Doc) -> str:
    """The document as text."""
    return _Printer().run(doc)


class _Printer:
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.line = ""
        self.must_break = False  # after a comment
        self.commented = -1  # the number of the last line that ends in a comment
        self.remarked: dict[int, int] = {}  # where the text before a comment ends, by number of line

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
                if part.hanging and not flat and not self.fits(part, indent):
                    indent = self.hanging(indent)
                todo.extend((inner, indent, flat) for inner in reversed(part.parts))
            elif isinstance(part, Fill):
                todo.append((_Rest(part, 0), indent, flat))
            else:
                todo.extend(self.rest(part, indent, flat))
        self.newline()
        self.align_comments()
        return "\n".join(self.lines).strip("\n") + "\n"

    def hanging(self, indent: int) -> int:
        """Where further lines stand: below this place, or, where that is too far to the right, further in."""
        column = len(self.line) or indent
        if column <= FARTHEST and not self.must_break:
            return column
        self.newline()
        return indent + INDENT

    def align_comments(self) -> None:
        """Bring the comments at the ends of neighbouring lines below each other, where all of them still fit."""
        first = 0
        for number in range(len(self.lines) + 1):
            if number in self.remarked:
                continue
            together = range(first, number)
            first = number + 1
            farthest = max((self.remarked[line] for line in together), default=0)
            aligned = [
                self.lines[line][: self.remarked[line]].ljust(farthest)
                + self.lines[line][self.remarked[line] :]
                for line in together
            ]
            if all(len(line) <= WIDTH for line in aligned):
                self.lines[together.start : together.stop] = aligned

    def rest(self, rest: _Rest, indent: int, flat: bool) -> list[tuple[Doc, int, bool]]:
        """Break or go on before the next item of a fill. Returns what is to be done next, the last first."""
        items, index = rest.fill.items, rest.index
        further = 0
        if index:
            after_block = items[index - 1].tall and index > 1
            here = index == 1 and not self.must_break
            stays = here and items[1].tall and not items[0].tall
            if flat or stays or (self.fits(text(" ", items[index]), indent) and not after_block):
                self.write(" ", indent)
                further = 0 if stays else rest.fill.indent
            else:
                self.newline()
                further = rest.fill.indent
        todo: list[tuple[Doc, int, bool]] = [(items[index], indent + further, flat)]
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
            self.commented = len(self.lines) - 1
            self.remarked[self.commented] = len(self.lines[-1])
            self.lines[-1] += f"{APART}{comment.text}"
            return
        if comment.own_line or self.must_break:
            self.newline()
        if self.line:
            self.remarked[len(self.lines)] = len(self.line.rstrip())
            self.line = f"{self.line.rstrip()}{APART}{comment.text}"
        else:
            self.line = " " * indent + comment.text
        self.commented = len(self.lines)
        self.must_break = True
