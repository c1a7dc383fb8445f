"""What several commands take: a target, `--set`, `--seed`; and how they are read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from crate_dsl.cli.terminal import complain
from crate_dsl.compiler.graph import ModelGraph
from crate_dsl.language.diagnostics import UserError, render_all
from crate_dsl.language.parser import parse
from crate_dsl.language.source import Source, Span
from crate_dsl.language.syntax import Expression, Node
from crate_dsl.workspace import load

Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="NAME=VALUE", help="A parameter of the model, overridden. May be given several times."
    ),
]


def settings(texts: Sequence[str] | None) -> dict[str, Expression]:
    """The values of `--set`, as the language reads them: `dim=192`, `penalty=0.5`, `out=tied`, `steps=[1, 2]`.

    Raises:
        UserError: a text that is no `name=value`, or a name that is given twice.
    """
    found: dict[str, Expression] = {}
    for text in texts or ():
        name, equals, value = (part.strip() for part in text.partition("="))
        expression = _expression(name, value) if equals else None
        if expression is None:
            help = f"--set {name}=VALUE" if name.isidentifier() and not value else "for instance: --set dim=192"
            raise UserError(f"`--set {text}` does not say `name=value`", help, exit_code=2)
        if name in found:
            raise UserError(f"`{name}` is set twice on the command line", exit_code=2)
        found[name] = expression
    return found


def _expression(name: str, value: str) -> Expression | None:
    """A value as the parser reads it in a spec; None where it is no value, or more than one."""
    before = "model m("
    parsed = parse(Source("--set", f"{before}{name} = {value}) {{ }}"))
    models = parsed.tree.models
    if parsed.diagnostics or len(parsed.tree.items) != 1 or not models or models[0].statements:
        return None
    parameters = models[0].parameters
    if len(parameters) != 1 or parameters[0].name.text != name or parameters[0].default is None:
        return None
    moved: Expression = _moved(parameters[0].default, Source("--set", f"{name} = {value}"), len(before))
    return moved


def _moved(value: Any, source: Source, by: int) -> Any:
    """A node whose places are those of the text that the user wrote."""
    if isinstance(value, Span):
        return Span(source, value.start - by, value.end - by)
    if isinstance(value, Node):
        fields = {name: _moved(getattr(value, name), source, by) for name in type(value).model_fields}
        return value.model_copy(update=fields)
    return tuple(_moved(item, source, by) for item in value) if isinstance(value, tuple) else value


def load_and_warn(target: str, texts: Sequence[str] | None) -> ModelGraph:
    """The graph of a target; its warnings go to standard error.

    Raises:
        SpecError, UserError: as `workspace.load` and `settings`.
    """
    graph = load(target, settings(texts))
    if graph.warnings:
        complain(render_all(graph.warnings))
    return graph
