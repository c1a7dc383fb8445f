"""`rotations`: a picture and its three turns by quarters."""

from __future__ import annotations

from typing import ClassVar

from crate_dsl.compiler.operators import Inverse, Mistake, Mode, NoInverse, Operator, Typing
from crate_dsl.compiler.steps.norm.operator import width_of
from crate_dsl.compiler.types import TensorType, floats


class Rotations(Operator):
    """A square picture turned by no, one, two and three quarters: float[C, S, S] -> float[4, C, S, S].

    Turns are counter-clockwise, the pixels the same ones bit for bit. `image -> rotations -> each { encoder } ->
    linear(4)` gives the scores that the loss `rotation` takes.
    """

    word: ClassVar[str] = "rotations"
    formula: ClassVar[str] = r"y_r = T^r x,\quad (T x)_{ij} = x_{j,\, S - 1 - i},\quad r = 0, \dots, 3"
    source: ClassVar[str] = "Gidaris et al. 2018 (RotNet), arXiv 1803.07728, section 2.2"

    def infer(self, *inputs: TensorType) -> Typing:
        (image,) = inputs
        width_of(self.word, image, ranks=(3,))
        channels, height, width = image.shape
        if height != width:
            raise Mistake(
                "E0478",
                f"`rotations` turns square pictures, and one of {height} x {width} turned is one of {width} x {height}",
                "`crops(…, size = …)` gives square ones",
            )
        return Typing((floats(4, channels, height, width),))

    def inverse(self, mode: Mode, *inputs: TensorType) -> Inverse | NoInverse:
        return NoInverse("its four turns need not be those of one picture")
