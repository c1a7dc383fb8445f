"""Equal layers of a repeat as one: `encoder.0.compress`, …, `encoder.11.compress` -> `encoder.0-11.compress`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any


@dataclass(frozen=True, slots=True)
class Fold:
    """Things of one kind that differ in the numbers of their layers alone.

    `parts` are the pieces of their common name, numbers of layers as ranges; `members` say which things they are, by
    their places in the sequence that was folded.
    """

    parts: tuple[str, ...]
    members: tuple[int, ...]
    key: Any

    @property
    def name(self) -> str:
        return ".".join(self.parts)

    @property
    def count(self) -> int:
        return len(self.members)


def unfolded(names: Sequence[str], keys: Sequence[Any]) -> list[Fold]:
    """Each thing by itself."""
    pairs = enumerate(zip(names, keys, strict=True))
    return [Fold(tuple(name.split(".")), (index,), key) for index, (name, key) in pairs]


def folded(names: Sequence[str], keys: Sequence[Any]) -> list[Fold]:
    """The things in order, successive layers whose things have equal keys and equal names as one.

    >>> [fold.name for fold in folded(["f.0.a", "f.0.b", "f.1.a", "f.1.b", "f.2.a"], "xyxyx")]
    ['f.0-1.a', 'f.0-1.b', 'f.2.a']
    """
    return _folded(unfolded(names, keys), 0)


def _folded(folds: list[Fold], depth: int) -> list[Fold]:
    """Fold what differs in the part at `depth` or behind it."""
    groups: list[tuple[str, list[Fold]]] = []
    for part, run in groupby(folds, lambda fold: fold.parts[depth] if len(fold.parts) > depth + 1 else ""):
        inside = list(run)
        groups.append((part, _folded(inside, depth + 1) if part else inside))
    found: list[Fold] = []
    start = 0
    while start < len(groups):
        part, first = groups[start]
        end = start + 1
        if part.isdigit():
            while (
                end < len(groups)
                and groups[end][0] == str(int(part) + end - start)
                and _alike(first, groups[end][1], depth)
            ):
                end += 1
        if end - start == 1:
            found += first
        else:
            layers = [layer for _, layer in groups[start:end]]
            found += [
                _merged(alike, f"{part}-{groups[end - 1][0]}", depth) for alike in zip(*layers, strict=True)
            ]
        start = end
    return found


def _alike(one: list[Fold], other: list[Fold], depth: int) -> bool:
    return len(one) == len(other) and all(
        (a.parts[depth + 1 :], a.count, a.key) == (b.parts[depth + 1 :], b.count, b.key)
        for a, b in zip(one, other, strict=True)
    )


def _merged(alike: Sequence[Fold], part: str, depth: int) -> Fold:
    first = alike[0]
    parts = (*first.parts[:depth], part, *first.parts[depth + 1 :])
    return Fold(parts, tuple(index for fold in alike for index in fold.members), first.key)
