"""Which step undoes which, and what that promises: what all renderings of a graph say of its pairs."""

from __future__ import annotations

from collections.abc import Iterator

from crate_dsl.compiler.graph import ModelGraph
from crate_dsl.compiler.promises import Promise, promises
from crate_dsl.show.columns import columns, wrapped
from crate_dsl.show.steps import Row


def paired_rows(graph: ModelGraph, rows: list[Row]) -> list[tuple[Row, Row]]:
    """Rows of steps with the rows that they undo, in the order of the network."""
    at = {step.name: row for row in rows for step in row.steps}
    found = dict.fromkeys(
        (at[pair.step].name, at[pair.undoes].name)
        for pair in graph.pairs
        if pair.step in at and pair.undoes in at
    )
    named = {row.name: row for row in rows}
    return [(named[step], named[undone]) for step, undone in found]


def pairs(graph: ModelGraph, rows: list[Row]) -> Iterator[str]:
    """A paragraph for each inverse: what it promises, and its pairs."""
    inverses = {pair.step: pair.inverse for pair in graph.pairs}
    found = paired_rows(graph, rows)
    for promise in promises(graph):
        yield ""
        yield wrapped(sentence(promise), "", "  ")
        own = [(a, b) for a, b in found if inverses.get(a.first.name) == promise.inverse]
        cells = [
            (
                f"  {step.name}",
                f"×{step.count}" if step.count > 1 else "",
                "undoes",
                undone.name,
                "last first" if step.count > 1 else "",
            )
            for step, undone in own
        ]
        yield from columns(cells, "lrlll", (29, 4, 6, 25, 10))


def sentence(promise: Promise) -> str:
    """`decoder undoes encoder, tied: …`."""
    meanings = {
        "learned": "its weights are its own, and how well it inverts is measured, not promised",
        "tied": "the same weights, right to first order in the steps",
        "fixed_point": "the steps' own maps, inverted by iteration; it converges where they are contractions",
    }
    tolerances = promise.tolerance("float32"), promise.tolerance("float64")
    meaning = meanings.get(promise.mode.word, "a bijection for every input")
    if tolerances[0] is not None:
        meaning += (
            f"; there and back, a token is off by at most {tolerances[0]:.1e} of the largest in float32, "
            f"{tolerances[1]:.1e} in float64"
        )
    return f"{promise.inverse} undoes {promise.stage}, {promise.spelled}: {meaning}"
