"""The everyday parts of networks: `linear`, `transpose`, `gelu`, `relu`, `silu`, `dropout`, `scale`."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

from crate_dsl.compiler.operators import (
    Certificate,
    Fraction01,
    Inverse,
    LearnedInverse,
    Mistake,
    Mode,
    NoInverse,
    Operator,
    Port,
    Scalar,
    Slot,
    TiedInverse,
    Typing,
    Weight,
    Whole,
    check_scalar,
    learned_slots,
    linear_initial,
)
from crate_dsl.compiler.types import TensorType, floats


def last_width(step: str, value: TensorType) -> int:
    """The last dimension of a float tensor, whatever axes stand before it. Raises `Mistake` where there is none."""
    if value.kind != "float" or value.rank == 0:
        raise Mistake("E0401", f"`{step}` takes float[dim] or float[tokens, dim], but is given {value}")
    width = value.shape[-1].static
    if width is None:
        raise Mistake("E0402", f"`{step}` needs a width that is known, but is given {value}")
    return width


def with_width(value: TensorType, width: int) -> TensorType:
    """The same tensor with another last dimension; its tokens, if it has any, stay what they are."""
    return value.with_shape(*value.shape[:-1], width, layout=value.layout if value.rank > 1 else None)


class Linear(Operator):
    """A linear map of the last axis to width `dim`, with a bias unless `bias = false`."""

    word: ClassVar[str] = "linear"
    formula: ClassVar[str] = "W z + b"
    transposable: ClassVar[str | None] = "weight"

    dim: Whole
    bias: bool = True

    @property
    def tokenwise(self) -> bool:
        return True

    def infer(self, *inputs: TensorType) -> Typing:
        (value,) = inputs
        width = last_width(self.word, value)
        weights = {"weight": Slot((self.dim, width), linear_initial(width))}
        if self.bias:
            weights["bias"] = Slot((self.dim,), linear_initial(width))
        return Typing((with_width(value, self.dim),), weights, flops=2 * value.elements * self.dim)

    def inverse(self, mode: Mode, *inputs: TensorType) -> Inverse | NoInverse:
        (value,) = inputs
        if isinstance(mode, LearnedInverse):
            return Inverse(Linear(dim=last_width(self.word, value), bias=self.bias))
        if not isinstance(mode, TiedInverse):
            return NoInverse("nothing says that its weight can be inverted", "mode = learned, or tied")
        if self.bias:
            return NoInverse("it adds a bias that its transpose does not take off", "linear(…, bias = false)")
        weight = Weight("weight", floats(self.dim, last_width(self.word, value)))
        return Inverse(Transpose(weight=weight, of="linear"), {"weight": "weight"})


class Transpose(Operator):
    """The weights of a linear step, used the other way: `transpose(embedding)` gives a score to each whole number.

    `weight` is borrowed from a step whose word is `of`: an embedding keeps it as (vocab, dim), a linear map as
    (out, in). A bias has no part in it.
    """

    word: ClassVar[str] = "transpose"
    formula: ClassVar[str] = r"W^\top z"
    source: ClassVar[str] = "tied embeddings: Press and Wolf 2017, arXiv 1608.05859"

    weight: Weight
    of: Literal["embed", "linear"]

    @property
    def tokenwise(self) -> bool:
        return True

    def infer(self, *inputs: TensorType) -> Typing:
        (value,) = inputs
        first, last = (dim.bound for dim in self.weight.type.shape)
        wanted, result = (last, first) if self.of == "embed" else (first, last)
        width = last_width(self.word, value)
        if width != wanted:
            raise Mistake(
                "E0412",
                f"`transpose` leads back from width {wanted} to {result}, but is given {value}",
                at="weight",
                label=f"{self.of}: {result} to {wanted}",
            )
        return Typing(
            (with_width(value, result),), {"weight": self.weight}, flops=2 * value.elements * result
        )

    def inverse(self, mode: Mode, *inputs: TensorType) -> Inverse | NoInverse:
        return NoInverse("it is a way back itself")


class _Elementwise(Operator):
    """A function of each number of a float tensor of any shape."""

    @property
    def tokenwise(self) -> bool:
        return True

    def infer(self, *inputs: TensorType) -> Typing:
        (value,) = inputs
        if value.kind != "float":
            raise Mistake("E0401", f"`{self.word}` takes a float tensor, but is given {value}")
        return Typing((value,), flops=value.elements)


class Gelu(_Elementwise):
    """The Gaussian error linear unit, exact (by erf, not its tanh approximation)."""

    word: ClassVar[str] = "gelu"
    formula: ClassVar[str] = r"\tfrac{z}{2}\left(1 + \operatorname{erf}(z / \sqrt{2})\right)"
    source: ClassVar[str] = (
        "Hendrycks and Gimpel 2016, Gaussian Error Linear Units, arXiv 1606.08415, section 2"
    )

    def inverse(self, mode: Mode, *inputs: TensorType) -> Inverse | NoInverse:
        return NoInverse("gelu takes different numbers to the same one")


class Relu(_Elementwise):
    """The positive part."""

    word: ClassVar[str] = "relu"
    formula: ClassVar[str] = r"\max(z, 0)"
    source: ClassVar[str] = (
        "Nair and Hinton 2010, Rectified Linear Units Improve Restricted Boltzmann Machines"
    )

    def inverse(self, mode: Mode, *inputs: TensorType) -> Inverse | NoInverse:
        return NoInverse("relu forgets what is negative")


class Silu(_Elementwise):
    """The sigmoid linear unit, also called swish."""

    word: ClassVar[str] = "silu"
    formula: ClassVar[str] = r"z \,/\, (1 + e^{-z})"
    source: ClassVar[str] = (
        "Hendrycks and Gimpel 2016, Gaussian Error Linear Units, arXiv 1606.08415, section 2"
    )

    def inverse(self, mode: Mode, *inputs: TensorType) -> Inverse | NoInverse:
        return NoInverse("silu takes different numbers to the same one")


class Dropout(_Elementwise):
    """While training, sets each number to zero with probability `p` and scales up the rest; afterwards, nothing."""

    word: ClassVar[str] = "dropout"
    formula: ClassVar[str] = r"\tfrac{1}{1 - p}\, m \odot z,\quad m \sim \operatorname{Bernoulli}(1 - p)"
    source: ClassVar[str] = (
        "Srivastava et al. 2014, Dropout, JMLR 15, section 4; scaled while training, not afterwards"
    )
    identity_at_inference: ClassVar[bool] = True

    p: Fraction01

    def infer(self, *inputs: TensorType) -> Typing:
        return replace(super().infer(*inputs), flops=0)

    def inverse(self, mode: Mode, *inputs: TensorType) -> Inverse | NoInverse:
        return NoInverse("dropout discards information")


class Scale(Operator):
    """Multiplies by a number, given or learned; a learned one for each channel (`learn(1e-5, shape = [dim])`); or one
    for each sample.
    """

    word: ClassVar[str] = "scale"
    formula: ClassVar[str] = r"\gamma \odot z"
    source: ClassVar[str] = (
        "one learned factor for each channel: Touvron et al. 2021 (LayerScale), arXiv 2103.17239"
    )

    factor: Scalar

    @property
    def tokenwise(self) -> bool:
        return not isinstance(self.factor, Port)

    def infer(self, *inputs: TensorType) -> Typing:
        (value,) = inputs
        if value.kind != "float":
            raise Mistake("E0401", f"`{self.word}` takes a float tensor, but is given {value}")
        width = value.shape[-1].static if value.rank else None
        check_scalar(self, "factor", width or 1)
        return Typing((value,), learned_slots(self), flops=value.elements)

    def inverse(self, mode: Mode, *inputs: TensorType) -> Inverse | NoInverse:
        if not isinstance(self.factor, float):
            return NoInverse("a factor that is not a fixed number may become zero")
        if not self.factor:
            return NoInverse("it multiplies by zero")
        return Inverse(Scale(factor=1 / self.factor))

    def certificate(self, *inputs: TensorType) -> Certificate | NoInverse:
        if not isinstance(self.factor, float) or not self.factor:
            return NoInverse("nothing certifies that its factor is not zero")
        return Certificate(1 / abs(self.factor), f"1 / |{self.factor:g}|")
