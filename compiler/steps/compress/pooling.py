"""Representatives of tokens: means over the cells of the grid that the tokens were cut from. No tensors."""

from __future__ import annotations

from typing import ClassVar

from crate_dsl.compiler.operators import Form, Mistake, Whole
from crate_dsl.compiler.steps.position.operator import Patches
from crate_dsl.compiler.steps.tokens.operator import layout_of
from crate_dsl.compiler.types import TensorType


class Pool(Form):
    """Means over `rows` x `columns` cells of the picture's grid, as even as they can be.

    Cell i of P covers the rows from ⌊i H / P⌋ to before ⌈(i + 1) H / P⌉ of a grid of H rows: the cells of a grid that P
    does not divide overlap, and the tokens of a smaller grid are in several cells.
    """

    word: ClassVar[str] = "pool"

    rows: Whole
    columns: Whole

    @property
    def count(self) -> int:
        return self.rows * self.columns


def span(cell: int, cells: int, size: int) -> range:
    """The rows, or columns, of a grid of `size` that one of `cells` covers.

    >>> [span(cell, 3, 7) for cell in range(3)]
    [range(0, 3), range(2, 5), range(4, 7)]
    """
    return range(cell * size // cells, -(-(cell + 1) * size // cells))


def patches_of(tokens: TensorType, pool: Pool) -> Patches:
    """The tokens that were cut from one picture. Raises `Mistake` where there are none, or several such pictures."""
    cut = [segment for segment in layout_of(tokens) if segment.grid is not None]
    asked = f"`representatives = pool({pool.rows}, {pool.columns})` averages over cells of a picture's grid"
    if len(cut) != 1:
        found = (
            "these tokens have none"
            if not cut
            else f"there are {len(cut)}: {', '.join(segment.name for segment in cut)}"
        )
        help = "tokens get their grid from `patchify`; `representatives = tokens` lets all tokens represent themselves"
        raise Mistake("E0350", f"{asked}, and {found}", help, at="representatives")
    (segment,) = cut
    start = layout_of(tokens).start(segment.name).static
    if start is None:
        message = f"{asked}, and where `{segment.name}` begins is known only at run time"
        raise Mistake(
            "E0350",
            message,
            f"let `{segment.name}` stand before what has an open length",
            at="representatives",
        )
    assert segment.grid is not None
    return Patches(start, segment.grid.rows, segment.grid.columns)
