"""`position`: tells tokens where they stand, by a table or by sines and cosines. `sinusoid`: those of a number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import InstanceOf

from crate_dsl.compiler.operators import (
    Certificate,
    Initial,
    Inverse,
    Mistake,
    Mode,
    NoInverse,
    Normal,
    NotStepped,
    Operator,
    OperatorKind,
    Positive,
    Slot,
    Stepped,
    Typing,
    Whole,
    Zeros,
    linear_initial,
)
from crate_dsl.compiler.steps.norm.operator import width_of
from crate_dsl.compiler.steps.tokens.operator import layout_of
from crate_dsl.compiler.types import Segment, TensorType, floats

#: Sines and cosines that `position(fourier)` knows a place by: 16 frequencies, of the row and of the column.
FOURIER_FEATURES = 64


@dataclass(frozen=True, slots=True)
class Patches:
    """Tokens of a grid: the first one's place on the token axis, and the grid's sides."""

    start: int
    rows: int
    columns: int

    @property
    def count(self) -> int:
        return self.rows * self.columns


@dataclass(frozen=True, slots=True)
class Positions:
    """What one use of `position` adds: `rows` positions, of which the first N are taken where `sliced`.

    `patches` are the tokens that come from grids. `resized_from` is the grid, (rows, columns), that a learned table is
    for, where it is not the input's.
    """

    rows: int
    sliced: bool
    patches: tuple[Patches, ...] = ()
    resized_from: tuple[int, int] | None = None


class Position(Operator):
    """Adds to each token a vector for its place.

    `learned` is a table over all tokens, the class token's row included, as published. `length` is its number of rows
    where the number of tokens is known only at run time. `grid = [14, 14]` says which grid the patches' rows are for,
    and `resize = bicubic` fits them to the input's; other tokens keep their own rows.

    `sincos` is fixed. Patches of a grid get half their width from the column and half from the row, in this order and
    each as sines, then cosines, as in the published code; other tokens beside them get zeros. Tokens without a grid get
    their place in the sequence.

    `fourier` is a learned linear map of fixed features: each patch of a grid has 64 sines and cosines, in turn, first
    of 2π (row + 1) / rows, then of its column, at 16 frequencies. Tokens beside the grid get nothing.
    """

    word: ClassVar[str] = "position"
    formula: ClassVar[str] = (
        r"z_i + E_i,\quad \text{sincos: } E_i = [s(i)],\; [s(c_i),\, s(r_i)],\quad "
        r"s(t) = [\sin t\omega,\, \cos t\omega],\; \omega_j = T^{-j/m},\; j < m;\quad "
        r"\text{fourier: } E_i = P\,[s(2\pi r_i / R),\, s(2\pi c_i / C)] + b"
    )
    source: ClassVar[str] = (
        "learned: Dosovitskiy et al. 2021, arXiv 2010.11929, eq. 1; sincos: Vaswani et al. 2017, arXiv 1706.03762, "
        "section 3.5, on grids He et al. 2022 (MAE), arXiv 2111.06377; bicubic: Keys 1981, a = -0.75 as torch has it; "
        "fourier: El-Nouby et al. 2021 (XCiT), arXiv 2106.09681, and Wu et al. 2024 (ToST), arXiv 2412.17810"
    )

    table: Literal["learned", "sincos", "fourier"]
    length: Whole | None = None
    grid: tuple[Whole, Whole] | None = None
    resize: Literal["none", "bicubic"] = "none"
    initial: Initial = Normal(std=0.02)
    temperature: Positive = 10000.0

    def infer(self, *inputs: TensorType) -> Typing:
        (tokens,) = inputs
        width = width_of(self.word, tokens)
        self._check_arguments()
        _check_places(tokens)
        if self.table == "sincos":
            return Typing((tokens,), facts=self._sincos(tokens, width), flops=tokens.elements)
        if self.table == "fourier":
            facts = self._fourier(tokens)
            weights = {
                "projection": Slot((width, FOURIER_FEATURES), linear_initial(FOURIER_FEATURES)),
                "bias": Slot((width,), Zeros()),
            }
            mapped = 2 * facts.rows * FOURIER_FEATURES * width
            return Typing((tokens,), weights, facts, flops=mapped + tokens.elements)
        facts = self._learned(tokens)
        if facts.resized_from is None:
            return Typing(
                (tokens,), {"table": Slot((facts.rows, width), self.initial)}, facts, tokens.elements
            )
        ((old_rows, old_columns), (patches,)) = facts.resized_from, facts.patches
        slot = Slot((facts.rows - patches.count + old_rows * old_columns, width), self.initial)
        resizing = 2 * width * patches.rows * old_columns * (old_rows + patches.columns)
        return Typing((tokens,), {"table": slot}, facts, tokens.elements + resizing)

    def inverse(self, mode: Mode, *inputs: TensorType) -> Inverse | NoInverse:
        shared = {"learned": ("table",), "sincos": (), "fourier": ("projection", "bias")}[self.table]
        return Inverse(Unposition(of=self), {name: name for name in shared})

    def certificate(self, *inputs: TensorType) -> Certificate | NoInverse:
        return Certificate(1.0, "what was added is subtracted")

    def stepped(self, *inputs: TensorType) -> Stepped | NotStepped:
        from crate_dsl.compiler.steps.cached.operator import PositionStep

        facts: Positions = self.infer(*inputs).facts
        if facts.patches or facts.resized_from is not None:
            return NotStepped("knows places in a picture, and no next ones")
        return Stepped(PositionStep(of=self.model_copy(update={"length": facts.rows})))

    def _check_arguments(self) -> None:
        """Refuse arguments that would do nothing."""
        owners = {"grid": "learned", "resize": "learned", "initial": "learned", "temperature": "sincos"}
        for name, other in owners.items():
            fits = self.table == other or (name == "temperature" and self.table == "fourier")
            if not fits and getattr(self, name) != type(self).model_fields[name].default:
                raise Mistake(
                    "E0305",
                    f"`{name}` belongs to `position({other})`, not to `position({self.table})`",
                    at=name,
                )
        if self.grid is None and self.resize != "none":
            raise Mistake(
                "E0305",
                "`resize` needs the grid that the table is for",
                "say `grid = [14, 14]` for a table of 14 x 14 positions",
                at="resize",
            )
        if self.grid is not None and self.length is not None:
            raise Mistake(
                "E0305",
                "`length` and `grid` both say how long the table is",
                "leave one of them out",
                at="length",
            )

    def _rows(self, tokens: TensorType) -> int:
        """How many positions there are where no grid says so."""
        count = tokens.shape[0]
        if self.length is None:
            if count.static is None and self.table == "learned":
                raise Mistake(
                    "E0322",
                    f"`position(learned)` needs a `length`: there are {count} tokens, which is known only at run time",
                    f"there are at most {count.bound} here: `length = {count.bound}`",
                    at="table",
                )
            return count.bound
        if count.bound > self.length:
            many = f"{count}, at most {count.bound}, tokens" if count.static is None else f"{count} tokens"
            raise Mistake(
                "E0321",
                f"a table of {self.length} positions is too short for {many}",
                f"`length = {count.bound}` is enough",
                at="length",
                label=str(self.length),
            )
        return self.length

    def _learned(self, tokens: TensorType) -> Positions:
        count = tokens.shape[0]
        if self.grid is None:
            rows = self._rows(tokens)
            return Positions(rows, sliced=count.static != rows)
        cut = [segment for segment in layout_of(tokens) if segment.grid is not None]
        if len(cut) != 1:
            found = (
                "these have no grid" if not cut else f"there are {len(cut)}: {', '.join(s.name for s in cut)}"
            )
            raise Mistake(
                "E0433", f"`grid` needs tokens that were cut from one picture, but {found}", at="grid"
            )
        patches = _place(tokens, cut[0])
        given = (patches.rows, patches.columns)
        if given == self.grid:
            return Positions(_known(tokens), sliced=False)
        if self.resize == "none":
            ours, theirs = (f"{rows} x {columns}" for rows, columns in (self.grid, given))
            raise Mistake(
                "E0432",
                f"the table is for a grid of {ours}, but these tokens come from one of {theirs}",
                "`resize = bicubic` fits the table to the tokens",
                at="grid",
                label=ours,
            )
        return Positions(_known(tokens), sliced=False, patches=(patches,), resized_from=self.grid)

    def _sincos(self, tokens: TensorType, width: int) -> Positions:
        cut = [segment for segment in layout_of(tokens) if segment.grid is not None]
        parts = 4 if cut else 2
        if width % parts:
            nearest = [str(near) for near in (width // parts * parts, (width // parts + 1) * parts) if near]
            raise Mistake(
                "E0438",
                f"`position(sincos)` needs a width that {parts} divides, half for sines and half for cosines"
                f"{' of rows and of columns' if cut else ''}, but these tokens are {width} wide",
                f"the nearest widths that would do: {', '.join(nearest)}",
            )
        if not cut:
            rows = self._rows(tokens)
            return Positions(rows, sliced=tokens.shape[0].static != rows)
        return self._on_grids(tokens, cut)

    def _fourier(self, tokens: TensorType) -> Positions:
        cut = [segment for segment in layout_of(tokens) if segment.grid is not None]
        if not cut:
            raise Mistake(
                "E0433",
                f"`position(fourier)` needs tokens that were cut from a picture, but {tokens} has no grid",
            )
        return self._on_grids(tokens, cut)

    def _on_grids(self, tokens: TensorType, cut: list[Segment]) -> Positions:
        """The places of tokens that come from grids."""
        if self.length is not None:
            raise Mistake(
                "E0305",
                "`length` is for tokens without a grid: the grid says how many these are",
                at="length",
            )
        return Positions(
            _known(tokens), sliced=False, patches=tuple(_place(tokens, segment) for segment in cut)
        )


class Unposition(Operator):
    """Subtracts what a `position` added: the compiler makes it where a stage is undone."""

    word: ClassVar[str] = "unposition"
    kind: ClassVar[OperatorKind] = "lowered"
    formula: ClassVar[str] = r"z_i - E_i"

    of: InstanceOf[Position]

    def infer(self, *inputs: TensorType) -> Typing:
        return self.of.infer(*inputs)


class Sinusoid(Operator):
    """The fixed embedding of a number: float -> float[dim], and float[…] -> float[…, dim].

    `dim` / 2 sines, then as many cosines, of the number times falling frequencies, as `position(sincos)` has of places.
    A whole number, such as a time step `index(1000)`, is taken as it is; a time in [0, 1] is scaled up before.
    """

    word: ClassVar[str] = "sinusoid"
    formula: ClassVar[str] = (
        r"[\sin t\omega,\, \cos t\omega],\quad \omega_j = T^{-j/m},\; j < m = \mathrm{dim} / 2"
    )
    source: ClassVar[str] = (
        "Vaswani et al. 2017, arXiv 1706.03762, section 3.5; of a time: Ho et al. 2020 (DDPM), arXiv 2006.11239"
    )

    dim: Whole
    temperature: Positive = 10000.0

    def infer(self, *inputs: TensorType) -> Typing:
        (value,) = inputs
        if value.kind == "bool":
            raise Mistake("E0401", f"`{self.word}` takes numbers, but is given {value}")
        if self.dim % 2:
            raise Mistake(
                "E0483",
                f"half of `dim` are sines and half are cosines, so that it is even, but it is {self.dim}",
                f"the nearest: {', '.join(str(near) for near in (self.dim - 1, self.dim + 1) if near)}",
                at="dim",
            )
        out = floats(*value.shape, self.dim, layout=value.layout)
        return Typing((out,), flops=2 * out.elements)

    def inverse(self, mode: Mode, *inputs: TensorType) -> Inverse | NoInverse:
        return NoInverse("most vectors are the embedding of no number")


def _check_places(tokens: TensorType) -> None:
    """Refuse tokens that were taken by index: each sample's have places of their own."""
    for segment in layout_of(tokens):
        if segment.whole is not None:
            raise Mistake(
                "E0449",
                f"`position` cannot tell where these {segment.length} of {segment.whole.length} `{segment.name}` stand",
                "let `position` stand before `gather`, or behind `scatter`",
            )


def _known(tokens: TensorType) -> int:
    """The number of tokens beside and in a grid."""
    count = tokens.shape[0].static
    if count is None:
        raise Mistake(
            "E0901", f"positions on a grid beside tokens of unknown number ({tokens}) are not there yet"
        )
    return count


def _place(tokens: TensorType, segment: Segment) -> Patches:
    _known(tokens)
    assert segment.grid is not None
    return Patches(layout_of(tokens).start(segment.name).offset, segment.grid.rows, segment.grid.columns)
