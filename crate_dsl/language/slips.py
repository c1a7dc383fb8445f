"""The slips that happen to everybody, each with a message of its own and, where what was meant is plain, a mend.

A rule looks at the place where a text stops fitting the grammar. The first rule that knows the slip names it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from crate_dsl.language.diagnostics import Label, did_you_mean
from crate_dsl.language.place import (
    COMPARISONS,
    ENDS,
    ITEMS,
    KEYWORDS,
    OPERATORS,
    STATEMENTS,
    TYPES,
    VALUES,
    Mend,
    Place,
    Slip,
    missing_brace,
    shown,
)
from crate_dsl.language.source import Span
from crate_dsl.language.tables import END
from crate_dsl.language.tokens import CLOSERS, Token

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
    "from": 'the blocks of another file are had by `import "blocks.crate"`',
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

Rule = Callable[[Place], Slip | None]
RULES: list[Rule] = []


def rule(function: Rule) -> Rule:
    """Add a rule to those that are tried."""
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
    """A word such as `def`, `if` or `for`."""
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
        return p.slip("E0117", f"{shown(p.token)} stands outside every model", p.here(), help)
    near = did_you_mean(p.token.text, ITEMS)
    help = f"did you mean `{near}`?" if near else "a file is made of `import`, `block` and `model`"
    return p.slip("E0101", f"{shown(p.token)} does not start a model or a block", p.here(), help)


@rule
def path_without_quotes(p: Place) -> Slip | None:
    """`import blocks`."""
    if p.before.type != "import":
        return None
    help = 'the file is named in quotes: `import "blocks.crate"`'
    return p.slip("E0120", "`import` takes the name of a file in quotes", p.here(), help)


@rule
def misplaced(p: Place) -> Slip | None:
    """A statement among steps or settings, an item in a model."""
    if not (p.bracket == "{" and p.starts and p.complete):
        return None
    if p.token.type in ITEMS:
        message = f"{shown(p.token)} stands inside another model or block"
        return p.slip("E0117", message, p.here(), f"`{p.token.type}` stands at the top of a file")
    steps = "a body is a chain of steps, or a graph that begins with `input` and ends in `output`"
    settings = "`variant` and `train` hold settings, `name = value`"
    known = {"steps": ("among steps", steps), "settings": ("among settings", settings)}
    what, help = known.get(p.kind, ("here", "a model holds statements"))
    return p.slip("E0117", f"the statement {shown(p.token)} stands {what}", p.here(), help)


@rule
def empty_body(p: Place) -> Slip | None:
    """`repeat(4) { }`."""
    if not (p.before.type == "{" and p.token.type == "}"):
        return None
    help = "a body holds steps, or a graph that begins with `input` and ends in `output`"
    where = p.label(p.before, to=p.token)
    return p.slip("E0116", "this body is empty", where, help, mend=p.insert("NAME"))


@rule
def type_missing(p: Place) -> Slip | None:
    """`learn c`, `target label = index(classes)`, `input x :`."""
    name, ends = p.before.text, p.token.type in (END, "}") or p.starts
    if p.before.type == ":" and (ends or p.token.type == "="):
        message = f"`{p.tokens[p.index - 2].text}` has no type"
        return p.slip("E0112", message, p.there("a type expected after this"))
    if not p.fits(":") or p.fits("="):
        return None
    message = f"`{name}` has no type"
    example = f"write `{p.head.text} {name} : float[dim]`, or another type"
    if p.token.type == "=" and p.after.text in TYPES:
        return p.slip(
            "E0112", message, p.here("`:` expected here"), "a type follows `:`", mend=p.replace(":")
        )
    if p.token.type == "=":
        mend = p.insert(":", "NAME")
        return p.slip("E0112", message, p.here("`: type` expected before this"), example, mend=mend)
    if p.token.type == "NAME" and p.token.text in TYPES:
        message = f"`:` is missing before the type of `{name}`"
        return p.slip("E0112", message, p.gap("`:` expected here"), mend=p.insert(":"))
    if ends:
        return p.slip("E0112", message, p.there("`: type` expected after this"), example)
    return None


@rule
def two_values(p: Place) -> Slip | None:
    """`y = 3x`, `y = a b`, `output a b`: the second value was taken for the start of the next statement."""
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
    help = "a product is written `2 * x`; a name does not start with a digit"
    if digits.isdecimal():
        help = f"write `{digits}`"
    return p.slip("E0101", f"`{written}` is neither a number nor a name", p.label(number, to=rest), help)


@rule
def no_statement(p: Place) -> Slip | None:
    """A word that starts no statement: a keyword mistyped, or a step without a value."""
    if not (p.index == p.start + 1 and p.head.type == "NAME" and p.kind == "statements"):
        return None
    message, where = f"{shown(p.head)} does not start a statement", p.label(p.head)
    near = did_you_mean(p.head.text, STATEMENTS)
    if near and p.token.type in ("NAME", "{", "STRING", "["):
        return p.slip("E0101", message, where, f"did you mean `{near}`?")
    if p.token.type not in ("->", "}", "(", "{", ".", "[", *OPERATORS) and not p.token.first:
        return None
    written = f"{p.head.text} …" if p.token.type in ("->", *OPERATORS) else f"… -> {p.head.text}"
    help = f"a value is given a name, `name = {written}`, or given back, `output {written}`"
    return p.slip("E0101", message, where, help)


@rule
def stage_of_a_value(p: Place) -> Slip | None:
    """`stage e = (x + 1) -> f`."""
    starts = p.head.type == "stage" and p.before.type == "=" and p.index == p.start + 3
    if not (starts and p.token.type in (*VALUES, "-")):
        return None
    message = "a stage starts with a step, not with a value"
    help = f"a value is given a name by `{p.tokens[p.start + 1].text} = …`"
    return p.slip("E0101", message, p.here("a step expected here"), help)


@rule
def incomplete(p: Place) -> Slip | None:
    """A statement that stops before it is whole: the next one begins, or a bracket closes."""
    closes = p.token.type in CLOSERS.values()
    if p.complete or not (closes or p.starts or p.token.type in (END, ",")):
        return None
    last = p.before.type
    mend = p.insert("NAME") if (closes or p.token.type == ",") and p.fits("NAME") else None
    if last == "->":
        return p.slip(
            "E0114", "this pipeline ends with `->`", p.there("a step expected after this"), mend=mend
        )
    if last in ("stage", "variant", "input", "learn", "target", "model", "block"):
        return p.slip("E0119", f"`{last}` has no name", p.there("a name expected after this"))
    if p.token.type == "," and last in (",", "(", "["):
        return p.slip("E0119", "a value is missing", p.here("a value expected before this"), mend=mend)
    if last in (*OPERATORS, "=", ",", "output", "objective", "[", "("):
        return p.slip("E0119", "a value is missing", p.there("a value expected after this"), mend=mend)
    if p.fits("="):
        return p.slip("E0110", f"`{p.before.text}` has no value", p.there("`= …` expected after this"))
    return None


@rule
def keyword_as_name(p: Place) -> Slip | None:
    """`input train : float`, `output = x`."""
    names = "keywords are " + ", ".join(f"`{word}`" for word in KEYWORDS)
    if p.token.type in KEYWORDS and p.fits("NAME"):
        message = f"`{p.token.text}` is a keyword and cannot be a name"
        mend = p.replace("NAME") if p.after.type != "NAME" else p.drop()
        return p.slip("E0108", message, p.here(), names, mend=mend)
    is_head = p.index == p.start + 1 and p.head.type in KEYWORDS
    if is_head and p.token.type in ("=", ",", "->", "(", ".", "[", ":"):
        message = f"`{p.head.text}` is a keyword and cannot be a name"
        return p.slip("E0108", message, p.label(p.head), names, mend=p.replace("NAME", p.start))
    return None


@rule
def braces_missing(p: Place) -> Slip | None:
    """A model, a block, a variant without `{`."""
    braced = p.head.type in ("model", "block", "variant", "train")
    if not (braced and p.bracket in ("", "{") and p.fits("{") and p.token.type != "="):
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
    """`block f { … }`."""
    if not (p.token.type == "{" and p.fits("(") and p.head.type == "block"):
        return None
    message = f"the block `{p.before.text}` has no `(`"
    help = f"a block has parentheses, also where it has no parameters: `block {p.before.text}() {{ … }}`"
    return p.slip("E0118", message, p.gap("`(` expected here"), help, mend=p.insert("(", ")"))


@rule
def colon_for_equals(p: Place) -> Slip | None:
    """`y : x -> f`, `epochs: 200`, `f(rank: 3)`."""
    if not (p.token.type == ":" and p.fits("=")):
        return None
    message = f"`{p.before.text}` is given its value by `=`, not by `:`"
    where = p.here("`=` expected here")
    if p.index == p.start + 1 and p.after.text in TYPES:
        help = f"to declare it, write `input {p.before.text} : …` or `learn {p.before.text} : …`"
        return p.slip("E0111", message, where, help)
    return p.slip("E0111", message, where, mend=p.replace("="))


@rule
def equals_for_comparison(p: Place) -> Slip | None:
    """`mask = key.patch = query.patch`, `epochs == 200`."""
    if p.token.type == "=" and p.fits("=="):
        message = "two values are compared by `==`; `=` gives a name its value"
        return p.slip("E0113", message, p.here("`==` expected here"), mend=p.replace("=="))
    if p.token.type == "==" and p.fits("="):
        message = "`=` gives a name its value; `==` compares"
        return p.slip("E0113", message, p.here("`=` expected here"), mend=p.replace("="))
    return None


@rule
def number_runs_on(p: Place) -> Slip | None:
    """`f(3x)`, `1.5.2`, `5.`."""
    if p.before.type != "NUMBER" or p.token.start != p.before.end:
        return None
    where = p.label(p.before, to=p.token)
    if p.token.type == ".":
        help = f"write `{p.before.text}` or `{p.before.text}.0`"
        return p.slip("E0101", "a number does not end with a point", where, help, mend=p.drop())
    return _number_runs_on(p, p.before, p.token) if p.token.type in ("NAME", "NUMBER") else None


@rule
def comma_missing(p: Place) -> Slip | None:
    """`f(a b)`, `a b = z -> f`."""
    help = []
    if p.bracket in ("(", "["):
        missing = p.token.type in VALUES and p.fits(",")
        if missing and p.fits("=") and p.before.type == "NAME":
            help.append(f"or `=`, if `{p.before.text}` names the value after it")
    else:
        names = (
            p.kind == "statements" and p.before.type == p.token.type == "NAME" and p.fits(",") and p.fits("=")
        )
        missing = names and p.after.type in ("=", ",") and not did_you_mean(p.head.text, STATEMENTS)
    if not missing:
        return None
    return p.slip("E0109", "a comma is missing", p.gap("`,` expected here"), *help, mend=p.insert(","))


@rule
def equals_missing(p: Place) -> Slip | None:
    """`stage e repeat(4) { … }`, `y x -> f`, `epochs 200`."""
    if not (p.fits("=") and p.token.type in (*VALUES, "{", "-")):
        return None
    where = p.gap("`=` expected here")
    return p.slip("E0110", f"`=` is missing after `{p.before.text}`", where, mend=p.insert("="))


@rule
def arrow(p: Place) -> Slip | None:
    """`y = -> f`, `x -> -> f`, `x -> 3`."""
    if p.token.type == "->" and not p.complete and p.fits("NAME"):
        where = p.here("a value expected before this")
        return p.slip("E0114", "this `->` has nothing before it", where, mend=p.insert("NAME"))
    if p.token.type == "->" and p.before.type in ("{", "->"):
        return p.slip("E0114", "this `->` has no step before it", p.here(), mend=p.drop())
    if p.before.type == "->":
        help = "a step is a name, with its arguments: `x -> linear(dim)`"
        return p.slip("E0114", "what follows `->` is not a step", p.here("a step expected here"), help)
    return None


@rule
def chained_comparison(p: Place) -> Slip | None:
    """`a < b < c`."""
    if p.token.type not in COMPARISONS or not p.fits("and"):
        return None
    help = "two comparisons are joined by `and`: `a < b and b < c`"
    return p.slip("E0101", "a comparison has two sides", p.here("a second comparison"), help)


@rule
def anything_else(p: Place) -> Slip:
    """What no other rule knows: what could stand here instead."""
    expected = expectation(p.tables.expected(p.states), p.token.first)
    where = p.here() if p.token.type != END else p.gap("")
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
