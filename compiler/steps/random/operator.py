"""Random steps of training: `mask_tokens`, `crops`, `augment`. They draw from torch's generator, each time anew."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from crate_dsl.compiler.operators import (
    Fraction01,
    Inverse,
    Mistake,
    Mode,
    NoInverse,
    NonNegative,
    Operator,
    OperatorKind,
    Part,
    Port,
    Positive,
    Typing,
    Whole,
)
from crate_dsl.compiler.steps.hidden.operator import check_marks
from crate_dsl.compiler.steps.norm.operator import width_of
from crate_dsl.compiler.types import TensorType, floats

#: A probability, or a change by at most the whole: 0 <= x <= 1.
Chance = Annotated[float, Field(ge=0, le=1)]
#: The number of a token.
Token = Annotated[int, Field(ge=0)]


class _Drawn(Operator):
    kind: ClassVar[OperatorKind] = "training"

    def inverse(self, mode: Mode, *inputs: TensorType) -> Inverse | NoInverse:
        return NoInverse("what it draws is drawn anew each time")


class MaskTokens(_Drawn):
    """Hides a share of the tokens of a text, and says which: index(vocab)[n] -> the same, and bool[n].

    `masked, chosen = ids -> mask_tokens(0.15, fill = 103)`. Each token is chosen with probability `ratio`, whatever
    becomes of the others: of a short text, it may be none, and then it adds nothing to a loss over the chosen. (The
    published code draws a fixed number of each text.) Of the chosen, the share `random` become a token drawn evenly
    from the whole vocabulary, the share `keep` stay, and all others become `fill`, the number of the mask token. What
    `kept`, bool[n], marks as padding, by false, is never chosen.
    """

    word: ClassVar[str] = "mask_tokens"
    formula: ClassVar[str] = (
        r"c_i \sim \operatorname{Bernoulli}(\rho),\quad \tilde x_i = x_i \text{ where } c_i = 0, \text{ else } "
        r"m,\ \operatorname{Uniform}\{0, \dots, V - 1\} \text{ or } x_i \text{ with probability } "
        r"1 - \rho_r - \rho_k,\ \rho_r,\ \rho_k"
    )
    source: ClassVar[str] = "Devlin et al. 2019 (BERT), arXiv 1810.04805, section 3.1, task 1"

    ratio: Part
    fill: Token
    random: Chance = 0.1
    keep: Chance = 0.1
    kept: Port | None = None

    def infer(self, *inputs: TensorType) -> Typing:
        (ids,) = inputs
        if ids.kind != "index" or ids.rank != 1:
            raise Mistake("E0411", f"`mask_tokens` takes whole numbers, index(vocab)[n], but is given {ids}")
        assert ids.classes is not None
        if self.fill >= ids.classes:
            raise Mistake(
                "E0470",
                f"`fill` is token {self.fill}, but tokens of {ids} are 0 to {ids.classes - 1}",
                f"a vocabulary with a token more, for what is hidden: index({ids.classes + 1}), and "
                f"`fill = {ids.classes}`",
                at="fill",
            )
        if self.random + self.keep > 1:
            raise Mistake(
                "E0471",
                f"`random` and `keep` are shares of the chosen tokens, but {self.random:g} + {self.keep:g} is more "
                "than all of them",
                at="keep",
            )
        if self.kept is not None:
            check_marks(self.word, "kept", self.kept.type, ids)
        return Typing((ids, TensorType("bool", ids.shape, layout=ids.layout)), facts=ids.classes)


class Crops(_Drawn):
    """Cuts random parts out of a picture, each brought to one size: float[C, H, W] -> float[count, C, size, size].

    Each part of each picture is drawn anew. Its share of the area is uniform within `scale`; its width over its
    height is uniform in the logarithm within those of `ratio` at which it fits into the picture, so that no area is
    drawn more seldom; its place is uniform; with probability `flip` it is mirrored. Where no such part fits, as the
    whole of a long picture, it is the largest of the nearest `ratio`. Pixels between pixels are interpolated
    (bilinear); where a part is brought to fewer pixels, each is a mean over those that it stands for (a triangle as
    wide as two of the new pixels), so that nothing is skipped.
    """

    word: ClassVar[str] = "crops"
    formula: ClassVar[str] = (
        r"w h = s\, W H,\quad s \sim \operatorname{Uniform}[s_0, s_1],\quad "
        r"\log \tfrac{w}{h} \sim \operatorname{Uniform}[\log r_0, \log r_1]"
    )
    source: ClassVar[str] = (
        "Szegedy et al. 2015, Going Deeper with Convolutions, arXiv 1409.4842, section 6; many of one picture: Caron "
        "et al. 2020 (SwAV), arXiv 2006.09882, section 3.2"
    )

    count: Whole
    size: Whole
    scale: tuple[Part, Part] = (0.08, 1.0)
    ratio: tuple[Positive, Positive] = (3 / 4, 4 / 3)
    flip: Chance = 0.5

    def infer(self, *inputs: TensorType) -> Typing:
        (image,) = inputs
        width_of(self.word, image, ranks=(3,))
        for argument in ("scale", "ratio"):
            low, high = getattr(self, argument)
            if low > high:
                raise Mistake(
                    "E0472",
                    f"`{argument}` is the smallest and the largest, but {low:g} is more than {high:g}",
                    f"{argument} = [{high:g}, {low:g}]",
                    at=argument,
                )
        out = floats(self.count, image.shape[0], self.size, self.size)
        _, height, width = (dim.bound for dim in image.shape)
        lines = self.count * image.shape[0].bound * self.size * width
        return Typing((out,), flops=2 * (lines * height + out.elements * width))


class Augment(_Drawn):
    """Changes a picture a little, as what it shows would not be changed: float[C, H, W] -> the same.

    With probability `flip` it is mirrored. It is moved by whole pixels, each way up to the share `shift` of its side,
    and what comes in repeats the edge. The distance of its pixels from their mean is multiplied by a number within 1
    ± `contrast`, and a number within ± `brightness` is added to all of them, in the units of the pixels: `crate-dsl
    train` gives pixels with a standard deviation of 1. All are uniform, and drawn anew for each picture.
    """

    word: ClassVar[str] = "augment"
    formula: ClassVar[str] = (
        r"\mu + (1 + c)(x_{\pi} - \mu) + b,\quad c \sim \operatorname{Uniform}[-c_0, c_0],\ "
        r"b \sim \operatorname{Uniform}[-b_0, b_0],\quad \pi \text{ a flip and a shift}"
    )
    source: ClassVar[str] = (
        "Krizhevsky et al. 2012 (AlexNet), section 4.1; colours: Howard 2013, arXiv 1312.5402"
    )

    flip: Chance = 0.5
    shift: Fraction01 = 0.1
    brightness: NonNegative = 0.2
    contrast: Chance = 0.2

    def infer(self, *inputs: TensorType) -> Typing:
        (image,) = inputs
        width_of(self.word, image, ranks=(3,))
        return Typing((image,), flops=4 * image.elements)
