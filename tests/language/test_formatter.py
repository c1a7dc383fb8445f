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

model m(
    dim = 4,  # the width
    depth = 2,
) {  # first
    # Inputs.
    input x : float[dim]  # given

    input y : float

    # The end.
}
# Last.
"""
    )


def test_a_broken_text_is_refused() -> None:
    with pytest.raises(SpecError, match="E0102"):
        formatted("model m {")
