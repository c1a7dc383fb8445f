"""A graph as a table for people, and the formulas of its steps."""

from __future__ import annotations

from collections.abc import Iterator
from inspect import cleandoc

from crate_dsl.compiler.graph import ModelGraph
from crate_dsl.compiler.recipe import written
from crate_dsl.show.columns import columns, listed, wrapped
from crate_dsl.show.pairs import pairs
from crate_dsl.show.steps import Row, rows_of, short, size_of, title_of

#: How wide the columns may be: name, repeats, type, parameters, operations, line; 80 with the gaps between them.
MOST = (27, 4, 18, 11, 6, 4)


def table(graph: ModelGraph, *, fold: bool = True) -> str:
    """The steps of a graph with their types, token layouts and costs, which step undoes which, and the totals.

    Args:
        graph: a checked network.
        fold: equal layers of a repeat are one line, `encoder.0-11.compress`, with how many they are.
    """
    settings = [f"{name} = {written(value)}" for name, value in graph.settings.items()]
    head = [f"{title_of(graph)} of {graph.sources[0].name}"]
    if settings:
        head.append(listed(settings, indent="  "))
    entries = [
        ("input", name, str(entry.type), "drawn" if entry.source else "")
        for name, entry in graph.inputs.items()
    ]
    entries += [("target", name, str(entry.type), "") for name, entry in graph.targets.items()]
    rows = rows_of(graph, fold=fold)
    ends = [("output", name, str(graph.type_of(value)), value.node) for name, value in graph.outputs.items()]
    return "\n".join(
        [
            *head,
            "",
            *columns(entries, "llll"),
            "",
            *_steps(rows),
            *pairs(graph, rows),
            "",
            *columns(ends, "llll"),
            "",
            size_of(graph),
        ]
    )


def _steps(rows: list[Row]) -> Iterator[str]:
    cells = [("step", "", "type", "parameters", "flop", "line")]
    rows = [row for row in rows if not _sums(row)]
    cells += [
        (
            row.name,
            f"×{row.count}" if row.count > 1 else "",
            row.first.type,
            f"{row.parameters:,}",
            short(row.flops) if row.first.exported else "–",
            str(row.first.line),
        )
        for row in rows
    ]
    head, *texts = columns(cells, "lrlrrr", MOST)
    yield head
    layout = "None"
    for row, text in zip(rows, texts, strict=True):
        yield text
        if str(row.first.layout) not in (layout, "None"):
            yield wrapped(f"tokens: {row.first.layout}", "    ", " " * 12)
        layout = str(row.first.layout)


def _sums(row: Row) -> bool:
    """Whether a row only adds terms of the objective up: its formula says that."""
    return not row.first.exported and type(row.first.node.operator).kind == "expression"


def formulas(graph: ModelGraph) -> str:
    """The formula, source and inverse of every kind of step in a graph, once each, in the order of the network."""
    kinds: dict[str, list[str]] = {}
    for row in rows_of(graph):
        operator = row.first.node.operator
        if operator.word in kinds:
            continue
        lines = [
            operator.word,
            wrapped(" ".join(cleandoc(operator.__doc__ or "").split("\n\n")[0].split()), "  "),
        ]
        for what, text in (
            ("formula", operator.formula),
            ("source", operator.source),
            ("inverse", row.first.inverse),
        ):
            if text:
                lines.append(wrapped(f"{what + ':':<9}{text}", "  ", " " * 11))
        kinds[operator.word] = lines
    return "\n\n".join("\n".join(lines) for lines in kinds.values())
