"""Pages that are run: the fenced blocks of a markdown file, in order, in a folder that holds the shipped specs.

What the words after a fence's language mean:

- `crate`: a spec that checks without a diagnostic, warnings included;
- `crate layers.crate`, `python steps/center/operator.py`: a file of that name. A spec is checked too;
- `crate fails E0304`: the mistakes of these codes, and no others. A `text` block that follows shows the whole message;
- `python`: runs, in one namespace for the page. With `>>>` it is a doctest;
- `console`: lines `$ crate-dsl …`, each with what it prints. `…` stands for anything, alone on a line for any lines;
- `console long`: the same, but only held to commands and options that exist;
- `sh`: not run; its `make …` lines name targets of the Makefile.

Other languages are not run. `python -m tests.docs.pages docs/language.md` writes messages and sessions anew where they
differ; read the difference before you keep it.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import os
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt

from crate_dsl.language.diagnostics import render_all
from crate_dsl.language.source import Source
from crate_dsl.workspace import Target, check_source

ROOT = Path(__file__).parents[2]
#: How wide a terminal the shown sessions had.
COLUMNS = "110"


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the words after it, its text, and where it stands."""

    page: Path
    line: int
    language: str
    words: tuple[str, ...]
    text: str

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def file(self) -> str | None:
        """The name under which the block is kept, if it has one."""
        return self.words[0] if self.words and "." in self.words[0] else None


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    found = []
    for token in MarkdownIt().parse(page.read_text(encoding="utf-8")):
        if token.type == "fence" and token.map is not None:
            language, *words = token.info.split() or [""]
            found.append(Block(page, token.map[0] + 1, language, tuple(words), token.content))
    return found


def links(page: Path) -> list[str]:
    """The links and pictures of a page that do not leave the repository."""
    found = []
    for token in MarkdownIt().enable("table").parse(page.read_text(encoding="utf-8")):
        for part in token.children or ():
            target = str(part.attrs.get("href") or part.attrs.get("src") or "")
            if target and "://" not in target:
                found.append(target)
    return found


def anchors(page: Path) -> set[str]:
    """What its headings are called in links, as GitHub does it."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


class Run:
    """One page, run in `folder`, which must be the working folder."""

    def __init__(self, folder: Path, mend: bool = False) -> None:
        self.folder = folder
        self.mended: dict[int, str] | None = {} if mend else None
        self.namespace: dict[str, Any] = {"__name__": "__page__"}
        self.code = 0
        shutil.copytree(
            ROOT / "specs", folder / "specs", ignore=shutil.ignore_patterns("*.py", "__pycache__")
        )

    def files(self, page: Path) -> None:
        """Write the blocks that are files."""
        for block in blocks(page):
            if block.file is not None:
                path = self.folder / block.file
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(block.text, encoding="utf-8")

    def page(self, page: Path) -> None:
        """Every block of a page, in order."""
        self.files(page)
        found = blocks(page)
        for block, following in zip(found, [*found[1:], None], strict=True):
            match block.language:
                case "crate":
                    self.crate(block, following)
                case "python":
                    self.python(block)
                case "console":
                    self.console(block)
                case "sh":
                    make_targets(block)
        for line in sorted(self.mended or (), reverse=True):
            assert self.mended is not None
            block = next(block for block in found if block.line == line)
            text = page.read_text(encoding="utf-8").splitlines(keepends=True)
            text[line : line + block.text.count("\n")] = [self.mended[line]]
            page.write_text("".join(text), encoding="utf-8")

    def hold(self, block: Block, right: bool, text: str, about: str) -> None:
        """A block shows what is so; or it is mended."""
        if not right and self.mended is not None:
            self.mended[block.line] = text
        else:
            assert right, about

    # -------------------------------------------------------------- languages

    def crate(self, block: Block, following: Block | None) -> None:
        name = block.file or "example.crate"
        diagnostics, _ = check_source(Source(name, block.text), Target(name))
        said = render_all(diagnostics)
        wanted = list(block.words[1:]) if block.words[:1] == ("fails",) else []
        assert sorted(d.code for d in diagnostics) == sorted(wanted), f"{block.place}\n{said}"
        if wanted and following is not None and following.language == "text":
            right = said == following.text.rstrip("\n")
            self.hold(following, right, said + "\n", f"{following.place}\n{said}")

    def python(self, block: Block) -> None:
        if block.file is not None:
            return
        if ">>>" in block.text:
            test = doctest.DocTestParser().get_doctest(
                block.text, self.namespace, block.place, str(block.page), block.line
            )
            said = io.StringIO()
            runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
            runner.run(test, out=said.write, clear_globs=False)
            self.namespace.update(test.globs)
            assert not runner.failures, said.getvalue()
        else:
            exec(compile(block.text, block.place, "exec"), self.namespace)

    def console(self, block: Block) -> None:
        right, seen, shown = True, "", []
        for written, wanted in sessions(block):
            command = " ".join(written.replace("\\\n", " ").partition("  #")[0].split())
            if block.words == ("long",):
                parses(command)
                continue
            said, self.code = (f"{self.code}\n", 0) if command == "echo $?" else run(command)
            if not same(said, wanted):
                right, seen = False, seen + f"\n$ {command}\n{said}"
                wanted = said.rstrip("\n")
            shown.append("\n".join(filter(None, [f"$ {written}", wanted])) + "\n")
        self.hold(block, right, "".join(shown), f"{block.place}{seen}")


def sessions(block: Block) -> Iterator[tuple[str, str]]:
    """The commands of a console block, as written, each with what is shown below it."""
    for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        command, output = re.fullmatch(r"((?:.*\\\n)*.*)\n((?:.*\n)*)", part).groups()  # type: ignore[union-attr]
        yield command, output.rstrip("\n")


def same(said: str, shown: str) -> bool:
    """Whether a session printed what is shown, where `…` may stand for anything."""
    lines = []
    for line in shown.splitlines():
        lines.append(
            r"(?:.*\n)*?" if line.strip() == "…" else ".*".join(map(re.escape, line.split("…"))) + r" *\n"
        )
    return re.fullmatch("".join(lines), said.rstrip("\n") + "\n" if said.strip() else "") is not None


# ------------------------------------------------------------------ the command line


def run(command: str) -> tuple[str, int]:
    """What `crate-dsl …` prints, and its exit code; in this process, since starting torch anew takes seconds."""
    from crate_dsl.cli import main

    program, *arguments = shlex.split(command)
    assert program == "crate-dsl", command
    said, code = io.StringIO(), 0
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(said),
    ):
        patch.setenv("COLUMNS", COLUMNS)
        patch.setenv("NO_COLOR", "1")
        patch.setenv("TERM", "dumb")
        try:
            main(arguments)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(bool(end.code))
    return said.getvalue(), code


def parses(command: str) -> None:
    """The command and all its options exist, and their values are of the right kinds. Nothing is done."""
    import typer

    from crate_dsl.cli import app

    program, verb, *arguments = shlex.split(command)
    assert program == "crate-dsl", command
    group = typer.main.get_command(app)
    found = group.get_command(typer.Context(group), verb)  # type: ignore[attr-defined]
    assert found is not None, command
    found.make_context(verb, arguments).close()


def make_targets(block: Block) -> None:
    """The `make …` lines of a shell block name targets of the Makefile."""
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for target in re.findall(r"^make ([a-z-]+)", block.text, re.MULTILINE):
        assert target in targets, block.place


if __name__ == "__main__":
    for written in map(Path, sys.argv[1:]):
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            Run(Path(folder), mend=True).page(ROOT / written)
            os.chdir(ROOT)
