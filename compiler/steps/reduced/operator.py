"""Affine maps in fewer bits. None of them has a spelling: `--precision` puts them in the place of `affine`.

Where `near` the identity, the matrix is K = M - I: the map is z + z K, and what is added to z is all that is rounded.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

from crate_dsl.compiler.operators import Ones, Operator, OperatorKind, Slot, Typing, Whole, Zeros
from crate_dsl.compiler.types import Dim, TensorType

Half = Literal["float16", "bfloat16"]


class ReducedOperator(Operator):
    """What the maps in fewer bits have in common."""

    kind: ClassVar[OperatorKind] = "lowered"

    dim: Whole
    bias: bool = True
    near: bool = False

    @property
    def tokenwise(self) -> bool:
        return True

    @property
    def stored(self) -> dict[str, str]:
        """The element types of weights that are not stored as float32."""
        raise NotImplementedError

    def infer(self, *inputs: TensorType) -> Typing:
        (value,) = inputs
        weights = {"matrix": Slot((value.shape[-1].bound, self.dim), Zeros())}
        if self.bias:
            weights["bias"] = Slot((self.dim,), Zeros())
        out = replace(value, shape=(*value.shape[:-1], Dim.of(self.dim)))
        return Typing((out,), weights, flops=2 * value.elements * self.dim)


class HalfAffine(ReducedOperator):
    """z M + b with the matrix, and the product where the machine has one, in 16 bits: (…, in) -> (…, dim).

    Where the result is `attended` to and nothing else, torch leaves it in 16 bits, as then are attention's products.
    """

    word: ClassVar[str] = "half_affine"
    formula: ClassVar[str] = r"(z +)\, z \hat M + b"

    element: Half
    attended: bool = False

    @property
    def stored(self) -> dict[str, str]:
        return {"matrix": self.element}


class Int8Affine(ReducedOperator):
    """z M + b as a product of whole numbers: (…, in) -> (…, dim).

    z is q(z) = clip(round(z / s) + o, 0, 255), with one `step` s and `origin` o for all tokens and channels; the matrix
    has whole numbers from -127 to 127, and a `steps` t for each column. The bias is whole too, in steps of s t.
    """

    word: ClassVar[str] = "int8_affine"
    formula: ClassVar[str] = r"(z +)\, s\, t \odot ((q(z) - o) \hat M + \hat b)"
    source: ClassVar[str] = "Jacob et al. 2018, arXiv 1712.05877, eq. 7"

    @property
    def stored(self) -> dict[str, str]:
        return {"matrix": "int8", "origin": "uint8", "bias": "int32"}

    def infer(self, *inputs: TensorType) -> Typing:
        typing = super().infer(*inputs)
        scales = {
            "step": Slot((), Ones()),
            "origin": Slot((), Zeros()),
            "steps": Slot((self.dim,), Ones()),
        }
        return replace(typing, weights={**typing.slots, **scales})
