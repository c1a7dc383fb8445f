"""`each` in ONNX. Axes: B batch, V items; `…` are the axes of an item."""

from __future__ import annotations

from crate_dsl.compiler.functions import Body
from crate_dsl.compiler.operators import Typing
from crate_dsl.compiler.steps.each.operator import Fold, Unfold


def fold(b: Body, op: Fold, typing: Typing, x: str) -> str:
    return b("Reshape", x, _sizes(b, typing, x, first=2))


def unfold(b: Body, op: Unfold, typing: Typing, x: str, *, like: str) -> str:
    return b("Reshape", x, _sizes(b, typing, x, first=1, items=op.count))


def _sizes(b: Body, typing: Typing, x: str, first: int, items: int | None = None) -> str:
    """The result's sizes: its batch, the items where there are any, and an item's own, `first` and on in `x`."""
    lead = [-1] if items is None else [-1, items]
    own = [dim.static for dim in typing.output.shape[len(lead) - 1 :]]
    known = [size for size in own if size is not None]
    if len(known) == len(own):
        return b.integers(*lead, *known)
    return b("Concat", b.integers(*lead), b("Shape", x, start=first), axis=0)
