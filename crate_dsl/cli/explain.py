"""`crate-dsl explain`."""

from __future__ import annotations

from textwrap import indent
from typing import Annotated

import typer

from crate_dsl.language.diagnostics import UserError, did_you_mean
from crate_dsl.language.explanations import codes, explanation
from crate_dsl.show.columns import columns, reflowed


def explain(
    code: Annotated[
        str | None, typer.Argument(metavar="CODE", help="Of a mistake, such as E0304.", show_default=False)
    ] = None,
) -> None:
    """Tell more of a mistake, by its code.

    What it means, an example, and what would work. Without a code, every code is listed.

    crate-dsl explain E0304
    """
    known = codes()
    if code is None:
        print("\n".join(columns([(known_code, explanation(known_code).title) for known_code in known], "ll")))
        return
    code = code.upper()
    if code not in known:
        near = did_you_mean(code, known)
        raise UserError(
            f"there is no code `{code}`",
            *([f"did you mean {near}?"] if near else []),
            "every code: crate-dsl explain",
            exit_code=2,
        )
    page = explanation(code)
    parts = [f"{page.code}: {page.title}", reflowed(page.text)]
    if page.example is not None:
        parts.append(indent(page.example.rstrip("\n"), "    "))
    parts.append(indent(page.output, "    "))
    print("\n\n".join(parts))
