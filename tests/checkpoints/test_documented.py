"""The tables of docs/checkpoints.md are the mapping. `python -m tests.checkpoints.test_documented` prints them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from crate_dsl.checkpoints.families import FAMILIES, Family, Table, Unused, Weight

PAGE = Path(__file__).parents[2] / "docs" / "checkpoints.md"


def rows(family: Family) -> Iterator[tuple[str, str, str]]:
    """Key, slot, and what there is to say of it."""
    for row in family.rows:
        match row:
            case Unused():
                yield f"`{row.key}`", "", f"unused: {row.reason}"
            case Table():
                yield f"`{row.key}`", f"`{row.step}`", "fixed: must equal the network's own table"
            case Weight(kernel=True):
                yield f"`{row.key}`", f"`{row.slot}`", "a convolution's kernel, (d, c, p, q)"
            case Weight():
                yield f"`{row.key}`", f"`{row.slot}`", "" if row.pixels is None else "pixels as (p, q, c)"


def table(family: Family) -> str:
    cells = [("key", "slot", ""), ("---", "---", "---"), *rows(family)]
    return "".join("| " + " | ".join(row) + " |\n" for row in cells)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_the_page_has_the_table(family: Family) -> None:
    assert table(family) in PAGE.read_text(encoding="utf-8")


if __name__ == "__main__":
    for known in FAMILIES:
        print(f"### {known.name}\n\n{table(known)}")
