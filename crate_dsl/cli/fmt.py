"""`crate-dsl fmt`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from crate_dsl.cli.terminal import complain
from crate_dsl.language.diagnostics import SpecError, render_all
from crate_dsl.language.formatter import format_text
from crate_dsl.language.reading import read_source
from crate_dsl.training.files import write_text


def fmt(
    files: Annotated[list[str], typer.Argument(metavar="FILE", help="Specs.")],
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; say what would change, and exit with 1.")
    ] = False,
) -> None:
    """Write specs in the one canonical style. Comments stay where they stand; there are no options of style.

    A file with a mistake is left as it is.

    crate-dsl fmt specs/*.crate
    crate-dsl fmt specs/*.crate --check
    """
    failed = False
    for file in files:
        try:
            source = read_source(file)
            text = format_text(source)
        except SpecError as problem:
            complain(render_all(problem.diagnostics))
            failed = True
            continue
        # As bytes: line ends and a byte order mark are a matter of style too.
        path = Path(file).resolve()
        if path.read_bytes() == text.encode():
            continue
        if check:
            print(f"{file} would change")
            failed = True
        else:
            mode = path.stat().st_mode
            write_text(path, text)
            path.chmod(mode)
            print(f"{file} is written anew")
    if failed:
        raise typer.Exit(1)
