"""The slips that happen to everybody, each with a message of its own and, where what was meant is plain, a mend.

A rule looks at the place where a text stops fitting the grammar. The first rule that knows the slip names it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from crate_dsl.language.diagnostics import Diagnostic, Label, did_you_mean
from crate_dsl.language.source import Source, Span
from crate_dsl.language.syntax import Expression, Pipe
from crate_dsl.language.tables import END, Tables
from crate_dsl.language.tokens import CLOSERS, Token

ITEMS = ("model", "block", "import")
#: Statements that only a model may hold.
MODEL_STATEMENTS = ("target", "objective", "variant", "train")
STATEMENTS = ("input", "learn", "stage", "output", *MODEL_STATEMENTS)
KEYWORDS = (*ITEMS, *STATEMENTS, "and", "or")
TYPES = ("float", "index", "bool")
COMPARISONS = ("==", "!=", "<", "<=", ">", ">=")
OPERATORS = (*COMPARISONS, "+", "-", "*", "/", "and", "or")
#: What a value can end with.
ENDS = ("NAME", "NUMBER", "STRING", ")", "]", "}")
#: What a value can start with.
VALUES = ("NAME", "NUMBER", "STRING", "(", "[", "learn")

#: Words of other languages, and what is written here.
FOREIGN_WORDS = {
    "def": "a template is written `block name(a, b) { … }`",
    "fn": "a template is written `block name(a, b) { … }`",
    "func": "a template is written `block name(a, b) { … }`",
    "function": "a template is written `block name(a, b) { … }`",
    "class": "a network is written `model name(a, b) { … }`",
    "if": "there are no conditions: write two models, or a `variant`",
    "elif": "there are no conditions: write two models, or a `variant`",
    "else": "there are no conditions: write two models, or a `variant`",
    "for": "`repeat(n) { … }` applies steps n times, `each { … }` to every item",
    "while": "`repeat(n) { … }` applies steps n times",
    "in": "`repeat(n) { … }` applies steps n times, `each { … }` to every item",
    "return": "what a model or a body gives back is written `output y`",
    "yield": "what a model or a body gives back is written `output y`",
    "lambda": "a template is written `block name(a, b) { … }`",
    "from": "the blocks of another file are had by `import \"blocks.crate\"`",
    "with": "a binding is written `name = value`",
    "let": "a binding needs no keyword: `name = value`",
    "var": "a binding needs no keyword: `name = value`",
    "val": "a binding needs no keyword: `name = value`",
    "const": "a binding needs no keyword: `name = value`",
    "not": "write the opposite comparison, for example `!=`",
    "is": "two values are compared by `==`",
}
#: Those of them that stand in the middle of an expression.
FOREIGN_INFIX = ("if", "else", "for", "in", "not", "is", "lambda")


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
    """Whether a token looks like the start of a statement or an item: a keyword, or a name before `=`, first on its line."""
    token = tokens[index]
    if not token.first:
        return False
    after = tokens[index + 1].type if index + 1 < len(tokens) else END
    if token.type in STATEMENTS or token.type in ITEMS:
        return after not in ("=", "->", ",", ")") and (token.type != "learn" or after != "(")
    while token.type == "NAME" and after == "," and index + 3 < len(tokens):
        index += 2
        token, after = tokens[index], tokens[index + 1].type
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
    kind: Literal["items", "statements", "steps", "settings"]

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
        return Mend(at, at, tuple(Token(kind, "_" if kind == "NAME" else kind, place, place) for kind in types))

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


# ------------------------------------------------------------------ brackets


def missing_closer(source: Source, opener: Token, closer: str, last: Token) -> Diagnostic:
    return Diagnostic(
        code="E0102",
        message=f"this `{opener.text}` is not closed",
        where=Label(span=Span(source, opener.start, opener.end), text="opened here"),
        also=(Label(span=Span(source, last.end, last.end + 1), text=f"`{closer}` expected here, at the latest"),),
    )


def wrong_closer(source: Source, opener: Token, closer: str, found: Token) -> Diagnostic:
    return Diagnostic(
        code="E0103",
        message=f"`{opener.text}` is closed by `{found.text}`",
        where=Label(span=Span(source, found.start, found.end), text=f"`{closer}` expected here"),
        also=(Label(span=Span(source, opener.start, opener.end), text="opened here"),),
    )


def missing_brace(source: Source, head: Token, last: Token) -> Diagnostic:
    return Diagnostic(
        code="E0118",
        message=f"the `{head.text}` has no `{{`",
        where=Label(span=Span(source, last.end, last.end + 1), text="`{` expected here"),
        help=("what belongs to it stands between `{` and `}`",),
    )


def stray_closer(source: Source, found: Token) -> Diagnostic:
    where = Label(span=Span(source, found.start, found.end))
    return Diagnostic(code="E0103", message=f"this `{found.text}` closes nothing", where=where)


# ------------------------------------------------------------------ what fits the grammar and is refused


def pipeline_as_operand(span: Span, operands: Sequence[Expression]) -> Diagnostic:
    """`z + z -> f`: both readings, so that nobody has to know which one binds tighter."""
    pipe = next(operand for operand in operands if isinstance(operand, Pipe))
    left, inner, right = (_short(text) for text in _split(span, pipe.span))
    readings = [f"{left}({inner}){right}"]
    if operands[-1] is pipe:
        value, arrow, steps = inner.partition("->")
        readings.append(f"({left}{value.rstrip()}) {arrow}{steps}")
    return Diagnostic(
        code="E0115",
        message="a pipeline that is an operand stands in parentheses",
        where=Label(span=pipe.span),
        help=("write " + " or ".join(f"`{reading}`" for reading in readings),),
    )


def _split(whole: Span, part: Span) -> tuple[str, str, str]:
    text = whole.source.text
    return text[whole.start : part.start], text[part.start : part.end], text[part.end : whole.end]


def _short(text: str) -> str:
    """A stretch of text on one line."""
    words = " ".join(text.split()) if text.strip() else ""
    before, after = " " * text[:1].isspace(), " " * text[-1:].isspace()
    return f"{before}{words if len(words) <= 40 else words[:20] + ' … ' + words[-12:]}{after}"


def model_only(statement: Span) -> Diagnostic:
    keyword = statement.text.split(None, 1)[0].split("{", 1)[0]
    return Diagnostic(
        code="E0117",
        message=f"`{keyword}` stands in a body",
        where=Label(span=Span(statement.source, statement.start, statement.start + len(keyword))),
        help=("a graph body holds `input`, `learn`, `stage`, bindings and `output`; the rest belongs to the model",),
    )


# ------------------------------------------------------------------ rules, in the order in which they are tried

Rule = Callable[[Place], Slip | None]
RULES: list[Rule] = []


def rule(function: Rule) -> Rule:
    RULES.append(function)
    return function


def find(place: Place) -> Slip:
    """What went wrong at a place."""
    for known in RULES:
        slip = known(place)
        if slip is not None:
            return slip
    raise AssertionError("the last rule knows every slip")


@rule
def foreign_word(p: Place) -> Slip | None:
    """`def`, `if`, `for`, …"""
    for token in (p.head, *p.tokens[max(p.start, p.index - 2) : p.index + 1]):
        known = FOREIGN_WORDS if token is p.head else FOREIGN_INFIX
        if token.type == "NAME" and token.text in known:
            message = f"`{token.text}` is not a word of this language"
            return p.slip("E0107", message, p.label(token), FOREIGN_WORDS[token.text])
    return None


@rule
def outside_model(p: Place) -> Slip | None:
    """A statement, or anything else, where only models, blocks and imports stand."""
    if p.bracket or not p.fits("model"):
        return None
    if p.token.type in STATEMENTS or p.starts:
        help = "statements stand inside a model: `model name(dim = 384) { … }`"
        return p.slip("E0117", f"{shown(p.token)} stands outside every model", p.label(p.token), help)
    near = did_you_mean(p.token.text, ITEMS)
    help = f"did you mean `{near}`?" if near else "a file is made of `import`, `block` and `model`"
    return p.slip("E0101", f"{shown(p.token)} does not start a model or a block", p.label(p.token), help)


@rule
def path_without_quotes(p: Place) -> Slip | None:
    if p.before.type != "import":
        return None
    help = "the file is named in quotes: `import \"blocks.crate\"`"
    return p.slip("E0120", "`import` takes the name of a file in quotes", p.label(p.token), help)


@rule
def misplaced(p: Place) -> Slip | None:
    """A statement among steps or settings, an item in a model."""
    if not (p.bracket == "{" and p.starts and p.complete):
        return None
    if p.token.type in ITEMS:
        help = f"a {p.token.text} stands at the top of the file" if p.token.type != "import" else "imports stand at the top of the file"
        return p.slip("E0117", f"{shown(p.token)} stands inside another model or block", p.label(p.token), help)
    what, help = {
        "steps": ("among steps", "a body is a chain of steps, or a graph that begins with `input` and ends in `output`"),
        "settings": ("among settings", "`variant` and `train` hold settings, `name = value`"),
    }.get(p.kind, ("here", "a model holds statements"))
    return p.slip("E0117", f"the statement {shown(p.token)} stands {what}", p.label(p.token), help)


@rule
def empty_body(p: Place) -> Slip | None:
    if not (p.before.type == "{" and p.token.type == "}"):
        return None
    help = "a body holds steps, or a graph that begins with `input` and ends in `output`"
    where = p.label(p.before, to=p.token)
    return p.slip("E0116", "this body is empty", where, help, mend=p.insert("NAME"))


@rule
def type_missing(p: Place) -> Slip | None:
    """`learn c`, `target label = index(classes)`, `input x :`."""
    example = f"write `{p.head.text} {p.before.text} : float[dim]`, or another type"
    if p.fits(":") and not p.fits("="):
        message = f"`{p.before.text}` has no type"
        if p.token.type == "=" and p.after.text in TYPES:
            where = p.label(p.token, "`:` expected here")
            return p.slip("E0112", message, where, "a type follows `:`", mend=p.replace(":"))
        if p.token.type == "=":
            return p.slip("E0112", message, p.label(p.token, "`: type` expected before this"), example, mend=p.insert(":", "NAME"))
        if p.token.type == "NAME" and p.token.text in TYPES:
            return p.slip("E0112", f"`:` is missing before the type of `{p.before.text}`", p.gap("`:` expected here"), mend=p.insert(":"))
        if p.token.type in (END, "}") or p.starts:
            return p.slip("E0112", message, p.label(p.before, "`: type` expected after this"), example)
    if p.before.type == ":" and (p.token.type in (END, "}", "=") or p.starts):
        return p.slip("E0112", f"`{p.tokens[p.index - 2].text}` has no type", p.label(p.before, "a type expected after this"))
    return None


@rule
def two_values(p: Place) -> Slip | None:
    """`y = 3x`, `y = a b`, `output a b`: a second value on the line was taken for the start of the next statement."""
    if p.index - p.start < 3 or p.bracket != "{" or p.token.type in ("=", ","):
        return None
    first, second = p.tokens[p.index - 2 : p.index]
    if first.type not in ENDS or second.type != "NAME" or second.first:
        return None
    if first.type == "NUMBER" and first.end == second.start:
        return _number_runs_on(p, first, second)
    if p.head.type in ("input", "learn", "target") and second.text in TYPES:
        where = p.label(second, "`:` expected before this")
        return p.slip("E0112", f"`:` is missing before the type of {shown(first)}", where)
    if p.head.type == "output":
        where = Label(span=Span(p.source, second.start, second.start + 1), text="`,` expected before this")
        return p.slip("E0109", "a comma is missing", where, mend=p.insert(",", at=p.index - 1))
    message = f"{shown(first)} and {shown(second)} stand side by side"
    return p.slip("E0101", message, p.label(second, "an operator or `->` expected before this"))


def _number_runs_on(p: Place, number: Token, rest: Token) -> Slip:
    written = number.text + rest.text
    digits = written.replace("_", "")
    help = f"write `{digits}`" if digits.isdecimal() else "a product is written `2 * x`; a name does not start with a digit"
    return p.slip("E0101", f"`{written}` is neither a number nor a name", p.label(number, to=rest), help)


@rule
def no_statement(p: Place) -> Slip | None:
    """A word that starts no statement: a keyword mistyped, or a step without a value."""
    if not (p.index == p.start + 1 and p.head.type == "NAME" and p.kind == "statements"):
        return None
    near = did_you_mean(p.head.text, STATEMENTS)
    if near and p.token.type in ("NAME", "{", "STRING", "["):
        return p.slip("E0101", f"`{p.head.text}` does not start a statement", p.label(p.head), f"did you mean `{near}`?")
    if p.token.type not in ("->", "}", "(", "{", ".", "[", *OPERATORS) and not p.token.first:
        return None
    written = f"{p.head.text} …" if p.token.type in ("->", *OPERATORS) else f"… -> {p.head.text}"
    help = f"a value is given a name, `name = {written}`, or given back, `output {written}`"
    return p.slip("E0101", f"`{p.head.text}` does not start a statement", p.label(p.head), help)


@rule
def stage_of_a_value(p: Place) -> Slip | None:
    """`stage e = (x + 1) -> f`."""
    if not (p.head.type == "stage" and p.before.type == "=" and p.index == p.start + 3 and p.token.type in (*VALUES, "-")):
        return None
    name = p.tokens[p.start + 1].text
    help = f"a value is given a name by `{name} = …`"
    return p.slip("E0101", "a stage starts with a step, not with a value", p.label(p.token, "a step expected here"), help)


@rule
def incomplete(p: Place) -> Slip | None:
    """A statement that stops before it is whole: the next one begins, or a bracket closes."""
    closes = p.token.type in CLOSERS.values()
    if p.complete or not (closes or p.starts or p.token.type in (END, ",")):
        return None
    last = p.before
    mend = p.insert("NAME") if (closes or p.token.type == ",") and p.fits("NAME") else None
    if last.type == "->":
        return p.slip("E0114", "this pipeline ends with `->`", p.label(last, "a step expected after this"), mend=mend)
    if last.type in ("stage", "variant", "input", "learn", "target", "model", "block"):
        return p.slip("E0119", f"`{last.text}` has no name", p.label(last, "a name expected after this"))
    if p.token.type == "," and last.type in (",", "(", "["):
        return p.slip("E0119", "a value is missing", p.label(p.token, "a value expected before this"), mend=mend)
    if last.type in (*OPERATORS, "=", ",", "output", "objective", "[", "("):
        return p.slip("E0119", "a value is missing", p.label(last, "a value expected after this"), mend=mend)
    if p.fits("="):
        return p.slip("E0110", f"`{last.text}` has no value", p.label(last, "`= …` expected after this"))
    return None


@rule
def keyword_as_name(p: Place) -> Slip | None:
    names = "keywords are " + ", ".join(f"`{word}`" for word in KEYWORDS)
    if p.token.type in KEYWORDS and p.fits("NAME"):
        message = f"`{p.token.text}` is a keyword and cannot be a name"
        mend = p.replace("NAME") if p.after.type != "NAME" else p.drop()
        return p.slip("E0108", message, p.label(p.token), names, mend=mend)
    is_head = p.index == p.start + 1 and p.head.type in KEYWORDS
    if is_head and p.token.type in ("=", ",", "->", "(", ".", "[", ":"):
        message = f"`{p.head.text}` is a keyword and cannot be a name"
        return p.slip("E0108", message, p.label(p.head), names, mend=p.replace("NAME", p.start))
    return None


@rule
def braces_missing(p: Place) -> Slip | None:
    """A model, a block, a variant without `{`."""
    if p.bracket not in ("", "{") or not p.fits("{") or p.head.type not in ("model", "block", "variant", "train"):
        return None
    if p.token.type == "=":
        return None
    mend = None
    if p.head.type in ("model", "block"):
        first = p.index + (p.token.type == ":")
        end = next(i for i in range(first, len(p.tokens)) if p.tokens[i].type in (END, *ITEMS))
        ends = p.before.end, p.tokens[end - 1].end
        opener, closer = (Token(mark, mark, place, place) for mark, place in zip("{}", ends, strict=True))
        mend = Mend(p.index, end, (opener, *p.tokens[first:end], closer))
    return Slip(missing_brace(p.source, p.head, p.before), mend)


@rule
def block_without_parameters(p: Place) -> Slip | None:
    if p.token.type == "{" and p.fits("(") and p.head.type == "block":
        help = f"a block has parentheses, also where it has no parameters: `block {p.before.text}() {{ … }}`"
        return p.slip("E0118", f"the block `{p.before.text}` has no `(`", p.gap("`(` expected here"), help, mend=p.insert("(", ")"))
    return None


@rule
def colon_for_equals(p: Place) -> Slip | None:
    if not (p.token.type == ":" and p.fits("=")):
        return None
    message = f"`{p.before.text}` is given its value by `=`, not by `:`"
    where = p.label(p.token, "`=` expected here")
    if p.index == p.start + 1 and p.after.text in TYPES:
        help = f"to declare it, write `input {p.before.text} : …` or `learn {p.before.text} : …`"
        return p.slip("E0111", message, where, help)
    return p.slip("E0111", message, where, mend=p.replace("="))


@rule
def equals_for_comparison(p: Place) -> Slip | None:
    if p.token.type == "=" and p.fits("=="):
        message = "two values are compared by `==`; `=` gives a name its value"
        return p.slip("E0113", message, p.label(p.token, "`==` expected here"), mend=p.replace("=="))
    if p.token.type == "==" and p.fits("="):
        message = "`=` gives a name its value; `==` compares"
        return p.slip("E0113", message, p.label(p.token, "`=` expected here"), mend=p.replace("="))
    return None


@rule
def number_runs_on(p: Place) -> Slip | None:
    """`f(3x)`, `1.5.2`, `5.`."""
    if p.before.type != "NUMBER" or p.token.start != p.before.end:
        return None
    where = p.label(p.before, to=p.token)
    if p.token.type == ".":
        return p.slip("E0101", "a number does not end with a point", where, f"write `{p.before.text}` or `{p.before.text}.0`", mend=p.drop())
    return _number_runs_on(p, p.before, p.token) if p.token.type in ("NAME", "NUMBER") else None


@rule
def comma_missing(p: Place) -> Slip | None:
    """`f(a b)`, `output a b`, `a b = z -> f`."""
    help = []
    if p.bracket in ("(", "["):
        missing = p.token.type in VALUES and p.fits(",")
        if missing and p.fits("=") and p.before.type == "NAME":
            help.append(f"or `=`, if `{p.before.text}` names the value after it")
    else:
        missing = p.token.type == "NAME" and p.before.type == "NAME" and p.fits(",") and p.fits("=") and p.after.type in ("=", ",")
        missing = missing and p.kind == "statements" and not did_you_mean(p.head.text, STATEMENTS)
    if not missing:
        return None
    return p.slip("E0109", "a comma is missing", p.gap("`,` expected here"), *help, mend=p.insert(","))


@rule
def equals_missing(p: Place) -> Slip | None:
    if not (p.fits("=") and p.token.type in (*VALUES, "{", "-")):
        return None
    where = p.gap("`=` expected here")
    return p.slip("E0110", f"`=` is missing after `{p.before.text}`", where, mend=p.insert("="))


@rule
def arrow(p: Place) -> Slip | None:
    if p.token.type == "->" and not p.complete and p.fits("NAME"):
        mend = p.insert("NAME")
        return p.slip("E0114", "this `->` has nothing before it", p.label(p.token, "a value expected before this"), mend=mend)
    if p.token.type == "->" and p.before.type in ("{", "->"):
        return p.slip("E0114", "this `->` has no step before it", p.label(p.token), mend=p.drop())
    if p.before.type == "->":
        help = "a step is a name, with its arguments: `x -> linear(dim)`"
        return p.slip("E0114", "what follows `->` is not a step", p.label(p.token, "a step expected here"), help)
    return None


@rule
def chained_comparison(p: Place) -> Slip | None:
    if p.token.type not in COMPARISONS or not p.fits("and"):
        return None
    help = "two comparisons are joined by `and`: `a < b and b < c`"
    return p.slip("E0101", "a comparison has two sides", p.label(p.token, "a second comparison"), help)


@rule
def anything_else(p: Place) -> Slip:
    expected = expectation(p.tables.expected(p.states), p.token.first)
    where = p.label(p.token) if p.token.type != END else p.gap("")
    label = where.model_copy(update={"text": f"{expected} expected" if expected else ""})
    return p.slip("E0101", f"{shown(p.token)} does not fit here", label)


def expectation(symbols: Iterable[str], on_new_line: bool) -> str:
    """What could come next, in words."""
    found = set(symbols)
    words = []
    if "->" in found and not on_new_line:
        words.append("an operator")
    if "model" in found:
        words.append("`model`, `block` or `import`")
    if "stage" in found:
        words.append("a statement" if on_new_line or not words else "a new statement")
    elif "NUMBER" in found:
        words.append("a value")
    elif "NAME" in found:
        words.append("a name")
    elif "STRING" in found:
        words.append("text in quotes")
    openers = () if words else ("(", "{")
    words += [f"`{mark}`" for mark in ("=", ":", ",", *openers, ")", "]", "}") if mark in found]
    return " or ".join(words[:4])
