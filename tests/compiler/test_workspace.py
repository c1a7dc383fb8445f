"""A file and its imports; what is not there yet; targets."""

from __future__ import annotations

from pathlib import Path

import pytest

from crate_dsl.language.diagnostics import Diagnostic, SpecError, render_all
from crate_dsl.language.explanations import explanation
from crate_dsl.workspace import check, load

DESIGN = sorted((Path(__file__).parents[1] / "data" / "design").glob("*.crate"))
USES = "model m {{ input z : float[4, 8]  y = z -> {}  output y }}\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "specs"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def write(folder: Path, **texts: str) -> None:
    for name, text in texts.items():
        (folder / f"{name}.crate").write_text(text)


def codes(target: str) -> list[tuple[str, str]]:
    """The code of each diagnostic, and the file that it stands in."""
    return [(d.code, _file(d)) for d in check(target)[0]]


def _file(diagnostic: Diagnostic) -> str:
    return diagnostic.where.span.source.name if diagnostic.where else ""


def test_blocks_are_imported_and_see_those_of_their_own_file(folder: Path) -> None:
    write(
        folder,
        inner="block deep(w) { linear(w) }",
        blocks='import "inner.crate"\nblock wide(w) { norm -> deep(w) }',
        main='import "blocks.crate"\n' + USES.format("wide(8)"),
    )
    assert load("main.crate").parameters == 16 + 72
    assert [source.name for source in load("main.crate").sources] == [
        "main.crate",
        "blocks.crate",
        "inner.crate",
    ]


def test_imports_are_not_transitive(folder: Path) -> None:
    write(
        folder,
        inner="block deep(w) { linear(w) }",
        blocks='import "inner.crate"\nblock wide(w) { norm -> deep(w) }',
        main='import "blocks.crate"\n' + USES.format("deep(8)"),
    )
    assert codes("main.crate") == [("E0202", "main.crate")]


def test_an_import_stays_in_the_folder(folder: Path) -> None:
    write(folder.parent, secret="block s() { norm }")
    (folder / "link.crate").symlink_to(folder.parent / "secret.crate")
    for path in (
        "../secret.crate",
        str(folder.parent / "secret.crate"),
        "link.crate",
        "sub/../../secret.crate",
    ):
        write(folder, main=f'import "{path}"\n' + USES.format("s()"))
        assert codes("main.crate") == [("E0518", "main.crate")]


def test_circles_of_imports_and_of_links(folder: Path) -> None:
    write(folder, a='import "b.crate"\n' + USES.format("norm"), b='import "a.crate"\nblock q() { norm }')
    assert codes("a.crate") == [("E0519", "b.crate")]
    (folder / "x.crate").symlink_to("y.crate")
    (folder / "y.crate").symlink_to("x.crate")
    write(folder, main='import "x.crate"\n' + USES.format("q()"))
    assert [code for code, _ in codes("main.crate")] == ["E0520"]


@pytest.mark.parametrize("path", ["no.crate", ".", "", "sub", "a" * 5000, "nul\0l"])
def test_a_file_that_cannot_be_imported(folder: Path, path: str) -> None:
    (folder / "sub").mkdir()
    write(folder, main=f'import "{path}"\n' + USES.format("from_there(8)"))
    found = check("main.crate")[0]
    assert len(found) == 1, render_all(found)


def test_names_that_come_twice(folder: Path) -> None:
    write(folder, a="block q() { norm }", b="block q() { linear(8) }")
    write(folder, main='import "a.crate"\nimport "b.crate"\n' + USES.format("q()"))
    assert codes("main.crate") == [("E0203", "main.crate")]
    write(folder, main='import "a.crate"\nblock q() { norm }\n' + USES.format("q()"))
    assert codes("main.crate") == [("E0203", "main.crate")]
    write(folder, main='import "a.crate"\nimport "./a.crate"\n' + USES.format("q()"))
    assert codes("main.crate") == [("E0203", "main.crate")]


def test_a_broken_import_is_one_mistake(folder: Path) -> None:
    write(
        folder,
        a="block q( { norm }\nblock r() { nrm }",
        main='import "a.crate"\n' + USES.format("q() -> r() -> s()"),
    )
    found = codes("main.crate")
    assert all(code.startswith("E01") or code in ("E0202",) for code, _ in found)
    assert ("E0202", "a.crate") in found


def test_what_is_not_there_yet_is_said_once_each(tmp_path: Path) -> None:
    assert DESIGN
    for path in DESIGN:
        found = check(str(path))[0]
        assert {diagnostic.code for diagnostic in found} <= {"E0901"}, render_all(found)
        places = [(d.where.span.start, d.where.span.end) for d in found if d.where]
        assert len(set(places)) == len(places) == len(found)


def test_a_target_names_a_model_and_a_variant(folder: Path) -> None:
    write(
        folder,
        small="model classifier(w = 4) { variant wide { w = 16 }  input z : float[8]  y = z -> linear(w)  output y }\n"
        "model other { input z : float[8]  y = z -> norm  output y }",
    )
    assert load("small.crate:classifier").parameters == 36
    assert load("small.crate:classifier@wide").parameters == 144
    with pytest.raises(SpecError) as caught:
        load("small.crate:clasifier")
    assert str(caught.value) == explanation("E0214").output.partition("\n")[2]
    with pytest.raises(SpecError, match="E0215"):
        load("small.crate")
    with pytest.raises(SpecError, match="E0209"):
        load("small.crate:classifier@wid")
    with pytest.raises(SpecError, match="E0208"):
        load("small.crate:classifier", {"width": 3})
