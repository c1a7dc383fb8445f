"""`rotations` in ONNX. Axes: B batch, C channels, S x S pixels."""

from __future__ import annotations

import numpy as np

from crate_dsl.compiler.functions import Body
from crate_dsl.compiler.operators import Typing
from crate_dsl.compiler.steps.rotations.operator import Rotations

#: Where a slice backwards to the beginning ends.
BEGINNING = np.iinfo(np.int64).min


def _reversed(b: Body, x: str, *axes: int) -> str:
    last, beginning, back = ((value,) * len(axes) for value in (-1, BEGINNING, -1))
    return b("Slice", x, b.integers(*last), b.integers(*beginning), b.integers(*axes), b.integers(*back))


def rotations(b: Body, op: Rotations, typing: Typing, x_bcss: str) -> str:
    across = b("Transpose", x_bcss, perm=[0, 1, 3, 2])
    turns = [x_bcss, _reversed(b, across, 2), _reversed(b, x_bcss, 2, 3), _reversed(b, across, 3)]
    return b("Concat", *[b("Unsqueeze", turn, b.integers(1)) for turn in turns], axis=1)
