"""Where a text stops fitting the grammar, and what may be asked about such a place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from crate_dsl.language.diagnostics import Diagnostic, Label
from crate_dsl.language.source import Source, Span
from crate_dsl.language.tables import END, Tables
from crate_dsl.language.tokens import Token

#: What stands where a statement could begin.
Kind = Literal["items", "statements", "steps", "settings"]

ITEMS = ("model", "block", "import")
#: Statements that only a model may hold.
MODEL_STATEMENTS = ("target", "objective", "variant", "train")
STATEMENTS = ("input", "learn", "stage", "output", *MODEL_STATEMENTS)
KEYWORDS = (*ITEMS, *STATEMENTS, "and", "or")
TYPES = ("float", "index", "bool")
COMPARISONS = ("==", "!=", "<", "<=", ">", ">=")
OPERATORS = (*COMPARISONS, "+", "-", "*", "/", "and", "or")
#: Names before a `=`, so far as they are looked for.
MOST_NAMES = 16
#: What a value can end with.
ENDS = ("NAME", "NUMBER", "STRING", ")", "]", "}")
#: What a value can start with.
VALUES = ("NAME", "NUMBER", "STRING", "(", "[", "learn")


@dataclass(frozen=True)
class Mend:
    """What was meant: these tokens in place of `tokens[start:end]`."""

    start: int
    end: int
    tokens: tuple[Token, ...]


@dataclass(frozen=True)
class Slip:
    """A mistake, and what was meant if that is plain; else the statement around it is passed over."""

    diagnostic: Diagnostic
    mend: Mend | None = None


def starts_statement(tokens: Sequence[Token], index: int) -> bool:
    """Whether a token, first on its line, looks like the start of a statement: a keyword, or a name before `=`."""
    token = tokens[index]
    if not token.first:
        return False
    after = tokens[index + 1].type if index + 1 < len(tokens) else END
    if token.type in STATEMENTS or token.type in ITEMS:
        return after not in ("=", "->", ",", ")") and (token.type != "learn" or after != "(")
    for later in range(index + 2, min(index + 2 * MOST_NAMES, len(tokens) - 1), 2):
        if token.type != "NAME" or after != ",":
            break
        token, after = tokens[later], tokens[later + 1].type
    return token.type == "NAME" and after == "="


@dataclass(frozen=True)
class Place:
    """Where a text stops fitting the grammar: at `tokens[index]`, in the statement that begins at `tokens[start]`.

    `states` is what was read before; `bracket` is the innermost open bracket ("" outside of all).
    """

    source: Source
    tables: Tables
    tokens: Sequence[Token]
    index: int
    start: int
    states: list[int]
    bracket: str
    kind: Kind

    @property
    def token(self) -> Token:
        return self.tokens[self.index]

    @property
    def before(self) -> Token:
        """The token before, or where the file begins."""
        return self.tokens[self.index - 1] if self.index else Token("", "", 0, 0)

    @property
    def after(self) -> Token:
        return self.tokens[min(self.index + 1, len(self.tokens) - 1)]

    @property
    def head(self) -> Token:
        return self.tokens[self.start]

    @property
    def starts(self) -> bool:
        named = self.token.type in (*STATEMENTS, *ITEMS) and self.after.type == "NAME"
        return starts_statement(self.tokens, self.index) or (named and self.complete)

    @property
    def complete(self) -> bool:
        """Whether what was read before could be a whole statement."""
        return self.before.type == "{" or self.fits("}") or self.fits(END)

    def fits(self, *symbols: str) -> bool:
        return self.tables.accepts(self.states, *symbols)

    def here(self, text: str = "") -> Label:
        """The token that does not fit."""
        return self.label(self.token, text)

    def there(self, text: str = "") -> Label:
        """The token before it."""
        return self.label(self.before, text)

    def label(self, token: Token, text: str = "", to: Token | None = None) -> Label:
        return Label(span=Span(self.source, token.start, (to or token).end), text=text)

    def gap(self, text: str) -> Label:
        """Just before the token, or at the end of the line before it."""
        start = self.before.end if self.token.first or self.token.type == END else self.token.start
        return Label(span=Span(self.source, start, start + 1), text=text)

    def slip(self, code: str, message: str, where: Label, *help: str, mend: Mend | None = None) -> Slip:
        return Slip(Diagnostic(code=code, message=message, where=where, help=help), mend)

    def insert(self, *types: str, at: int | None = None) -> Mend:
        """A mend that puts tokens before the one that does not fit."""
        at = self.index if at is None else at
        place = self.tokens[at - 1].end if at else 0
        tokens = (Token(kind, "_" if kind == "NAME" else kind, place, place) for kind in types)
        return Mend(at, at, tuple(tokens))

    def replace(self, kind: str, at: int | None = None) -> Mend:
        """A mend that reads a token as another one."""
        at = self.index if at is None else at
        return Mend(at, at + 1, (self.tokens[at]._replace(type=kind),))

    def drop(self) -> Mend:
        return Mend(self.index, self.index + 1, ())


def shown(token: Token) -> str:
    """A token as a message names it."""
    if token.type == END:
        return "the end of the file"
    return f"`{token.text}`" if len(token.text) <= 40 else f"`{token.text[:40]}…`"


def missing_brace(source: Source, head: Token, last: Token) -> Diagnostic:
    """The message for a model, a block, a variant or a recipe whose `{` is missing after `last`."""
    return Diagnostic(
        code="E0118",
        message=f"the `{head.text}` has no `{{`",
        where=Label(span=Span(source, last.end, last.end + 1), text="`{` expected here"),
        help=("what belongs to it stands between `{` and `}`",),
    )
