"""Tokens that do not fit the grammar -> tokens that do, and what was wrong with them.

The tokens are read without building anything. Where one does not fit, the slip is named (`slips`) and mended if what
was meant is plain; else the text from the start of the statement to the start of the next is passed over, and a
placeholder stands in for it. Either way the statement's offset is remembered, and its node becomes `Broken`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from crate_dsl.language import slips
from crate_dsl.language.diagnostics import Diagnostic
from crate_dsl.language.place import ITEMS, STATEMENTS, Kind, Mend, Place, starts_statement
from crate_dsl.language.source import Source, Span
from crate_dsl.language.syntax import Identifier
from crate_dsl.language.tables import END, Tables
from crate_dsl.language.tokens import CLOSERS, Token

#: The shortest text of each kind; of a model or a block, the shortest head.
PLACEHOLDERS = {
    "items": ("import", "STRING"),
    "model": ("model", "NAME"),
    "block": ("block", "NAME", "(", ")"),
    "statements": ("NAME", "=", "NAME"),
    "settings": ("NAME", "=", "NAME"),
    "steps": ("NAME",),
}


class TooManyMistakes(Exception):
    """The rest of the file is not worth reading."""

    def __init__(self, diagnostics: list[Diagnostic]) -> None:
        super().__init__(diagnostics)
        self.diagnostics = diagnostics


@dataclass
class Recovered:
    """Tokens that fit the grammar; the offsets of statements that were changed, and the names of those passed over."""

    tokens: list[Token]
    diagnostics: list[Diagnostic] = field(default_factory=list)
    mended: set[int] = field(default_factory=set)
    skipped: dict[int, tuple[Identifier, ...]] = field(default_factory=dict)


@dataclass
class _Anchor:
    """The start of a statement, and what had been read before it."""

    index: int
    states: list[int]


@dataclass
class _Level:
    """An open bracket ("" for the file itself), and the start of the statement that is being read in it."""

    bracket: str
    anchor: _Anchor | None = None
    mixed: bool = False  # statements among steps: said once


def recover(source: Source, tables: Tables, tokens: list[Token], mended: set[int], most: int) -> Recovered:
    """Make the tokens fit. Statements at `mended` offsets have had their message, and get no second one.

    Raises:
        TooManyMistakes: there are more than `most`.
    """
    return _Recovery(source, tables, tokens, mended, most).run()


class _Recovery:
    def __init__(
        self, source: Source, tables: Tables, tokens: list[Token], mended: set[int], most: int
    ) -> None:
        self.source = source
        self.tables = tables
        end = tokens[-1].end if tokens else 0
        self.tokens = [*tokens, Token(END, "", end, end, True)]
        self.known = mended
        self.most = most
        self.found = Recovered([])
        self.states = [tables.start]
        self.levels = [_Level("", _Anchor(0, [tables.start]))]
        self.reported: set[int] = set()  # the offsets of tokens that have had their message
        self.attempts = 0

    def run(self) -> Recovered:
        index = 0
        while index < len(self.tokens):
            token = self.tokens[index]
            if self.begins(index):
                self.levels[-1].anchor = _Anchor(index, list(self.states))
            before = list(self.states)
            if self.interrupts(index) or not self.tables.advance(self.states, token.type):
                self.states = before
                index = self.mistake(index)
                continue
            if token.type in CLOSERS:
                self.levels.append(_Level(token.type))
            elif token.type in CLOSERS.values():
                self.levels.pop()
            index += 1
        self.found.tokens = self.tokens[:-1]
        return self.found

    # -------------------------------------------------------------- statements

    def begins(self, index: int) -> bool:
        """Whether a token begins a statement, a line of a chain, a setting or an item."""
        token = self.tokens[index]
        if self.levels[-1].bracket not in ("", "{"):
            return False
        if index == 0 or self.tokens[index - 1].type == "{":
            return token.type != "}"
        starts = token.type in STATEMENTS or token.type in ITEMS or (token.type == "NAME" and token.first)
        return starts and (self.tables.accepts(self.states, "}") or self.tables.accepts(self.states, END))

    def interrupts(self, index: int) -> bool:
        """Whether a statement begins although the one before it is not whole: `x =`, and `y = z` on the next line."""
        token = self.tokens[index]
        if token.type != "NAME" or self.levels[-1].bracket not in ("", "{"):
            return False
        return starts_statement(self.tokens, index) and not (
            self.tables.accepts(self.states, "NAME", "=") or self.tables.accepts(self.states, "NAME", ",")
        )

    def anchor(self) -> _Anchor:
        """The start of the innermost statement."""
        for level in reversed(self.levels):
            if level.anchor is not None:
                return level.anchor
        raise AssertionError("a file begins somewhere")

    def return_to(self, anchor: _Anchor) -> int:
        """Read on from the start of a statement, as if nothing after it had been read."""
        while self.levels[-1].anchor is not anchor:
            self.levels.pop()
        self.states = list(anchor.states)
        return anchor.index

    def kind(self, anchor: _Anchor) -> Kind:
        """What stands where a statement begins."""
        accepts = self.tables.accepts
        if accepts(anchor.states, "model"):
            return "items"
        if not accepts(anchor.states, "output", "NAME"):
            return "steps" if accepts(anchor.states, "NAME", "}") else "settings"
        if accepts(anchor.states, "NAME", "}") and not self.holds_statements(anchor.index):
            return "steps"
        return "statements"

    def holds_statements(self, index: int) -> bool:
        """Whether the rest of a body looks like a graph rather than a chain."""
        depth = 0
        for position in range(index, len(self.tokens)):
            token = self.tokens[position]
            depth += (token.type in CLOSERS) - (token.type in CLOSERS.values())
            if depth < 0:
                return False
            if depth == 0 and (starts_statement(self.tokens, position) or token.type in STATEMENTS):
                return True
        return False

    # -------------------------------------------------------------- mistakes

    def mistake(self, index: int) -> int:
        """Report the token that does not fit, and change the tokens so that reading can go on. Returns where."""
        anchor = self.anchor()
        kind = self.kind(anchor)
        level = self.levels[-1]
        mend = None
        self.attempts += 1
        here = self.tokens[index].start
        again = here in self.reported
        self.reported.add(here)
        if not (again or level.mixed or self.is_known(index, anchor, kind)):
            place = Place(
                self.source, self.tables, self.tokens, index, anchor.index, self.states, level.bracket, kind
            )
            slip = slips.find(place)
            self.found.diagnostics.append(slip.diagnostic)
            mend = slip.mend
            level.mixed = kind == "steps" and slip.diagnostic.code == "E0117"
        if len(self.found.diagnostics) > self.most or self.attempts > 10 * self.most:
            raise TooManyMistakes(self.found.diagnostics)
        if mend is not None:
            return self.apply(mend, index, anchor)
        return self.skip(index + again, anchor, kind)

    def is_known(self, index: int, anchor: _Anchor, kind: Kind) -> bool:
        """Whether the statement has had a message before, for a bracket or a character in it."""
        begin, end = (
            anchor.index,
            index + 1 if kind == "items" else self.next_start(anchor.index, index, kind),
        )
        end = min(end, len(self.tokens) - 1)
        return any(self.tokens[begin].start <= offset < self.tokens[end].start for offset in self.known)

    def apply(self, mend: Mend, index: int, anchor: _Anchor) -> int:
        self.tokens[mend.start : mend.end] = mend.tokens
        self.found.mended.add(self.tokens[anchor.index].start)
        return index if mend.start >= index else self.return_to(anchor)

    def skip(self, index: int, anchor: _Anchor, kind: Kind) -> int:
        """Put a placeholder where a statement cannot be read."""
        start = anchor.index
        end = self.next_start(start, index, kind)
        keeps_body = kind == "items" and self.tokens[start].type in ("model", "block")
        if keeps_body:
            end = self.opener(start, end)
            keeps_body = self.tokens[end].type == "{"
        if start == end:
            raise TooManyMistakes(self.found.diagnostics)
        region = self.tokens[start:end]
        offset = region[0].start
        self.found.mended.add(offset)
        self.found.skipped[offset] = self.names(region, kind)
        types = PLACEHOLDERS[region[0].type if keeps_body else kind]
        tokens = [Token(type, "_", offset, offset) for type in types]
        tokens[-1] = tokens[-1]._replace(end=region[-1].end)
        self.tokens[start:end] = tokens
        return self.return_to(anchor)

    def next_start(self, start: int, index: int, kind: Kind) -> int:
        """Where the next statement starts, or the bracket around this one closes."""
        depth = 0
        for position in range(start, len(self.tokens)):
            token = self.tokens[position]
            if token.type == END or (depth == 0 and token.type in CLOSERS.values()):
                return position
            if position >= index and position > start and depth == 0:
                if kind == "items":
                    starts = token.type in ITEMS and token.first
                else:
                    starts = starts_statement(self.tokens, position) or (
                        token.first
                        and (token.type in STATEMENTS or (kind == "steps" and token.type == "NAME"))
                    )
                if starts:
                    return position
            depth += (token.type in CLOSERS) - (token.type in CLOSERS.values())
        return len(self.tokens) - 1

    def opener(self, start: int, end: int) -> int:
        """Where the body of a model or a block opens, so that it is read although the head is not; else `end`."""
        depth = 0
        for position in range(start, end):
            token = self.tokens[position].type
            if token == "{" and depth == 0:
                return position
            depth += (token in CLOSERS) - (token in CLOSERS.values())
        return end

    def names(self, region: list[Token], kind: Kind) -> tuple[Identifier, ...]:
        """The names that a statement seems to bind: those before its `=` or `:`, or after its keyword."""
        names = []
        after = ""
        for token in region:
            if token.type == "NAME":
                names.append(Identifier(span=Span(self.source, token.start, token.end), text=token.text))
            elif token.type != "," and token.type not in (*STATEMENTS, *ITEMS):
                after = token.type
                break
        if kind not in ("items", "statements"):
            return ()
        if region[0].type in (*STATEMENTS, *ITEMS):
            return tuple(names[:1])
        return tuple(names) if after in ("=", ":", "==") or len(names) > 1 else ()
