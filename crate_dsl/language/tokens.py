"""Text -> tokens and comments. The limits on text are checked here, before anything is built."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from crate_dsl.language.diagnostics import Diagnostic, Label
from crate_dsl.language.source import Source, Span
from crate_dsl.language.tables import Tables

#: A file is at most this long, in bytes.
MOST_BYTES = 256 * 1024
#: Brackets within brackets.
MOST_NESTING = 64
#: Digits of a number, and the size of its exponent.
MOST_DIGITS = 40
MOST_EXPONENT = 400
#: Mistakes of one file after which reading it stops.
MOST_MISTAKES = 20

CLOSERS = {"(": ")", "[": "]", "{": "}"}


class Token(NamedTuple):
    """A word or mark of the grammar. `type` is its own text, or NAME, NUMBER, STRING; `first` says that it is the first
    on its line.
    """

    type: str
    text: str
    start: int
    end: int
    first: bool = False


@dataclass
class Lexed:
    """A file's tokens. `mended` holds the starts of the tokens beside which something had to be changed or left out."""

    tokens: list[Token] = field(default_factory=list)
    comments: list[Span] = field(default_factory=list)
    diagnostics: list[Diagnostic] = field(default_factory=list)
    mended: set[int] = field(default_factory=set)


class Foreign(NamedTuple):
    """A mark from elsewhere: the mark of this language that was probably meant (None: nothing), and what to do."""

    meant: str | None
    help: str


#: Marks that other languages, word processors and papers write.
FOREIGN = {
    "**": Foreign("*", "there is no power: write the product out, `dim * dim`"),
    "//": Foreign("/", "`/` divides exactly; a comment starts with `#`"),
    "%": Foreign("/", "there is no remainder: `/` divides exactly"),
    "=>": Foreign("->", "write `->`"),
    "|>": Foreign("->", "write `->`"),
    ":=": Foreign("=", "write `=`"),
    "+=": Foreign("=", "a name is bound once: give the sum a name of its own, or write `residual { … }`"),
    "-=": Foreign("=", "a name is bound once: give the difference a name of its own"),
    "*=": Foreign("=", "a name is bound once: give the product a name of its own"),
    "&&": Foreign("and", "write `and`"),
    "||": Foreign("or", "write `or`"),
    "&": Foreign("and", "write `and`"),
    "|": Foreign("or", "write `or`"),
    "!": Foreign(None, "write the opposite comparison, for example `!=`"),
    ";": Foreign(None, "statements need no separator: leave it out"),
    "→": Foreign("->", "write `->`"),
    "⟶": Foreign("->", "write `->`"),
    "≤": Foreign("<=", "write `<=`"),
    "≥": Foreign(">=", "write `>=`"),
    "≠": Foreign("!=", "write `!=`"),
    "−": Foreign("-", "write the minus sign of the keyboard, `-`"),
    "–": Foreign("-", "write the minus sign of the keyboard, `-`"),
    "×": Foreign("*", "write `*`"),
    "·": Foreign("*", "write `*`"),
    "÷": Foreign("/", "write `/`"),
}


def tokenize(source: Source, tables: Tables) -> Lexed:
    """The tokens of a text. What is no token is reported and left out, or replaced by what was meant."""
    return _Lexer(source, tables).run()


@lru_cache(maxsize=1)
def _pattern(tables: Tables) -> tuple[re.Pattern[str], dict[str, str]]:
    """One pattern for all tokens, and the terminal that each of its groups stands for."""
    foreign = "|".join(re.escape(mark) for mark in sorted(FOREIGN, key=len, reverse=True) if mark != "!")
    terminals = {f"T{number}": name for number, name in enumerate(tables.patterns)}
    groups = [f"(?P<{group}>{tables.patterns[name]})" for group, name in terminals.items()]
    start = rf'(?P<FOREIGN>"""|/\*|{foreign}|!(?!=))'
    return re.compile("|".join([start, *groups, "(?P<JUNK>.)"]), re.DOTALL), terminals


class _Lexer:
    def __init__(self, source: Source, tables: Tables) -> None:
        self.source, self.text = source, source.text
        self.tables = tables
        self.found = Lexed()
        self.first = True  # on its line
        self.gaps: list[int] = []  # where something was left out

    def run(self) -> Lexed:
        pattern, terminals = _pattern(self.tables)
        keywords = frozenset(self.tables.keywords)
        tokens = self.found.tokens
        position = 1 if self.text.startswith("\ufeff") else 0
        while position < len(self.text) and len(self.found.diagnostics) < MOST_MISTAKES:
            # Matches follow one another without a gap, until one has to be read in another way.
            for match in pattern.finditer(self.text, position):
                start, position = match.span()
                group = match.lastgroup or ""
                name = terminals.get(group)
                if name == "SPACE":
                    self.first = self.first or "\n" in match[0] or "\r" in match[0]
                elif name == "COMMENT":
                    self.found.comments.append(Span(self.source, start, position))
                elif name is None:
                    position = self.foreign(start, position) if group == "FOREIGN" else self.junk(start)
                    break
                else:
                    text = match[0]
                    if name == "NUMBER":
                        text = self.number(text, start)
                    kind = text if name == "NAME" and text in keywords else name
                    tokens.append(Token(kind, text, start, position, self.first))
                    self.first = False
        self.mark_gaps()
        return self.found

    def report(self, diagnostic: Diagnostic) -> None:
        self.found.diagnostics.append(diagnostic)

    def label(self, start: int, end: int, text: str = "") -> Label:
        return Label(span=Span(self.source, start, end), text=text)

    def put(self, kind: str, start: int, end: int) -> None:
        """Add the token that was meant where something else stands."""
        self.found.tokens.append(Token(kind, self.text[start:end], start, end, self.first))
        self.found.mended.add(start)
        self.first = False

    def mark_gaps(self) -> None:
        """Mark the first token of each line on which something was left out."""
        tokens = self.found.tokens
        lines: dict[int, int] = {}
        for gap in self.gaps:
            line = self.source.position(gap)[0]
            if not lines:
                for token in reversed(tokens):
                    lines[self.source.position(token.start)[0]] = token.start
            if line in lines:
                self.found.mended.add(lines[line])

    def number(self, text: str, start: int) -> str:
        """Refuse a number that would take memory and time to compute with."""
        mantissa, _, exponent = text.lower().partition("e")
        digits = len(mantissa.replace(".", ""))
        if digits <= MOST_DIGITS and (len(exponent) <= 8 and abs(int(exponent or 0)) <= MOST_EXPONENT):
            return text
        where = self.label(start, start + len(text))
        exponents = f"an exponent between -{MOST_EXPONENT} and {MOST_EXPONENT}"
        limits = f"a number has at most {MOST_DIGITS} digits, and {exponents}"
        self.report(Diagnostic(code="E0007", message="this number is too long", where=where, help=(limits,)))
        self.found.mended.add(start)
        return "0"

    # -------------------------------------------------------------- what is no token

    def foreign(self, start: int, end: int) -> int:
        """A mark of another language. Returns where to go on."""
        mark = self.text[start:end]
        if mark in ('"""', "/*") or (mark == "//" and self.starts_comment(start)):
            return self.foreign_comment(mark, start)
        meant, help = FOREIGN[mark]
        message = f"`{mark}` is not a mark of this language"
        self.report(Diagnostic(code="E0106", message=message, where=self.label(start, end), help=(help,)))
        if meant is None:
            self.gaps.append(start)
        else:
            self.put(meant, start, end)
        return end

    def starts_comment(self, start: int) -> bool:
        """Whether `//` is a comment rather than a division: it stands outside brackets opened on its line."""
        line = self.text[self.text.rfind("\n", 0, start) + 1 : start]
        return line.count("(") + line.count("[") <= line.count(")") + line.count("]")

    def foreign_comment(self, mark: str, start: int) -> int:
        """A comment of another language, which is passed over as a whole."""
        close = {'"""': '"""', "/*": "*/", "//": "\n"}[mark]
        found = self.text.find(close, start + len(mark))
        end = len(self.text) if found < 0 else found + (0 if close == "\n" else len(close))
        where = self.label(start, start + len(mark))
        message = f"`{mark}` does not start a comment"
        self.report(
            Diagnostic(code="E0106", message=message, where=where, help=("a comment starts with `#`",))
        )
        self.gaps.append(start)
        return end

    def junk(self, start: int) -> int:
        """A character that starts no token. Returns where to go on."""
        character = self.text[start]
        if character in "\"'":
            return self.open_string(start)
        if character.isalpha():
            return self.foreign_word(start)
        end = start + 1
        while end < len(self.text) and self.text[end] == character:
            end += 1
        message = f"unknown character {_shown(character)}"
        help = (
            ("text in quotes stands between \" and \", or between ' and '",) if character in "“”„«»‘’" else ()
        )
        self.report(Diagnostic(code="E0105", message=message, where=self.label(start, end), help=help))
        self.gaps.append(start)
        return end

    def open_string(self, start: int) -> int:
        """Text in quotes without an end is taken to end with its line, before the closers and commas there."""
        line_end = re.compile(r"[\r\n]|\Z").search(self.text, start)
        assert line_end is not None
        end = start + len(self.text[start : line_end.start()].rstrip(" \t,)]}"))
        quote = self.text[start]
        where = self.label(start, end, f"the closing {quote} is missing")
        self.report(
            Diagnostic(code="E0104", message="this text in quotes does not end on its line", where=where)
        )
        self.put("STRING", start, max(end, start + 1))
        return max(end, start + 1)

    def foreign_word(self, start: int) -> int:
        """A word with letters that names may not have; it stands for a name."""
        tokens = self.found.tokens
        if tokens and tokens[-1].end == start and tokens[-1].text.isidentifier():
            before = tokens.pop()
            start, self.first = before.start, before.first
        match = re.compile(r"\w+").match(self.text, start)
        end = match.end() if match else start + 1
        message = f"`{self.text[start:end]}` has letters that a name cannot have"
        help = "a name is made of the letters a to z and A to Z, digits and `_`"
        self.report(Diagnostic(code="E0105", message=message, where=self.label(start, end), help=(help,)))
        self.put("NAME", start, end)
        return end


def _shown(character: str) -> str:
    """A character as a message can show it."""
    if character.isprintable() and not character.isspace():
        return f"`{character}`"
    import unicodedata

    name = unicodedata.name(character, "")
    return f"U+{ord(character):04X}" + (f" ({name.lower()})" if name else "")
