"""What several commands take: a target, `--set`, `--lower`; and how they are read."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from typing import Annotated

import typer

from crate_dsl.cli.terminal import complain
from crate_dsl.compiler.graph import ModelGraph
from crate_dsl.language.diagnostics import UserError, render_all
from crate_dsl.language.fragments import parse_expression
from crate_dsl.language.syntax import Expression
from crate_dsl.workspace import load

Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="A parameter of the model, overridden. May be given several times.",
    ),
]


Lower = Annotated[
    str | None,
    typer.Option(
        metavar="REWRITES",
        help="Exact rewrites: all, none, some (`fold,norm`) or all but some (`-demand`).  [default: all]",
        show_default=False,
    ),
]


def rewrites() -> dict[str, str]:
    """What each exact rewrite does, by its name: the first paragraph of its file. It is read and not imported, since
    numpy comes with it.
    """
    found = {}
    for file in (files("crate_dsl.compiler") / "lower").iterdir():
        if file.name.endswith(".py"):
            words = " ".join(file.read_text("utf-8").partition("\n\n")[0].strip('"').split())
            name = file.name.removesuffix(".py")
            if words.startswith(f"`{name}`: "):
                found[name] = words.removeprefix(f"`{name}`: ")
    return dict(sorted(found.items()))


def settings(texts: Sequence[str] | None) -> dict[str, Expression]:
    """The values of `--set`, as the language reads them: `dim=192`, `penalty=0.5`, `out=tied`, `steps=[1, 2]`.

    Raises:
        UserError: a text that is no `name=value`, or a name that is given twice.
    """
    found: dict[str, Expression] = {}
    for text in texts or ():
        name, equals, value = (part.strip() for part in text.partition("="))
        expression = parse_expression(f"--set {name}", value) if equals and name.isidentifier() else None
        if expression is None:
            help = (
                f"--set {name}=VALUE" if name.isidentifier() and not value else "for instance: --set dim=192"
            )
            raise UserError(f"`--set {text}` does not say `name=value`", help, exit_code=2)
        if name in found:
            raise UserError(f"`{name}` is set twice on the command line", exit_code=2)
        found[name] = expression
    return found


def load_and_warn(target: str, texts: Sequence[str] | None) -> ModelGraph:
    """The graph of a target; its warnings go to standard error.

    Raises:
        SpecError, UserError: as `workspace.load` and `settings`.
    """
    graph = load(target, settings(texts))
    if graph.warnings:
        complain(render_all(graph.warnings))
    return graph
