"""Rotary positions: a form of the argument `positions`, and the rotation as a part of steps."""

from __future__ import annotations

from typing import ClassVar, Literal

from crate_dsl.compiler.operators import (
    Form,
    Mistake,
    Operator,
    OperatorKind,
    Port,
    Positive,
    Typing,
    Whole,
)
from crate_dsl.compiler.types import TensorType


class Rotary(Form):
    """What is compared is rotated by its place: queries and keys, not values (Su et al. 2021, arXiv 2104.09864).

    In each subspace or head, entries j and j + p/2 are a plane, which turns by base^(-2j/p) from one place to the
    next. Products of queries and keys then depend on how far apart two tokens are, and not on where they are. Places
    are those on the token axis, counted from 0.
    """

    word: ClassVar[str] = "rotary"
    base: Positive = 10000.0


class Rotate(Operator):
    """Tokens of `heads` heads side by side, each rotated by its place: (N, m) -> (N, m).

    `past` is the place of the first token, 0 where it is left out. Entries j and j + p/2 of a head are a plane.
    """

    word: ClassVar[str] = "rotate"
    kind: ClassVar[OperatorKind] = "lowered"
    formula: ClassVar[str] = (
        r"\begin{bmatrix} \cos i\omega_j & -\sin i\omega_j \\ \sin i\omega_j & \cos i\omega_j \end{bmatrix} "
        r"\begin{bmatrix} z_{i,j} \\ z_{i,j+p/2} \end{bmatrix},\quad \omega_j = T^{-2j/p}"
    )
    source: ClassVar[str] = "Su et al. 2021, RoFormer, arXiv 2104.09864, eq. 34"

    heads: Whole
    base: Positive = 10000.0
    past: Port | None = None

    def infer(self, *inputs: TensorType) -> Typing:
        (tokens,) = inputs
        return Typing((tokens,), flops=3 * tokens.elements)


def check_rotary(positions: Literal["none"] | Rotary, rank: int, at: str) -> None:
    """Planes need an even number of entries. Raises `Mistake`; `at` is the argument that says how many there are."""
    if isinstance(positions, Rotary) and rank % 2:
        raise Mistake(
            "E0484",
            f"rotary positions turn pairs of entries, and {rank} of them in each subspace or head are no pairs",
            "an even number of them",
            at=at,
            label=str(rank),
        )
