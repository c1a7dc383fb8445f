"""The numbers as tables: one description, printed in a terminal and written into the documentation."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table as RichTable

Numbers = Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """A table by name; the documentation says `<!-- NAME -->` where it stands, and `<!-- end -->` behind it."""

    name: str
    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()

    def rich(self) -> RichTable:
        """For a terminal."""
        table = RichTable(
            box=SIMPLE_HEAD,
            title=self.title,
            title_justify="left",
            caption="\n".join(self.notes) or None,
            caption_justify="left",
            pad_edge=False,
        )
        for index, head in enumerate(self.head):
            table.add_column(head, justify="right" if index else "left", overflow="fold")
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        """For the documentation."""
        lines = [self.head, ["---", *["---:"] * (len(self.head) - 1)], *self.rows]
        text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return "\n\n".join([text, *self.notes])


def of(numbers: Numbers) -> list[Table]:
    """The tables of the parts that were measured."""
    return [table for part, make in MAKERS.items() if part in numbers for table in make(numbers[part])]


def write(numbers: Numbers, page: Path) -> None:
    """Put the tables where the page has their markers.

    Raises:
        ValueError: the page has no place for a table.
    """
    text = page.read_text(encoding="utf-8")
    for table in of(numbers):
        marked = re.compile(rf"(<!-- {re.escape(table.name)} -->\n).*?(<!-- end -->)", re.DOTALL)
        if not marked.search(text):
            raise ValueError(f"{page.name} has no place for the table `{table.name}`")
        text = marked.sub(lambda found, table=table: f"{found[1]}\n{table.markdown()}\n\n{found[2]}", text)
    page.write_text(text, encoding="utf-8")


# ------------------------------------------------------------------ the parts


def _algebra(part: Numbers) -> Iterator[Table]:
    forms = list(next(iter(part.values())))
    rows = [
        [network, *(f"{flops / 1e9:.{2 if flops >= 1e9 else 3}f}" for flops in row.values())]
        for network, row in part.items()
    ]
    yield Table("algebra", "GFLOP for one image", ["", *forms], rows)


def _inference(part: Numbers) -> Iterator[Table]:
    for network, found in part.items():
        batches = found["batches"]
        head = ["", *(f"batch {batch}" for batch in batches)]
        head += [*(f"of peak, {batch}" for batch in batches), "error"]
        rows = []
        for name in next(iter(batches.values())):
            same = [rows_[name] for rows_ in batches.values()]
            error = max((row["error"] for row in same if "error" in row), default=None)
            rows.append(
                [
                    name,
                    *map(_ratio, same),
                    *(f"{row['share']:.0%}" for row in same),
                    "" if error is None else "0" if error == 0 else f"{error:.0e}",
                ]
            )
        yield Table(
            f"inference {network}",
            f"{network}: times as fast as published in torch",
            head,
            rows,
            _left_out(found),
        )


def _training(part: Numbers) -> Iterator[Table]:
    batches = part["batches"]
    head = [
        "",
        *(f"batch {batch}" for batch in batches),
        *(f"MiB, {batch}" for batch in batches),
        "gradients off by",
    ]
    rows = []
    for name in next(iter(batches.values())):
        same = [rows_[name] for rows_ in batches.values()]
        error = max(row["error"] for row in same)
        rows.append(
            [
                name,
                *map(_ratio, same),
                *map(_mebibytes, same),
                "0" if error == 0 else f"{error:.0e}",
            ]
        )
    yield Table("training", f"a training step, {part['network']}: times as fast as published", head, rows)


def _emission(part: Numbers) -> Iterator[Table]:
    depths = part["depths"]
    head = [""]
    for depth in depths:
        head += [f"{depth} layers", "nodes", "MiB"]
    rows = []
    for name in next(iter(depths.values())):
        row = [name]
        for rows_ in depths.values():
            row += [_ratio(rows_[name]), f"{rows_[name]['nodes']:,}", _mebibytes(rows_[name])]
        rows.append(row)
    title = f"to a ModelProto, {part['network']}: times as fast as torch.onnx.export"
    yield Table("emission", title, head, rows, _left_out(part))
    check = part["check"]
    rows = []
    before: Numbers | None = None
    for depth, found in check.items():
        rows.append(
            [
                f"{int(depth):,}",
                "" if before is None else f"{found['median'] / before['median']:.1f}",
                f"{1e6 * found['median'] / int(depth):.0f} µs",
                _mebibytes(found),
            ]
        )
        before = found
    yield Table("check", "`load`, by layers", ["layers", "times the row above", "a layer", "MiB"], rows)


def _growth(part: Numbers) -> Iterator[Table]:
    for name, found in part.items():
        sizes = found["sizes"]
        first = next(iter(sizes.values()))
        variants = list(first)
        head = [name, *(f"{variant}: times the first" for variant in variants), "ratio"]
        rows = [
            [
                f"{int(size):,}",
                *(f"{row[variant]['median'] / first[variant]['median']:.1f}" for variant in variants),
                f"{row[variants[-1]]['ratio']:.2f}",
            ]
            for size, row in sizes.items()
        ]
        exponents = found["exponents"]
        rows.append(
            ["exponent, fitted", *(f"{exponents[variant]['exponent']:.2f}" for variant in variants), ""]
        )
        rows.append(
            ["of the last step", *(f"{exponents[variant]['between'][-1]:.2f}" for variant in variants), ""]
        )
        yield Table(f"growth {name}", f"growth with {name}, batch 1", head, rows)


MAKERS: dict[str, Callable[[Numbers], Iterator[Table]]] = {
    "algebra": _algebra,
    "inference": _inference,
    "training": _training,
    "emission": _emission,
    "growth": _growth,
}


# ------------------------------------------------------------------ cells


def _ratio(row: Numbers) -> str:
    """The median over processes, and where they lie when there are several."""
    ratios = row.get("ratios", [])
    digits = 2 if row["ratio"] < 10 else 0
    middle = f"{row['ratio']:.{digits}f}"
    if len(ratios) < 2 or row["ratio"] == 1:
        return middle
    return f"{middle} ({ratios[0]:.{digits}f}-{ratios[-1]:.{digits}f})"


def _mebibytes(row: Numbers) -> str:
    found = row.get("mebibytes")
    return "" if found is None else f"{found:,.0f}"


def _left_out(part: Numbers) -> list[str]:
    """A sentence for each reason."""
    reasons: dict[str, list[str]] = {}
    for name, reason in part.get("left_out", {}).items():
        reasons.setdefault(reason, []).append(name)
    return [f"Left out ({reason}): {'; '.join(names)}." for reason, names in reasons.items()]
