"""`patchify` and `unpatchify`: a picture as a grid of patches, one token each, and back, bit for bit."""

from __future__ import annotations

from math import gcd
from typing import ClassVar, Literal

from crate_dsl.compiler.operators import (
    Certificate,
    Inverse,
    Mistake,
    Mode,
    NoInverse,
    Operator,
    Typing,
    Whole,
)
from crate_dsl.compiler.steps.norm.operator import width_of
from crate_dsl.compiler.types import Grid, Layout, Segment, TensorType, floats

#: Axes of a picture cut into patches, (b, c, h, p, w, q), in the order in which they make tokens (b, h, w, …).
CUT_TO_TOKENS = {"pqc": (0, 2, 4, 3, 5, 1), "cpq": (0, 2, 4, 1, 3, 5)}
#: The way back: axes of the tokens, (b, h, w, p, q, c) or (b, h, w, c, p, q), in the order (b, c, h, p, w, q).
TOKENS_TO_CUT = {"pqc": (0, 5, 1, 3, 2, 4), "cpq": (0, 3, 1, 4, 2, 5)}


class Patchify(Operator):
    """Cuts a picture into square patches, a token each, row by row: float[C, H, W] -> float[N, patch * patch * C].

    `order` says how the numbers of a patch lie in its token: `pqc` (row, column, channel) as published, `cpq` (channel,
    row, column) as in the weights of a convolution. The tokens are a segment `patches` that remembers its grid.
    """

    word: ClassVar[str] = "patchify"
    formula: ClassVar[str] = r"z_{ij} = \operatorname{vec}\bigl(x_{[ip,\,(i+1)p) \times [jp,\,(j+1)p)}\bigr)"
    source: ClassVar[str] = "Dosovitskiy et al. 2021, An Image is Worth 16x16 Words, arXiv 2010.11929, eq. 1"

    patch: Whole
    order: Literal["pqc", "cpq"] = "pqc"

    def infer(self, *inputs: TensorType) -> Typing:
        (image,) = inputs
        width_of(self.word, image, ranks=(3,))
        channels, height, width = (dim.static for dim in image.shape)
        if channels is None or height is None or width is None:
            raise Mistake(
                "E0402", f"`patchify` needs a picture of a size that is known, but is given {image}"
            )
        if height % self.patch or width % self.patch:
            common = gcd(height, width)
            fitting = ", ".join(str(size) for size in range(1, common + 1) if common % size == 0)
            raise Mistake(
                "E0320",
                f"a picture of {height} x {width} does not divide into patches of {self.patch} x {self.patch}",
                f"patch sizes that divide both: {fitting}",
                at="patch",
                label=str(self.patch),
            )
        grid = Grid(height // self.patch, width // self.patch, self.patch, channels, self.order)
        tokens = floats(grid.rows * grid.columns, self.patch**2 * channels)
        layout = Layout((Segment("patches", tokens.shape[0], grid),))
        return Typing((tokens.with_shape(*tokens.shape, layout=layout),), facts=grid)

    def inverse(self, mode: Mode, *inputs: TensorType) -> Inverse | NoInverse:
        return Inverse(Unpatchify())

    def certificate(self, *inputs: TensorType) -> Certificate | NoInverse:
        return Certificate(1.0, "numbers are put elsewhere, none is changed")


class Unpatchify(Operator):
    """Puts patches together to the picture that they were cut from: float[N, patch * patch * C] -> float[C, H, W].

    Grid, patch size and order come from the tokens' layout.
    """

    word: ClassVar[str] = "unpatchify"
    formula: ClassVar[str] = r"x_{[ip,\,(i+1)p) \times [jp,\,(j+1)p)} = \operatorname{vec}^{-1}(z_{ij})"
    source: ClassVar[str] = "the inverse of Dosovitskiy et al. 2021, arXiv 2010.11929, eq. 1"

    def infer(self, *inputs: TensorType) -> Typing:
        (tokens,) = inputs
        width = width_of(self.word, tokens)
        grid = _grid_of(tokens)
        wanted = grid.patch**2 * grid.channels
        if width != wanted:
            raise Mistake(
                "E0435",
                f"patches of {grid.patch} x {grid.patch} pixels and {grid.channels} channels are {wanted} wide, "
                f"but these tokens are {width} wide",
                f"`linear({wanted})` before it gives tokens of that width",
            )
        image = floats(grid.channels, grid.rows * grid.patch, grid.columns * grid.patch)
        return Typing((image,), facts=grid)

    def inverse(self, mode: Mode, *inputs: TensorType) -> Inverse | NoInverse:
        """The cut into patches. It needs the input's type, since that alone knows the grid."""
        if not inputs:
            return NoInverse("the size of its patches is known from its input alone")
        grid = _grid_of(*inputs)
        return Inverse(Patchify(patch=grid.patch, order=grid.order))

    def certificate(self, *inputs: TensorType) -> Certificate | NoInverse:
        return Certificate(1.0, "numbers are put elsewhere, none is changed")


def _grid_of(tokens: TensorType) -> Grid:
    """The grid of tokens that are patches and nothing else."""
    segments = tokens.layout.segments if tokens.layout is not None else ()
    patches = next((segment for segment in segments if segment.grid is not None), None)
    if patches is None or patches.grid is None:
        raise Mistake(
            "E0433",
            f"`unpatchify` needs tokens that were cut from a picture, but {tokens} has no grid",
            "tokens get their grid from `patchify`",
        )
    others = [segment.name for segment in segments if segment is not patches]
    if others:
        raise Mistake(
            "E0434",
            f"`unpatchify` takes patches alone, but there are other tokens too: {', '.join(others)}",
            f"`keep({patches.name})` before it leaves the patches",
        )
    return patches.grid
