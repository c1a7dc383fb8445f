"""Text -> tree: what specs mean, what mistakes say, and that no text whatever breaks the parser."""

import random
import re
import subprocess
import sys
import time
from fractions import Fraction
from importlib import resources
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crate_dsl.language import syntax, tables
from crate_dsl.language.diagnostics import SpecError, render_all
from crate_dsl.language.parser import Parsed, parse, read_source
from crate_dsl.language.source import Source
from crate_dsl.language.tokens import MOST_BYTES, MOST_MISTAKES

DATA = Path(__file__).parents[1] / "data"
SPECS = sorted((DATA / "design").glob("*.crate"))
ERRORS = sorted((DATA / "errors").glob("*.crate"))
TOKEN = re.compile(r"#[^\n]*|\"[^\"\n]*\"|\s+|[\d.]+e-\d+|[\w.]+|->|[=!<>]=|.")


def read(text: str) -> Parsed:
    return parse(Source("example.crate", text))


def model(body: str) -> syntax.Model:
    parsed = read(f"model small(dim = 8) {{\n{body}\n}}")
    assert not parsed.diagnostics, render_all(parsed.diagnostics)
    (found,) = parsed.tree.models
    return found


def value(text: str) -> syntax.Expression:
    (statement,) = model(f"y = {text}").statements
    assert isinstance(statement, syntax.Binding)
    return statement.value


def said(text: str) -> list[str]:
    return [diagnostic.code for diagnostic in read(text).diagnostics]


# ------------------------------------------------------------------ the grammar


def test_the_tables_are_those_of_the_grammar() -> None:
    """And the grammar is LALR(1) without a conflict, and without terminals that collide: `lark` is strict here."""
    pytest.importorskip("interegular")
    grammar = resources.files("crate_dsl.grammars").joinpath("crate.lark").read_text(encoding="utf-8")
    assert tables.compile_grammar(grammar).to_json() == tables.load().to_json(), (
        "make them anew: python -m crate_dsl.language.tables grammars/crate.lark"
    )


def test_parsing_needs_nothing_heavy() -> None:
    heavy = ["lark", "networkx", "numpy", "onnx", "rich", "torch"]
    program = f"import sys, crate_dsl.language.formatter; print([m for m in {heavy} if m in sys.modules])"
    run = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    assert run.stdout.strip() == "[]"


# ------------------------------------------------------------------ trees


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_a_spec_has_no_mistake(path: Path) -> None:
    parsed = parse(read_source(path))
    assert not parsed.diagnostics
    assert parsed.tree.models


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_every_node_knows_its_text(path: Path) -> None:
    """A child's text lies within its parent's, and names and numbers are their text."""
    parsed = parse(read_source(path))
    for node in syntax.walk(parsed.tree):
        for child in syntax.children(node):
            assert node.span.start <= child.span.start <= child.span.end <= node.span.end
        if isinstance(node, syntax.Identifier | syntax.Name | syntax.Number):
            assert node.span.text == node.text


def test_a_chain_of_one_operator_is_one_node() -> None:
    long = value(" + ".join(["a"] * 5000))
    assert isinstance(long, syntax.Sum) and len(long.rest) == 4999
    pipe = value(" -> ".join(["a"] * 5000))
    assert isinstance(pipe, syntax.Pipe) and len(pipe.steps) == 4999


def test_operators_bind_as_they_should() -> None:
    assert syntax.shape(value("a or b and c == d + e * -f")) == syntax.shape(
        value("a or b and c == d + e * -f\n")
    )
    either = value("a or b and c == d + e * -f")
    assert isinstance(either, syntax.Or)
    both = either.values[1]
    assert isinstance(both, syntax.And)
    same = both.values[1]
    assert isinstance(same, syntax.Comparison) and same.operator == "=="
    assert isinstance(same.right, syntax.Sum)
    product = same.right.rest[0].value
    assert isinstance(product, syntax.Product)
    assert isinstance(product.rest[0].value, syntax.Negative)


@pytest.mark.parametrize(
    "text, number",
    [("384", 384), (".5", Fraction(1, 2)), ("1e-3", Fraction(1, 1000)), ("2.50", Fraction(5, 2))],
)
def test_numbers_are_exact(text: str, number: Fraction) -> None:
    found = value(text)
    assert isinstance(found, syntax.Number)
    assert found.value == number and found.text == text


def test_a_chain_keeps_its_lines() -> None:
    (stage,) = model("stage e = repeat(2) {\n norm -> gelu\n linear(3)\n}").statements
    assert isinstance(stage, syntax.Stage) and isinstance(stage.body, syntax.Chain)
    body = stage.body.steps[0].body
    assert isinstance(body, syntax.Chain)
    assert [[step.name.text for step in line] for line in body.lines] == [["norm", "gelu"], ["linear"]]


def test_arguments_are_absent_or_empty() -> None:
    pipe = value("x -> f -> f() -> f(a, b = c,)")
    assert isinstance(pipe, syntax.Pipe)
    assert [step.arguments and len(step.arguments) for step in pipe.steps] == [None, (), 2]


def test_a_word_of_an_argument_may_be_input() -> None:
    """`sparsify(start = input)` starts from its input; elsewhere `input` is a keyword."""
    assert not read("model m { y = x -> sparsify(start = input) }").diagnostics
    assert said("model m {\n y = input\n}") == ["E0108"]


@pytest.mark.parametrize(
    "text",
    [
        "model m { variant a { x = 1, y = 2, } variant b { x = 1 y = 2 } train { lr = 1e-3\n epochs = 2 } }",
        "model m(a, b = [1, 2,],) { input x : float[3,] y = f(1,) }",
        "import \"a.crate\" import 'b.crate'",
        "block f() { input z input w : float[2] output z }",
        "\ufeffmodel m { }",
        "model m {\r\n\tinput x : float\r\n}\r\n",
        "",
        "# nothing",
    ],
)
def test_what_else_may_be_written(text: str) -> None:
    assert not read(text).diagnostics


def test_comments_are_kept() -> None:
    assert [comment.text for comment in read("# a\nmodel m { # b\n}\n#c").comments] == ["# a", "# b", "#c"]


# ------------------------------------------------------------------ mistakes


@pytest.mark.parametrize("path", ERRORS, ids=lambda path: path.stem)
def test_all_mistakes_at_once(path: Path) -> None:
    """The whole messages stand beside each file."""
    parsed = parse(Source(path.name, path.read_text(encoding="utf-8")))
    assert render_all(parsed.diagnostics) + "\n" == path.with_suffix(".txt").read_text(encoding="utf-8")


def broken_names(text: str) -> list[list[str]]:
    nodes = syntax.walk(read(text).tree)
    return [
        [str(name) for name in node.names]
        for node in nodes
        if isinstance(node, syntax.Broken | syntax.BrokenItem)
    ]


@pytest.mark.parametrize(
    "statement, names",
    [
        ("y = x -> f(a b)", ["y"]),
        ("a, b = x -> f(", ["a", "b"]),
        ("stage e = repeat(2) {\n f(a b)\n norm\n }", ["e"]),
        ("stage e = { }", ["e"]),
        ("learn c", ["c"]),
        ("input x float[3]", ["x"]),
        ("output y z", []),
        ("train { lr: 3 }", []),
        ("targt label : index(3)", ["targt", "label"]),
    ],
)
def test_a_broken_statement_keeps_its_names(statement: str, names: list[str]) -> None:
    """Its neighbours are read as if nothing had happened."""
    text = f"model m {{\n    input u : float\n    {statement}\n    objective u\n}}"
    assert broken_names(text) == [names]
    (found,) = read(text).tree.models
    assert isinstance(found.statements[0], syntax.Input) and isinstance(
        found.statements[-1], syntax.Objective
    )


def test_a_broken_statement_of_a_graph_leaves_the_rest() -> None:
    text = "model m {\n    stage e = {\n        input z\n        a = z -> f(1 2)\n        output a\n    }\n}"
    assert broken_names(text) == [["a"]]


def test_a_broken_head_keeps_the_name_of_its_model() -> None:
    assert broken_names("model m(a b) {\n    y = f(c d)\n}") == [["m"]]
    assert said("model m(a b) {\n    y = f(c d)\n}") == ["E0109", "E0109"]


def test_one_token_less_is_rarely_more_than_one_mistake() -> None:
    """A measure of cascades, over every spec: of a hundred tokens, ninety-five can be left out one by one."""
    counts = []
    for path in SPECS:
        tokens = TOKEN.findall(path.read_text(encoding="utf-8"))
        for index in range(0, len(tokens), 3):
            if tokens[index].strip():
                counts.append(len(read("".join(tokens[:index] + tokens[index + 1 :])).diagnostics))
    assert sum(count <= 1 for count in counts) > 0.95 * len(counts)
    assert max(counts) <= 4


# ------------------------------------------------------------------ any text whatever


def assert_survives(text: str) -> None:
    before = time.monotonic()
    parsed = read(text)
    render_all(parsed.diagnostics)
    assert time.monotonic() - before < 15
    assert len(parsed.diagnostics) <= MOST_MISTAKES + 1
    broken = any(isinstance(node, syntax.Broken | syntax.BrokenItem) for node in syntax.walk(parsed.tree))
    assert parsed.diagnostics or not broken
    assert list(parsed.diagnostics) == sorted(parsed.diagnostics, key=lambda d: d.order())


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200))
def test_random_text(text: str) -> None:
    assert_survives(text)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [
                *tables.load().keywords,
                *tables.load().patterns,
                "x",
                "3",
                '"a"',
                "\n",
                "\t",
                "\f",
                "\u2028",
                "\0",
                "f(x)",
            ]
        ),
        max_size=40,
    )
)
def test_random_tokens(tokens: list[str]) -> None:
    assert_survives(" ".join(tokens))


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(SPECS), st.integers(0, 2**32))
def test_random_changes_of_a_spec(path: Path, seed: int) -> None:
    chance = random.Random(seed)
    tokens = TOKEN.findall(path.read_text(encoding="utf-8"))
    for _ in range(chance.choice([1, 2, 4, 10, 40])):
        here, there = chance.randrange(len(tokens)), chance.randrange(len(tokens))
        change = chance.randrange(4)
        if change == 0:
            del tokens[here]
        elif change == 1:
            tokens.insert(here, tokens[there])
        elif change == 2:
            tokens[here], tokens[there] = tokens[there], tokens[here]
        else:
            tokens[here] = chance.choice(["@", "\0", '"', "(", "}", "model", "->", "="])
    assert_survives("".join(tokens))


LARGE = {
    "parentheses": "(" * 20_000,
    "open lists": "model m { x = " + "[" * 200_000,
    "closers": ")" * MOST_BYTES,
    "empty braces": "model m {" + "{}" * 120_000,
    "names": "a " * 120_000,
    "open sum": "model m { x = " + "a+" * 120_000,
    "minus signs": "model m { x = " + "-" * 200_000,
    "unknown characters": "@ " * 120_000,
    "zero bytes": "\0" * MOST_BYTES,
    "quotes": '"\n' * 120_000,
    "digits": "9" * MOST_BYTES,
    "broken statements": "model m {\n" + " y = x -> f(b c)\n" * 14_000,
    "open models": "model m {\n" * 20_000,
    "names and commas": "model m { " + "a,\n" * 80_000,
    "slashes": "/" * MOST_BYTES,
    "no lines": "model m { " + "y = x -> f(b c) " * 14_000,
    "too long": "#" * (MOST_BYTES + 1),
    "nested expressions": "model m { x = " + "[a or b and c == d + e * -" * 60 + "1" + "]" * 60 + "}",
    "nested bodies": "model m { stage e = " + "f { " * 70 + "g" + " }" * 70 + "}",
}


@pytest.mark.parametrize("name", LARGE)
def test_large_texts_end_in_bounded_time(name: str) -> None:
    assert read(LARGE[name]).diagnostics
    assert_survives(LARGE[name])


@pytest.mark.parametrize("number", ["1e401", "1e-401", "1e99999999999999", "1" * 41])
def test_numbers_are_refused_before_they_are_made(number: str) -> None:
    assert said(f"model m {{\n y = {number}\n}}") == ["E0007"]


# ------------------------------------------------------------------ reading files


@pytest.mark.parametrize("path", ["", "no\0file", "nowhere/at/all.crate", "x" * 5000, "/dev/null/x"])
def test_paths_that_lead_nowhere(path: str) -> None:
    with pytest.raises(SpecError, match=r"E000[123]"):
        read_source(path)


def test_a_file_is_read_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.crate"
    path.write_bytes("\ufeff# é\r\nmodel m {}\r\n".encode())
    source = read_source(path, "a.crate")
    assert source.name == "a.crate" and source.text == "# é\r\nmodel m {}\r\n"


def test_a_missing_file_has_a_neighbour(tmp_path: Path) -> None:
    (tmp_path / "crate.crate").touch()
    with pytest.raises(SpecError, match=r"did you mean `.*crate\.crate`"):
        read_source(tmp_path / "crat.crate")
