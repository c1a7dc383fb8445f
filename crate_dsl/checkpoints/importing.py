"""From a checkpoint to the weights of a spec's network, every key accounted for."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crate_dsl.checkpoints.families import (
    FAMILIES,
    LAYER,
    Family,
    Order,
    Row,
    Shape,
    Table,
    Unused,
    Weight,
    family_of,
    layer_of,
)
from crate_dsl.checkpoints.reading import Checkpoint, read_checkpoint
from crate_dsl.compiler.graph import ModelGraph
from crate_dsl.compiler.metadata import PREFIX, describe, json_text
from crate_dsl.compiler.steps.patches.operator import Patchify
from crate_dsl.compiler.steps.position.operator import Position
from crate_dsl.compiler.steps.position.tables import sincos_table
from crate_dsl.compiler.types import Grid
from crate_dsl.language.diagnostics import UserError
from crate_dsl.show.folding import folded
from crate_dsl.show.steps import title_of
from crate_dsl.training.files import write_tensors
from crate_dsl.workspace import check

Status = Literal["mapped", "permuted", "fixed", "unused"]

#: How far a file's sines may be from ours. The authors work them out in float32, angles included, and we in float64:
#: 2e-6 off on a grid of 14, 1.4e-5 on one of 100. Rounding of what the file stores them in comes on top.
TABLE = 1e-4
#: Names that a message shows, equal layers as one: more than the largest family has. The rest is only counted.
SHOWN = 40
#: What no file says.
UNTOLD = "heads, steps and penalties are not in the file: they are the spec's"


@dataclass(frozen=True)
class Entry:
    """What became of one key. `note` says in words how it was permuted, what it equals, or why it was left out."""

    row: Row
    key: str
    shape: Shape
    dtype: str
    status: Status
    slot: str | None = None
    note: str = ""


@dataclass(frozen=True)
class Imported:
    """A checkpoint as the weights of a graph's network: `weights` by slot, and an entry for each key of the file."""

    checkpoint: Checkpoint
    family: Family
    sizes: Mapping[str, int]
    graph: ModelGraph
    entries: tuple[Entry, ...]
    weights: Mapping[str, Tensor]

    @property
    def notes(self) -> list[str]:
        """What else there is to know."""
        others = sorted({entry.dtype for entry in self.entries if entry.slot} - {"float32"})
        converted = [f"{', '.join(others)} made float32"] if others else []
        return [*self.checkpoint.notes, *converted, UNTOLD]

    def save(self, path: Path) -> None:
        """Write the weights by spec path, whole or not at all. Raises `UserError` where the file cannot be written."""
        target = {"spec": Path(self.graph.sources[0].name).name} | describe(self.graph).target.model_dump()
        about = {
            f"{PREFIX}family": self.family.name,
            f"{PREFIX}checkpoint": self.checkpoint.path.name,
            f"{PREFIX}target": json_text(target),
        }
        write_tensors(path, self.weights, {"format": "pt"} | about)


def import_checkpoint(path: str | Path, graph: ModelGraph) -> Imported:
    """The weights of a graph's network from a file of the authors' code.

    Raises:
        UserError: the file cannot be read, is of no known family, or of another family or size than the spec; keys are
            missing, unknown or misshapen, or hold NaN or infinity. All that is wrong is named.
    """
    checkpoint = read_checkpoint(Path(path))
    shapes = {key: tuple(tensor.shape) for key, tensor in checkpoint.tensors.items()}
    family = family_of(shapes)
    if family is None:
        names = ", ".join(known.name for known in FAMILIES)
        raise UserError(f"`{path}` is no checkpoint of {names}: its keys are {_named(shapes, most=4)}")
    grid = _grid(path, family, graph)
    sizes = family.sizes(shapes, grid.channels)
    _check_sizes(path, family, sizes, graph)
    places = _places(family, graph, grid)
    tables = {row.key: table for row in family.tables if (table := _positions(graph, row)) is not None}
    wanted = {key: place.shape for key, place in places.items()}
    wanted |= {key: (1, *table.shape) for key, table in tables.items()}
    _check_keys(path, family, graph, shapes, wanted)
    entries: list[Entry] = []
    weights: dict[str, Tensor] = {}
    for key, tensor in checkpoint.tensors.items():
        row = family.row(key)
        assert row is not None
        status: Status = "unused"
        slot, note = None, ""
        match row:
            case Weight():
                slot = places[key].slot
                weights[slot] = _as_in_slot(tensor, places[key], grid)
                note = _permutation(row, grid.order)
                status = "permuted" if note else "mapped"
            case Table():
                _check_table(path, key, tensor, tables[key])
                status, note = "fixed", f"equals that of `{row.step}`"
            case Unused():
                note = row.reason
        dtype = str(tensor.dtype).removeprefix("torch.")
        entries.append(Entry(row, key, shapes[key], dtype, status, slot, note))
    if broken := [e.key for e in entries if e.slot and not weights[e.slot].isfinite().all()]:
        raise UserError(f"`{path}` holds NaN, infinity, or what is too large for float32 in {_named(broken)}")
    return Imported(checkpoint, family, sizes, graph, tuple(entries), weights)


def _named(paths: Collection[str], most: int = SHOWN) -> str:
    """Paths with commas between them, equal layers as one."""
    names = [fold.name for fold in folded(list(paths), [None] * len(paths))]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(f"`{name}`" for name in names[:most]) + more


def _spec(graph: ModelGraph) -> str:
    return f"{title_of(graph)} of {graph.sources[0].name}"


# ------------------------------------------------------------------ does the spec fit the family, and its size?


def _grid(path: str | Path, family: Family, graph: ModelGraph) -> Grid:
    """The grid of the spec's patches, if its weights are the family's by name.

    Raises:
        UserError: it has others, or lacks some; all are named.
    """
    empty = [slot for slot in graph.slots if all(layer_of(row.slot, slot) is None for row in family.weights)]
    absent = [
        row.slot.replace(LAYER, "*")
        for row in family.weights
        if all(layer_of(row.slot, slot) is None for slot in graph.slots)
    ]
    absent += [row.step for row in family.tables if _positions(graph, row) is None]
    grids = [node.typing.facts for node in graph.nodes if isinstance(node.operator, Patchify)]
    problems = [f"nothing fills {_named(empty)}"] if empty else []
    problems += [f"there is no {_named(absent)}"] if absent else []
    problems += [f"there are {len(grids)} `patchify`, not one"] if len(grids) != 1 else []
    if problems:
        message = f"`{path}` is {family.name}, and {_spec(graph)} is not: {'; '.join(problems)}"
        raise UserError(message, f"--as {family.spec}")
    (grid,) = grids
    assert isinstance(grid, Grid)
    return grid


def _check_sizes(path: str | Path, family: Family, sizes: Mapping[str, int], graph: ModelGraph) -> None:
    """The file's sizes are those of the spec's parameters of the same names."""

    def differing(other: ModelGraph) -> list[str]:
        return [name for name, size in sizes.items() if other.settings.get(name, size) != size]

    wrong = differing(graph)
    if not wrong:
        return
    source = graph.sources[0].name
    others = check(source)[1]
    model = f":{graph.model}" if len({other.model for other in others}) > 1 else ""
    variants = [
        f"--as {source}{model}@{other.variant}"
        for other in others
        if other.model == graph.model and other.variant and not differing(other)
    ]
    theirs = ", ".join(f"{name} {size}" for name, size in sizes.items())
    ours = ", ".join(f"{name} {graph.settings[name]}" for name in wrong)
    raise UserError(
        f"`{path}` is {family.name} with {theirs}, but {_spec(graph)} has {ours}",
        " or ".join(variants) or " ".join(f"--set {name}={sizes[name]}" for name in wrong),
        UNTOLD,
    )


# ------------------------------------------------------------------ every key, every slot


@dataclass(frozen=True)
class _Place:
    """Where a key belongs: its row, its slot, the shape there, and the shape in the file."""

    row: Weight
    slot: str
    inside: Shape
    shape: Shape


def _places(family: Family, graph: ModelGraph, grid: Grid) -> dict[str, _Place]:
    """For every slot of the graph the key that fills it."""
    found: dict[str, _Place] = {}
    for row in family.weights:
        for slot, declared in graph.slots.items():
            if (layer := layer_of(row.slot, slot)) is not None:
                inside = declared.shape
                kernel = (inside[0], grid.channels, grid.patch, grid.patch)
                shape = kernel if row.kernel else (1,) * row.lead + inside
                found[row.key.replace(LAYER, layer)] = _Place(row, slot, inside, shape)
    return found


def _check_keys(
    path: str | Path,
    family: Family,
    graph: ModelGraph,
    shapes: Mapping[str, Shape],
    wanted: Mapping[str, Shape],
) -> None:
    """Every key is there, in its shape, and no other than those that the published network does not use."""
    missing = [key for key in wanted if key not in shapes]
    unknown = [key for key in shapes if key not in wanted and not isinstance(family.row(key), Unused)]
    wrong = {key: (shapes[key], shape) for key, shape in wanted.items() if shapes.get(key, shape) != shape}
    problems = [f"missing: {_named(missing)}"] if missing else []
    problems += [f"not known: {_named(unknown)}"] if unknown else []
    problems += [
        f"`{fold.name}` is {list(fold.key[0])}, but must be {list(fold.key[1])}"
        for fold in folded(list(wrong), list(wrong.values()))
    ]
    if problems:
        raise UserError(f"`{path}` does not fill {_spec(graph)}: {'; '.join(problems)}")


def _as_in_slot(tensor: Tensor, place: _Place, grid: Grid) -> Tensor:
    """A tensor of the file as its slot has it: float32, in its shape, pixels in the order of the spec's patches."""
    weight = tensor.to(torch.float32, copy=True).contiguous().reshape(place.inside)
    if place.row.pixels is None:
        return weight
    sizes = {"p": grid.patch, "q": grid.patch, "c": grid.channels}
    theirs = place.row.order
    numbered = torch.arange(grid.patch**2 * grid.channels).reshape([sizes[axis] for axis in theirs])
    ours = numbered.permute([theirs.index(axis) for axis in grid.order]).flatten()
    return weight.index_select(place.row.pixels, ours)


def _permutation(row: Weight, ours: Order) -> str:
    """What `_as_in_slot` does to pixels, in words."""
    if row.kernel:
        return f"kernel (d,c,p,q) to rows (d,{','.join(ours)})"
    if row.pixels is None or row.order == ours:
        return ""
    return f"pixels ({','.join(row.order)}) to ({','.join(ours)})"


# ------------------------------------------------------------------ fixed tables


def _positions(graph: ModelGraph, row: Table) -> NDArray[np.float64] | None:
    """The fixed positions, (N, d), of the step that a row names; None where there is no such step."""
    for node in graph.nodes:
        if node.path == row.step and isinstance(node.operator, Position) and node.operator.table == "sincos":
            width = node.typing.output.shape[1].bound
            return sincos_table(node.typing.facts, width, node.operator.temperature)
    return None


def _check_table(path: str | Path, key: str, tensor: Tensor, ours: NDArray[np.float64]) -> None:
    """A fixed table of the file is that of the network."""
    difference = float((tensor[0].double() - torch.from_numpy(ours)).abs().max())
    rounding = 0.0 if tensor.dtype in (torch.float32, torch.float64) else 2 * torch.finfo(tensor.dtype).eps
    if not difference <= TABLE + rounding:  # so that NaN is refused too
        raise UserError(
            f"`{path}`: `{key}` is not the network's table of positions, but differs by {difference:.3g}"
        )
