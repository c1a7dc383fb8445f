"""`norm`: layer or root-mean-square normalisation of each token, and the form in which other steps contain it."""

from __future__ import annotations

from typing import ClassVar

from crate_dsl.compiler.operators import (
    Form,
    Inverse,
    LearnedInverse,
    Mistake,
    Mode,
    NoInverse,
    Ones,
    Operator,
    Positive,
    Slot,
    Typing,
    Zeros,
)
from crate_dsl.compiler.types import TensorType


class LayerNorm(Form):
    """Zero mean and unit variance over the width, then a learned scale and shift (Ba et al. 2016)."""

    word: ClassVar[str] = "layer"
    eps: Positive = 1e-5


class RmsNorm(Form):
    """Unit root mean square over the width, then a learned scale (Zhang and Sennrich 2019)."""

    word: ClassVar[str] = "rms"
    eps: Positive = 1e-6


class NoNorm(Form):
    """Tokens as they are."""

    word: ClassVar[str] = "none"


NormForm = LayerNorm | RmsNorm | NoNorm


def norm_slots(form: NormForm, width: int, prefix: str = "") -> dict[str, Slot]:
    """The weights of a norm over `width`, as a step that contains it names them."""
    slots: dict[str, Slot] = {}
    if not isinstance(form, NoNorm):
        slots[f"{prefix}weight"] = Slot((width,), Ones())
    if isinstance(form, LayerNorm):
        slots[f"{prefix}bias"] = Slot((width,), Zeros())
    return slots


def width_of(step: str, tokens: TensorType, ranks: tuple[int, ...] = (2,)) -> int:
    """The width of float tokens: the last dimension, which must be known. Raises `Mistake` where there is none."""
    if tokens.kind != "float" or tokens.rank not in ranks:
        wanted = " or ".join(
            {1: "float[dim]", 2: "float[tokens, dim]", 3: "float[channels, height, width]"}[r] for r in ranks
        )
        raise Mistake("E0401", f"`{step}` takes {wanted}, but is given {tokens}")
    width = tokens.shape[-1].static
    if width is None:
        raise Mistake("E0402", f"`{step}` needs a width that is known, but is given {tokens}")
    return width


class Norm(Operator):
    """Normalises each token over its width.

    `norm(rms, eps = 1e-8)` is short for `norm(rms(eps = 1e-8))`.
    """

    word: ClassVar[str] = "norm"
    formula: ClassVar[str] = (
        r"\gamma \odot \frac{z - \operatorname{mean} z}{\sqrt{\operatorname{var} z + \epsilon}} + \beta"
    )
    source: ClassVar[str] = (
        "layer: Ba et al. 2016, arXiv 1607.06450; rms: Zhang and Sennrich 2019, arXiv 1910.07467"
    )

    by: LayerNorm | RmsNorm = LayerNorm()
    eps: Positive | None = None

    @property
    def form(self) -> LayerNorm | RmsNorm:
        """The norm, with `eps` where it was given beside the word (`norm(eps = 1e-6)`)."""
        return self.by if self.eps is None else type(self.by)(eps=self.eps)

    @property
    def tokenwise(self) -> bool:
        return True

    def infer(self, *inputs: TensorType) -> Typing:
        (tokens,) = inputs
        width = width_of(self.word, tokens, ranks=(1, 2))
        return Typing((tokens,), norm_slots(self.form, width), flops=5 * tokens.elements)

    def inverse(self, mode: Mode, *inputs: TensorType) -> Inverse | NoInverse:
        if isinstance(mode, LearnedInverse):
            return Inverse(Norm(by=self.by, eps=self.eps))
        return NoInverse(
            "it forgets each token's mean and size", "mode = learned, or no norm outside a branch"
        )
