"""Brackets that do not match: which one is missing or too many, told by the statements around it and by indentation."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

from crate_dsl.language.diagnostics import Diagnostic, Label
from crate_dsl.language.place import ITEMS, MODEL_STATEMENTS, missing_brace, starts_statement
from crate_dsl.language.source import Source, Span
from crate_dsl.language.tokens import CLOSERS, MOST_MISTAKES, Token


@dataclass
class Balanced:
    """Tokens whose brackets match, and what was changed to make them so."""

    tokens: list[Token]
    diagnostics: list[Diagnostic] = field(default_factory=list)
    mended: set[int] = field(default_factory=set)


def balance(source: Source, tokens: list[Token]) -> Balanced:
    """Add the closers that are missing and leave out those that are too many."""
    if _match(tokens):
        return Balanced(tokens)
    # Hints find the place of a slip, but in a text that is arranged in another way they may find far too many.
    hinted, plain = (_Balancer(source, tokens, hints).run() for hints in (True, False))
    return hinted if len(hinted.diagnostics) <= 2 * len(plain.diagnostics) + 1 else plain


def deepest(tokens: list[Token]) -> tuple[int, Token | None]:
    """How deep brackets nest, and the bracket that is the deepest."""
    depth, most, where = 0, 0, None
    for token in tokens:
        if token.type in CLOSERS:
            depth += 1
            if depth > most:
                most, where = depth, token
        elif token.type in CLOSERS.values():
            depth = max(0, depth - 1)
    return most, where


def _match(tokens: list[Token]) -> bool:
    expected: list[str] = []
    for token in tokens:
        if token.type in CLOSERS:
            expected.append(CLOSERS[token.type])
        elif token.type in CLOSERS.values() and (not expected or expected.pop() != token.type):
            return False
    return not expected


@dataclass(frozen=True)
class _Open:
    token: Token
    indent: int  # of the line on which the bracket was opened

    @property
    def closer(self) -> str:
        return CLOSERS[self.token.type]


class _Balancer:
    def __init__(self, source: Source, tokens: list[Token], hints: bool) -> None:
        self.source = source
        self.given = tokens
        self.hints = hints
        self.indented = hints and self.is_indented()
        self.indent = 0  # of the current line
        self.open: list[_Open] = []
        self.found = Balanced([])

    def run(self) -> Balanced:
        for index, token in enumerate(self.given):
            if len(self.found.diagnostics) > MOST_MISTAKES:
                break
            if token.first:
                self.indent = self.column(token)
                if self.hints:
                    self.close_before(index)
            if token.type in CLOSERS:
                if self.hints and self.begins_body(index):
                    self.add_closer()
                self.open.append(_Open(token, self.indent))
            elif token.type in CLOSERS.values() and not self.closes(index):
                continue
            self.found.tokens.append(token)
        while self.open:
            self.add_closer()
        return self.found

    # -------------------------------------------------------------- what is missing

    def close_before(self, index: int) -> None:
        """Close what cannot be open any more where this line starts."""
        while self.open and self.must_be_closed(self.open[-1], index):
            self.add_closer()

    def must_be_closed(self, top: _Open, index: int) -> bool:
        token = self.given[index]
        if token.type in ITEMS or (token.type == "}" and top.token.type != "{"):
            return True
        starts = starts_statement(self.given, index)
        if top.token.type != "{":
            # A named argument on a line of its own looks like a binding, but comes after a comma.
            named = token.type == "NAME" and self.given[index - 1].type in (",", "(", "[")
            return starts and (not named or (self.indent <= top.indent and self.given[index - 1].type == ","))
        if token.type in MODEL_STATEMENTS and starts and len(self.open) > 1:
            return True
        if not self.indented:
            return False
        if token.type == "}":
            return self.indent < top.indent and any(other.indent <= self.indent for other in self.open[:-1])
        return self.indent <= top.indent and (token.type not in CLOSERS.values())

    def is_indented(self) -> bool:
        """Whether bodies stand further in than the lines that open them, nearly always."""
        votes = [0, 0]
        indent = 0
        for token, after in pairwise(self.given):
            indent = self.column(token) if token.first else indent
            if token.type == "{" and after.first and after.type != "}":
                votes[self.column(after) > indent] += 1
        return votes[1] > 3 * votes[0]

    def column(self, token: Token) -> int:
        return self.source.position(token.start)[1] - 1

    def begins_body(self, index: int) -> bool:
        """Whether a `{` at the end of a line begins a body although a parenthesis of that line is open."""
        if self.given[index].type != "{" or not self.open or self.open[-1].token.type != "(":
            return False
        ends_line = index + 1 < len(self.given) and self.given[index + 1].first
        opened = self.source.position(self.open[-1].token.start)[0]
        return ends_line and opened == self.source.position(self.given[index].start)[0]

    def add_closer(self) -> None:
        """Close the innermost bracket after the last token."""
        top = self.open.pop()
        last = self.found.tokens[-1]
        self.found.tokens.append(Token(top.closer, top.closer, last.end, last.end))
        self.found.diagnostics.append(_missing_closer(self.source, top.token, top.closer, last))
        self.mend(top.token.start)

    def mend(self, offset: int) -> None:
        if self.open:  # the bracket of a whole model leaves its statements sound
            self.found.mended.add(offset)

    # -------------------------------------------------------------- what is too many

    def closes(self, index: int) -> bool:
        """Close what this closer closes. False where it closes nothing and is left out."""
        token = self.given[index]
        if self.hints and not self.open and token.type == "}" and self.add_opener():
            return True
        if not any(top.closer == token.type for top in self.open):
            return self.stray(index)
        while self.open[-1].closer != token.type:
            self.add_closer()
        if self.hints and len(self.open) == 1 and token.type == "}" and not self.may_end_item(index):
            return self.stray(index)
        self.open.pop()
        return True

    def add_opener(self) -> bool:
        """Give the last model or block the `{` that it lacks; False where it has one."""
        tokens = self.found.tokens
        head = next((i for i in reversed(range(len(tokens))) if tokens[i].type in ("model", "block")), None)
        if head is None:
            return False
        index = head + 2
        if index < len(tokens) and tokens[index].type == "(":
            index = next((i for i in range(index, len(tokens)) if tokens[i].type == ")"), len(tokens)) + 1
        if index >= len(tokens) or tokens[index].type == "{":
            return False
        last = tokens[index - 1]
        tokens.insert(index, Token("{", "{", last.end, last.end))
        self.found.diagnostics.append(missing_brace(self.source, tokens[head], last))
        return True

    def may_end_item(self, index: int) -> bool:
        """Whether what follows a `}` may follow a whole model."""
        after = self.given[index + 1] if index + 1 < len(self.given) else None
        return after is None or after.type in ITEMS

    def stray(self, index: int) -> bool:
        """A closer that closes nothing: the wrong one for the innermost bracket, or one too many."""
        token = self.given[index]
        top = self.open[-1] if self.open else None
        if top and top.token.type != "{" and token.type != "}":
            self.found.diagnostics.append(_wrong_closer(self.source, top.token, top.closer, token))
            self.found.tokens.append(Token(top.closer, token.text, token.start, token.end, token.first))
            self.open.pop()
            self.found.mended.add(token.start)
        else:
            self.found.diagnostics.append(_stray_closer(self.source, token))
            if self.open and not token.first and self.found.tokens:
                self.found.mended.add(self.found.tokens[-1].start)
        return False


# ------------------------------------------------------------------ messages


def _missing_closer(source: Source, opener: Token, closer: str, last: Token) -> Diagnostic:
    return Diagnostic(
        code="E0102",
        message=f"this `{opener.text}` is not closed",
        where=Label(span=Span(source, opener.start, opener.end), text="opened here"),
        also=(
            Label(span=Span(source, last.end, last.end + 1), text=f"`{closer}` expected here, at the latest"),
        ),
    )


def _wrong_closer(source: Source, opener: Token, closer: str, found: Token) -> Diagnostic:
    return Diagnostic(
        code="E0103",
        message=f"`{opener.text}` is closed by `{found.text}`",
        where=Label(span=Span(source, found.start, found.end), text=f"`{closer}` expected here"),
        also=(Label(span=Span(source, opener.start, opener.end), text="opened here"),),
    )


def _stray_closer(source: Source, found: Token) -> Diagnostic:
    where = Label(span=Span(source, found.start, found.end))
    return Diagnostic(code="E0103", message=f"this `{found.text}` closes nothing", where=where)
