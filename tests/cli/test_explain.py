from __future__ import annotations

from crate_dsl.language.explanations import codes, explanation
from tests.cli.conftest import Cli


def test_a_page_with_its_example_and_message(cli: Cli) -> None:
    code = codes()[-1]
    result = cli("explain", code.lower())
    assert result.code == 0
    assert result.out.startswith(f"{code}: {explanation(code).title}\n")


def test_every_code_is_listed(cli: Cli) -> None:
    result = cli("explain")
    assert [line.split()[0] for line in result.out.splitlines()] == codes()


def test_an_unknown_code(cli: Cli) -> None:
    result = cli("explain", "E9999")
    assert result.code == 2
    assert result.err.startswith("error: there is no code `E9999`\n")
    near = cli("explain", "0310")
    assert "help: did you mean E0310?" in near.err
