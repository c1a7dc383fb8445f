"""Every code has a page, every page a code, and every example gives the message that its page shows."""

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import crate_dsl
from crate_dsl.language.diagnostics import Diagnostic, SpecError, render_all
from crate_dsl.language.explanations import codes, explanation
from crate_dsl.language.parser import parse, read_source
from crate_dsl.language.source import Source

CODE = re.compile(r"[EW][0-9]{4}")


def check_text(name: str, text: str) -> list[Diagnostic]:
    """What checking a text says: the whole analysis, or what can be read off the text alone."""
    try:
        workspace = importlib.import_module("crate_dsl.workspace")
    except ModuleNotFoundError:
        return list(parse(Source(name, text)).diagnostics)
    found: list[Diagnostic] = workspace.check_text(name, text)
    return found


def raised_codes() -> Iterator[str]:
    """The codes that the package's source can raise: `f("E0101", …)` or `Diagnostic(code="E0101", …)`."""
    for folder in crate_dsl.__path__:
        for room in ("language", "compiler", "training", "inspection", "."):
            files = Path(folder, room).glob("*.py" if room == "." else "**/*.py")
            for file in files:
                yield from _codes_of_calls(ast.parse(file.read_text(encoding="utf-8")))


def _codes_of_calls(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            given = [*node.args[:1], *(keyword.value for keyword in node.keywords if keyword.arg == "code")]
            for value in given:
                if isinstance(value, ast.Constant) and CODE.fullmatch(str(value.value)):
                    yield str(value.value)


def test_every_code_has_a_page_and_every_page_a_code() -> None:
    raised = set(raised_codes())
    assert sorted(raised - set(codes())) == [], "codes without a page"
    assert sorted(set(codes()) - raised) == [], "pages of codes that nothing raises"


@pytest.mark.parametrize("code", codes())
def test_a_page_is_whole(code: str) -> None:
    page = explanation(code)
    assert page.title and not page.title.endswith(".") and len(page.title) < 80
    assert page.text
    assert f"[{code}]" in page.output


@pytest.mark.parametrize("code", [code for code in codes() if explanation(code).example is not None])
def test_an_example_gives_its_message(code: str) -> None:
    page = explanation(code)
    assert page.example is not None
    assert render_all(check_text("example.crate", page.example)) == page.output


def test_there_is_no_page_of_an_unknown_code() -> None:
    with pytest.raises(KeyError):
        explanation("E9999")


# Mistakes that a text alone cannot show: the pages show a session.


def message(path: str) -> str:
    with pytest.raises(SpecError) as caught:
        read_source(path)
    return str(caught.value)


def session(code: str) -> str:
    """What the page's session prints, without its command."""
    return explanation(code).output.partition("\n")[2]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_file_that_is_not_there(folder: Path) -> None:
    assert message("small.crate") == session("E0001")


def test_a_folder(folder: Path) -> None:
    (folder / "networks").mkdir()
    (folder / "networks" / "small.crate").touch()
    assert message("networks") == session("E0002")


def test_a_file_that_cannot_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "small.crate").touch()

    def refuse(*_: object, **__: object) -> None:  # the tests may run as a user who may read everything
        raise PermissionError(13, "Permission denied")

    expected = session("E0003")
    monkeypatch.setattr(Path, "open", refuse)
    assert message("small.crate") == expected


def test_a_file_that_is_too_long(folder: Path) -> None:
    (folder / "small.crate").write_text("#" * 300 * 1024)
    assert message("small.crate") == session("E0004")


def test_a_file_that_is_not_utf8(folder: Path) -> None:
    (folder / "small.crate").write_bytes(
        "# Modèle\nmodel small { input x : float output x }\n".encode("latin1")
    )
    assert message("small.crate") == session("E0005")
