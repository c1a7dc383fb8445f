"""`--set`: texts of the command line as values of the language."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest

from crate_dsl.cli.options import settings
from crate_dsl.language.diagnostics import UserError
from crate_dsl.language.syntax import List, Name, Number
from crate_dsl.workspace import load
from tests.cli.conftest import Cli


def test_what_a_value_may_be() -> None:
    found = settings(["dim=192", "penalty = 0.5", "out=tied", "steps=[1, 2]"])
    assert isinstance(found["dim"], Number)
    assert found["dim"].value == 192
    assert isinstance(found["penalty"], Number)
    assert found["penalty"].value == Fraction(1, 2)
    assert isinstance(found["out"], Name)
    assert found["out"].text == "tied"
    assert isinstance(found["steps"], List)


def test_places_are_those_of_what_was_written() -> None:
    (value,) = settings(["dim=192"]).values()
    assert (value.span.source.name, value.span.line, value.span.column) == ("--set dim", 1, 1)
    assert value.span.text == "192"


@pytest.mark.parametrize(
    "text",
    [
        "dim",
        "dim=",
        "=3",
        "dim=[1, 2",
        "dim=1, e=2",
        "dim=1) { } model n(x = 2",
        "dim=1 # x",
        "dim=\x00",
        "a.b=3",
        "dim=" + "(" * 10_000,
    ],
)
def test_what_a_value_may_not_be(text: str) -> None:
    with pytest.raises(UserError, match="does not say `name=value`") as problem:
        settings([text])
    assert problem.value.exit_code == 2


def test_a_name_given_twice() -> None:
    with pytest.raises(UserError, match="`dim` is set twice"):
        settings(["dim=1", "dim=2"])


def test_a_value_reaches_the_graph(small: Path) -> None:
    assert load(str(small), settings(["dim=4 * 3"])).settings["dim"] == 12


def test_an_unknown_parameter_is_the_specs_mistake(cli: Cli, small: Path) -> None:
    result = cli("check", small, "--set", "dmi=3")
    assert result.code == 1
    assert result.err == "error[E0208]: `small` has no parameter `dmi`\nhelp: did you mean `dim`?\n"
