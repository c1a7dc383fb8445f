"""What became of each key of a checkpoint, as a table for people and as data for programs."""

from __future__ import annotations

from typing import Any

from rich.table import Table as RichTable

from crate_dsl.checkpoints.families import LAYER, Weight
from crate_dsl.checkpoints.importing import Imported
from crate_dsl.show.steps import title_of


def as_table(found: Imported) -> RichTable:
    """The rows of the family's mapping: key, slot, and what was done. A layer's keys stand once, for all layers."""
    table = RichTable(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("key", "slot", ""):
        table.add_column(name, overflow="fold")
    owner = ""
    for row in found.family.rows:
        entries = [entry for entry in found.entries if entry.row is row]
        if not entries:
            continue
        before, layer, key = row.key.rpartition(LAYER)
        slot = entries[0].slot or ""
        if layer:
            assert isinstance(row, Weight)
            home, _, slot = row.slot.rpartition(LAYER)
            if owner != before:
                layers = "0" if len(entries) == 1 else f"0-{len(entries) - 1}"
                table.add_row(before + layers, home + layers)
            key, slot = f"  {key}", f"  {slot}"
        owner = before
        table.add_row(key, slot or entries[0].note, entries[0].status)
        if slot and entries[0].note:
            table.add_row("", f"  {entries[0].note}")
    return table


def as_data(found: Imported) -> dict[str, Any]:
    """The same as JSON takes it, every key on its own."""
    return {
        "family": found.family.name,
        "sizes": dict(found.sizes),
        "spec": found.graph.sources[0].name,
        "target": title_of(found.graph),
        "notes": found.notes,
        "keys": [
            {
                "key": entry.key,
                "shape": list(entry.shape),
                "dtype": entry.dtype,
                "status": entry.status,
                "slot": entry.slot,
                "note": entry.note,
            }
            for entry in found.entries
        ],
    }
