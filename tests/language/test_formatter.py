"""The laws of formatting: it changes no meaning, loses no comment, and has nothing to do a second time."""

import random
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crate_dsl.language import syntax
from crate_dsl.language.diagnostics import SpecError, render_all
from crate_dsl.language.formatter import format_text, format_tree
from crate_dsl.language.layout import WIDTH
from crate_dsl.language.parser import parse
from crate_dsl.language.source import Source
from tests.language.strategies import files

SPECS = sorted(Path(__file__).parents[1].joinpath("data", "design").glob("*.crate"))
SHIPPED = sorted(
    path
    for room in ("specs", "benchmarks")
    for path in Path(__file__).parents[2].joinpath(room).glob("*.crate")
)
TOKEN = re.compile(r"#[^\n]*|\"[^\"\n]*\"|\s+|[\d.]+e-\d+|[\w.]+|->|[=!<>]=|.")


def formatted(text: str) -> str:
    return format_text(Source("example.crate", text))


def shape(text: str) -> object:
    parsed = parse(Source("example.crate", text))
    assert not parsed.diagnostics, render_all(parsed.diagnostics) + "\n" + text
    return syntax.shape(parsed.tree)


def comments(text: str) -> list[str]:
    return [span.text.rstrip() for span in parse(Source("example.crate", text)).comments]


def assert_laws(text: str) -> None:
    result = formatted(text)
    assert shape(result) == shape(text)
    assert comments(result) == comments(text)
    assert formatted(result) == result
    assert not re.search(r"[ \t]\n|\n\n\n", result) and result.endswith("\n")


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_the_laws_hold_for_specs(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert_laws(text)
    assert all(len(line.partition("  #")[0]) <= WIDTH for line in formatted(text).splitlines())


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_the_layout_of_the_source_does_not_matter(path: Path) -> None:
    """But for comments and blank lines, which are taken away here."""
    tokens = [
        token
        for token in TOKEN.findall(path.read_text(encoding="utf-8"))
        if token[0] != "#" and token.strip()
    ]
    assert formatted(" ".join(tokens)) == formatted("\n".join(tokens))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(SPECS), st.integers(0, 2**32))
def test_comments_stay_wherever_they_stand(path: Path, seed: int) -> None:
    chance = random.Random(seed)
    tokens = TOKEN.findall(path.read_text(encoding="utf-8"))
    for number in range(chance.randrange(1, 12)):
        place = chance.randrange(len(tokens))
        tokens.insert(place, chance.choice([f" # c{number}\n", f"\n  # c{number}\n", f"\n\n# c{number}\n\n"]))
    assert_laws("".join(tokens))


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
@given(files)
def test_a_tree_is_printed_and_read_back(tree: syntax.File) -> None:
    text = format_tree(tree)
    assert shape(text) == syntax.shape(tree)
    assert formatted(text) == text


def test_parentheses_stay() -> None:
    text = "model m {\n    y = ((a)) + (b -> f) * (-(c))\n}\n"
    assert formatted(text) == text


def test_comments_and_blank_lines() -> None:
    text = """

# About the file.

import 'a.crate'   # one
import "b.crate"
block f() { norm } # f
# About m.

model m(dim = 4 # the width
        , depth = 2) { # first
    # Inputs.
    input x : float[dim]  # given


    input y : float


    # The end.
}
# Last.
"""
    assert (
        formatted(text)
        == """\
# About the file.

import "a.crate"  # one
import "b.crate"

block f() { norm }  # f

# About m.

model m(dim = 4,      # the width
        depth = 2) {  # first
    # Inputs.
    input x : float[dim]  # given

    input y : float

    # The end.
}
# Last.
"""
    )


def test_neighbours_stand_below_each_other() -> None:
    """Those of a kind, up to an empty line or a comment; values of variants where all settings are the same."""
    text = """\
model m(dim = 384, depth = 12, subspaces = 6, patch = 16, size = 224, channels = 3, classes = 1000, halvings = 4,
        widths = [dim / 8, dim / 4]) {
    variant tiny  { dim = 384,  depth = 12 }  # small
    variant large { dim = 1024, depth = 4  }  # not so small
    variant some  { dim = 7 }
    variant all   {
        dim = 384, depth = 12, subspaces = 6, patch = 16, size = 224, channels = 3, classes = 1000, halvings = 4,
        widths = []
    }

    input  image       : float[3]
    input  hidden_ones : bool[3]
    target label : index(7)

    learn c    : float
    learn more : float

    stage f = compress(subspaces, rank = dim / subspaces, gradient = exact, out = tied, constraint = orthonormal,
                       norm = none)
    x = image -> f -> linear(dim) -> linear(dim) -> linear(dim) -> linear(dim) -> linear(dim) -> linear(dim)
              -> linear(7)
    a, b = x -> g
    # Apart.
    long = x -> repeat(2) {
        f
        f
    }
    y    = x

    output y
    train {
        lr       = 1
        schedule = cosine(warmup = 0.5)
    }
}
"""
    assert formatted(text) == text
    assert_laws(text)


def test_what_is_too_far_to_the_right_begins_on_a_line_of_its_own() -> None:
    name = "n" * 80
    text = f"model m {{\n    {name} = x -> f(1)\n        -> g\n    {name} = f(\n        1, 2)\n}}\n"
    long = text.replace("f(1)", f"f({'1' * 40})").replace("1, 2", f"{'1' * 30}, 2")
    assert_laws(long)
    assert all(len(line) <= 130 for line in formatted(long).splitlines())


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_specs_are_formatted(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert formatted(text) == text


def test_a_broken_text_is_refused() -> None:
    with pytest.raises(SpecError, match="E0102"):
        formatted("model m {")
