"""An inspection for a terminal of 80 columns: a bar while it measures, a table of layers, the findings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from crate_dsl.inspection.charts import number
from crate_dsl.inspection.measures import Measure
from crate_dsl.inspection.report import LayerReport, Report, Trend
from crate_dsl.inspection.summary import sentences
from crate_dsl.show.columns import columns, wrapped


@contextmanager
def progress(count: int, noun: str) -> Iterator[Callable[[int], None]]:
    """A bar on standard error, where that is a terminal; it is told how many more images or windows are done."""
    console = Console(stderr=True)
    with Progress(
        TextColumn(noun),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
        console=console,
        transient=True,
        expand=True,
        disable=not console.is_terminal,
    ) as bar:
        task = bar.add_task(noun, total=count)
        yield lambda done: bar.update(task, advance=done)


def table(report: Report) -> str:
    """The layers with their measures, those that fail marked; and the findings in words."""
    subject = report.subject
    many = f"{subject.count:,} test {subject.supply.noun} of {subject.supply.text}"
    head = f"{subject.target}, weights: {subject.weights}; {many}"
    lines = [wrapped(head), ""]
    if report.layers:
        cells: list[tuple[str, ...]] = [
            ("layer", "Rᶜ in", "after compress", "non-zero", "LASSO gain", "R out")
        ]
        cells += [_row(layer) for layer in report.layers]
        # Only the columns that this network has something for.
        kept = [at for at in range(len(cells[0])) if at == 0 or any(row[at] != "–" for row in cells[1:])]
        lines += columns([[row[at] for at in kept] for row in cells], "l" + "r" * (len(kept) - 1))
        lines.append("")
    lines += [wrapped(f"- {sentence}", hanging="  ") for sentence in sentences(report)]
    return "\n".join(lines)


def _row(layer: LayerReport) -> tuple[str, ...]:
    return (
        layer.name,
        _trend(layer.rate),
        _trend(layer.step_rate),
        _trend(layer.nonzero, percent=True),
        _measure(layer.lasso, percent=True),
        _measure(layer.tokens_rate),
    )


def _trend(trend: Trend | None, *, percent: bool = False) -> str:
    if trend is None:
        return "–"
    return ("▲ " if trend.lower is False else "") + number(trend.mean, percent=percent)


def _measure(measure: Measure | None, *, percent: bool = False) -> str:
    return "–" if measure is None else number(measure.mean, percent=percent)
