"""Plain text in columns, at most 80 wide, no word ever broken."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from textwrap import fill

WIDTH = 80
GAP = 2
#: Keeps together the words between which it stands, until a paragraph is made.
_HARD_SPACE = "\N{NO-BREAK SPACE}"


def columns(rows: Iterable[Sequence[str]], align: str, most: Sequence[int] = ()) -> list[str]:
    r"""The text of each row, its cells under those of the others.

    Where a cell is wider than its column may be, the row goes on in a further line.

    Args:
        rows: of as many cells as `align` has letters.
        align: `l` or `r` for each column.
        most: how wide each column may become; without it, as wide as its widest cell.

    >>> columns([("a", "1"), ("bbb", "22")], "lr")
    ['a     1', 'bbb  22']
    >>> columns([("a", "1"), ("bbb", "22")], "lr", most=(2, 2))
    ['a    1', 'bbb\n    22']
    """
    rows = [tuple(row) for row in rows]
    widths = [max((len(row[at]) for row in rows), default=0) for at in range(len(align))]
    if most:
        widths = [min(pair) for pair in zip(widths, most, strict=True)]
    starts = [sum(widths[:at]) + GAP * at for at in range(len(widths))]
    return [_row(row, align, widths, starts) for row in rows]


def _row(row: Sequence[str], align: str, widths: Sequence[int], starts: Sequence[int]) -> str:
    lines = [""]
    for cell, letter, width, start in zip(row, align, widths, starts, strict=True):
        placed = cell.rjust(width) if letter == "r" else cell
        if placed and len(lines[-1]) + GAP > start > 0:
            lines.append("")
        lines[-1] = (lines[-1].ljust(start) + placed).rstrip() if placed.strip() else lines[-1]
    return "\n".join(lines)


def wrapped(text: str, indent: str = "", hanging: str | None = None) -> str:
    """A paragraph."""
    return fill(
        text,
        WIDTH,
        initial_indent=indent,
        subsequent_indent=indent if hanging is None else hanging,
        break_long_words=False,
        break_on_hyphens=False,
    )


def listed(items: Iterable[str], lead: str = "", *, indent: str = "", hanging: str | None = None) -> str:
    """A paragraph of items with commas between them; no line ends inside an item.

    >>> listed(["dim = 384", "depth = 12"], "settings: ")
    'settings: dim = 384, depth = 12'
    """
    lead = lead.rstrip().replace(" ", _HARD_SPACE) + " " if lead else ""
    text = lead + ", ".join(item.replace(" ", _HARD_SPACE) for item in items)
    return wrapped(text, indent, hanging).replace(_HARD_SPACE, " ")


def reflowed(text: str) -> str:
    """Paragraphs and lists (`- …`) of a page, each line as full as it may be."""
    parts = []
    for paragraph in text.split("\n\n"):
        items: list[str] = []
        for line in paragraph.splitlines():
            if line.startswith("- ") or not items:
                items.append(line)
            else:
                items[-1] += " " + line.strip()
        parts.append("\n".join(wrapped(item, "", "  " if item.startswith("- ") else "") for item in items))
    return "\n\n".join(parts)
