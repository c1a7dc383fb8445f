"""Tensor types: dimensions that may be symbolic, element kinds, and the layout of a token axis.

Types are those of one sample: the batch axis is always there, always dynamic, and never written.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import prod
from typing import Literal


@dataclass(frozen=True, slots=True)
class Symbol:
    """A length known when the network runs: `n <= 1024`, and at least `least`."""

    name: str
    bound: int
    least: int = 1


@dataclass(frozen=True, slots=True)
class Dim:
    """A dimension: a whole number, or `scale * symbol + offset`.

    >>> Dim.of(3) + 1
    Dim(4)
    >>> str(Dim.symbolic(Symbol("n", 8)) + 1)
    'n + 1'
    """

    offset: int
    scale: int = 0
    symbol: Symbol | None = None

    @staticmethod
    def of(value: int | Dim) -> Dim:
        return value if isinstance(value, Dim) else Dim(value)

    @staticmethod
    def symbolic(symbol: Symbol) -> Dim:
        return Dim(0, 1, symbol)

    @property
    def static(self) -> int | None:
        """The whole number, or None where the length is known only at run time."""
        return self.offset if self.symbol is None else None

    @property
    def bound(self) -> int:
        """The largest value: costs are counted there."""
        return self.offset + (self.scale * self.symbol.bound if self.symbol else 0)

    def at(self, lengths: dict[str, int]) -> int:
        """The value where symbols have these lengths."""
        return self.offset + (self.scale * lengths[self.symbol.name] if self.symbol else 0)

    def __add__(self, other: int | Dim) -> Dim:
        other = Dim.of(other)
        if self.symbol is not None and other.symbol is not None and self.symbol != other.symbol:
            raise ValueError(f"{self} + {other} mixes two lengths")
        scale = self.scale + other.scale
        return Dim(self.offset + other.offset, scale, (self.symbol or other.symbol) if scale else None)

    def __sub__(self, other: int | Dim) -> Dim:
        return self + Dim.of(other) * -1

    def __mul__(self, factor: int) -> Dim:
        return Dim(self.offset * factor, self.scale * factor, self.symbol if self.scale * factor else None)

    def __str__(self) -> str:
        if self.symbol is None:
            return str(self.offset)
        term = self.symbol.name if self.scale == 1 else f"{self.scale} * {self.symbol.name}"
        if self.offset == 0:
            return term
        return f"{term} {'+' if self.offset > 0 else '-'} {abs(self.offset)}"

    def __repr__(self) -> str:
        return f"Dim({self})"


#: The shapes of several tensors.
Shapes = tuple[tuple[Dim, ...], ...]


@dataclass(frozen=True, slots=True)
class Grid:
    """The picture that a run of tokens was cut from: `rows` x `columns` patches of `patch` x `patch` pixels."""

    rows: int
    columns: int
    patch: int
    channels: int
    order: Literal["pqc", "cpq"] = "pqc"


@dataclass(frozen=True, slots=True)
class Segment:
    """A named run of tokens. `grid` is where it came from, if it came from a picture; `whole` is the segment that its
    tokens were taken from by index, if they were.
    """

    name: str
    length: Dim
    grid: Grid | None = None
    whole: Segment | None = None

    @property
    def size(self) -> str:
        """`6`, `6(2x3)`, or `4/6(2x3)`: four of six that have a grid."""
        grid = f"({self.grid.rows}x{self.grid.columns})" if self.grid else ""
        return f"{self.length}{grid}" + (f"/{self.whole.size}" if self.whole else "")


@dataclass(frozen=True, slots=True)
class Layout:
    """What a token axis consists of, in order."""

    segments: tuple[Segment, ...]

    @property
    def length(self) -> Dim:
        total = Dim.of(0)
        for segment in self.segments:
            total = total + segment.length
        return total

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter(self.segments)

    @property
    def names(self) -> list[str]:
        return [segment.name for segment in self.segments]

    def start(self, name: str) -> Dim:
        """How many tokens stand before a segment; KeyError if there is none of that name."""
        before = Dim.of(0)
        for segment in self.segments:
            if segment.name == name:
                return before
            before = before + segment.length
        raise KeyError(name)

    def segment(self, name: str) -> Segment:
        """The segment of that name; KeyError if there is none."""
        for segment in self.segments:
            if segment.name == name:
                return segment
        raise KeyError(name)

    def __str__(self) -> str:
        return " ".join(f"{segment.name}:{segment.size}" for segment in self)


Kind = Literal["float", "index", "bool"]


@dataclass(frozen=True, slots=True)
class TensorType:
    """The type of one sample's tensor. `classes` bounds an index; `layout` describes axis 0 where that is a token axis.

    `flat` tokens are the rows of one matrix, those of all samples one after another: the batch axis and axis 0 are one.
    Two types are equal where kind, shape, bound and flatness are; the layout does not take part.
    """

    kind: Kind
    shape: tuple[Dim, ...]
    classes: int | None = None
    layout: Layout | None = field(default=None, compare=False)
    flat: bool = False

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def elements(self) -> int:
        """Numbers in one sample, at the bound of symbolic lengths."""
        return prod(dim.bound for dim in self.shape)

    def with_shape(self, *shape: int | Dim, layout: Layout | None = None) -> TensorType:
        return replace(self, shape=tuple(Dim.of(dim) for dim in shape), layout=layout)

    def sizes(self, lengths: dict[str, int]) -> tuple[int, ...]:
        """The shape where symbols have these lengths."""
        return tuple(dim.at(lengths) for dim in self.shape)

    def __str__(self) -> str:
        kind = f"index({self.classes})" if self.kind == "index" else self.kind
        text = kind + (f"[{', '.join(map(str, self.shape))}]" if self.shape else "")
        return f"flat {text}" if self.flat else text


def floats(*shape: int | Dim, layout: Layout | None = None) -> TensorType:
    """A float tensor of that shape.

    >>> str(floats(3, 224, 224))
    'float[3, 224, 224]'
    """
    return TensorType("float", tuple(Dim.of(dim) for dim in shape), layout=layout)


#: What the length of tokens that are gone by is called: those before the tokens that a network is given next.
PAST = "past"


def held(tokens: TensorType, width: int) -> TensorType:
    """A row of that width for each token before these.

    >>> str(held(floats(Dim.symbolic(Symbol("n", 8)), 5), 3))
    'float[past, 3]'
    """
    return floats(Dim.symbolic(Symbol(PAST, tokens.shape[0].bound, least=0)), width)


def grown(rows: TensorType, tokens: TensorType) -> TensorType:
    """Rows that are held, and one more for each of these tokens: a sum of two lengths is a length of its own.

    >>> n = floats(Dim.symbolic(Symbol("n", 8)), 5)
    >>> str(grown(held(n, 3), n))
    'float[past + n, 3]'
    """
    before, new = rows.shape[0], tokens.shape[0]
    if before.symbol is None or new.symbol is None or before.symbol == new.symbol:
        count = before + new
    else:
        count = Dim.symbolic(Symbol(f"{before} + {new}", max(before.bound, new.bound)))
    return rows.with_shape(count, *rows.shape[1:])
