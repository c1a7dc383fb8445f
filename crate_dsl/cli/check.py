"""`crate-dsl check`."""

from __future__ import annotations

import json
from typing import Annotated, Literal

import typer

from crate_dsl.cli.options import Settings, settings
from crate_dsl.cli.terminal import complain
from crate_dsl.compiler.graph import ModelGraph
from crate_dsl.language.diagnostics import Diagnostic, Report, SpecError, as_json, render_all
from crate_dsl.show.columns import listed
from crate_dsl.workspace import check as check_target


def check(
    targets: Annotated[list[str], typer.Argument(metavar="TARGET", help="Specs, or variants of specs.")],
    set: Settings = None,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings count as errors.")] = False,
    format: Annotated[
        Literal["text", "json"],
        typer.Option(help="json: one list on standard output, an object for each mistake."),
    ] = "text",
) -> None:
    """Find every mistake of a spec.

    All its models and variants are checked, or the one that is named, without building anything. Mistakes go to
    standard error; for a spec without any, a line says how large its networks are.

    crate-dsl check specs/*.crate --strict
    crate-dsl check specs/crate.crate@tiny --set dim=192
    crate-dsl check specs/crate.crate --format json
    """
    chosen = settings(set)
    report = Report()
    for target in targets:
        graphs: list[ModelGraph] = []
        try:
            found, graphs = check_target(target, chosen)
        except SpecError as problem:
            found = list(problem.diagnostics)
        report.extend(found)
        failed = any(_fails(diagnostic, strict) for diagnostic in found)
        if format == "text":
            if found:
                complain(render_all(found))
            if not failed:
                print(_fine(target, graphs))
    if format == "json":
        print(json.dumps([as_json(diagnostic) for diagnostic in report], ensure_ascii=False, indent=1))
    if any(_fails(diagnostic, strict) for diagnostic in report):
        raise typer.Exit(1)


def _fails(diagnostic: Diagnostic, strict: bool) -> bool:
    return strict or diagnostic.severity == "error"


def _fine(target: str, graphs: list[ModelGraph]) -> str:
    """`specs/crate.crate is sound: crate 6,090,856 parameters, @tiny 6,090,856, …`."""
    if not graphs:
        return f"{target} is sound: blocks alone"
    counts = []
    model = None
    for graph in graphs:
        name = f"@{graph.variant}" if graph.variant else ""
        counts.append(f"{name if graph.model == model else graph.model + name} {graph.parameters:,}")
        model = graph.model
    counts[0] += " parameters"
    return listed(counts, f"{target} is sound: ", hanging="  ")
