"""`conv` and `batch_norm`: pictures to pictures, before they are cut into tokens."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from crate_dsl.compiler.operators import (
    Inverse,
    Mistake,
    Mode,
    NoInverse,
    Ones,
    Operator,
    Part,
    Positive,
    Slot,
    Typing,
    Whole,
    Zeros,
    linear_initial,
)
from crate_dsl.compiler.steps.norm.operator import width_of
from crate_dsl.compiler.types import TensorType, floats


class Conv(Operator):
    """A convolution with square kernels: float[C, H, W] -> float[dim, H', W'].

    Around the picture stand `padding` rows and columns of zeros; without the argument there are kernel // 2 of them,
    which keeps the size where `stride` is 1 and the kernel is odd: H' = ⌊(H + 2 padding - kernel) / stride⌋ + 1.

    Behind it, `patchify(1)` makes tokens, one for each pixel.
    """

    word: ClassVar[str] = "conv"
    formula: ClassVar[str] = (
        r"y_{o,i,j} = \sum_{c,u,v} W_{o,c,u,v}\, x_{c,\, s i + u - p,\, s j + v - p} + b_o"
    )
    source: ClassVar[str] = (
        "LeCun et al. 1998, Gradient-Based Learning Applied to Document Recognition, section II; as a stem of "
        "transformers: Xiao et al. 2021, arXiv 2106.14881"
    )

    dim: Whole
    kernel: Whole = 3
    stride: Whole = 1
    padding: Annotated[int, Field(ge=0)] | None = None
    bias: bool = True

    @property
    def around(self) -> int:
        """Rows and columns of zeros on each side."""
        return self.kernel // 2 if self.padding is None else self.padding

    def infer(self, *inputs: TensorType) -> Typing:
        (picture,) = inputs
        channels, height, width = _picture(self.word, picture)
        if self.kernel > min(height, width) + 2 * self.around:
            rim = f" with a rim of {self.around} around it" if self.around else ""
            raise Mistake(
                "E0482",
                f"a kernel of {self.kernel} x {self.kernel} does not fit into a picture of {height} x {width}{rim}",
                f"a kernel of at most {min(height, width) + 2 * self.around}, or fewer convolutions with a stride "
                "before it",
                at="kernel",
            )
        rows, columns = ((n + 2 * self.around - self.kernel) // self.stride + 1 for n in (height, width))
        fan_in = channels * self.kernel**2
        weights = {"weight": Slot((self.dim, channels, self.kernel, self.kernel), linear_initial(fan_in))}
        if self.bias:
            weights["bias"] = Slot((self.dim,), linear_initial(fan_in))
        out = floats(self.dim, rows, columns)
        return Typing((out,), weights, flops=2 * out.elements * fan_in)

    def inverse(self, mode: Mode, *inputs: TensorType) -> Inverse | NoInverse:
        return NoInverse("nothing says that its kernels can be inverted")


class BatchNorm(Operator):
    """Normalises each channel of pictures over all samples and places, then scales and shifts it by learned numbers.

    While training, by the mean and variance of the batch; each batch moves the running `mean` and `variance` by the
    share `momentum`, the variance as that of a sample. Afterwards, and where its weights are frozen, by those two. They
    travel with the weights, and no optimiser moves them.
    """

    word: ClassVar[str] = "batch_norm"
    formula: ClassVar[str] = r"\gamma_c \frac{x_{c,i,j} - \mu_c}{\sqrt{\sigma_c^2 + \epsilon}} + \beta_c"
    source: ClassVar[str] = (
        "Ioffe and Szegedy 2015, Batch Normalization, arXiv 1502.03167, algorithms 1 and 2"
    )

    eps: Positive = 1e-5
    momentum: Part = 0.1

    def infer(self, *inputs: TensorType) -> Typing:
        (picture,) = inputs
        channels, _, _ = _picture(self.word, picture)
        weights = {
            "weight": Slot((channels,), Ones()),
            "bias": Slot((channels,), Zeros()),
            "mean": Slot((channels,), Zeros(), trained=False),
            "variance": Slot((channels,), Ones(), trained=False),
        }
        return Typing((picture,), weights, flops=2 * picture.elements)

    def inverse(self, mode: Mode, *inputs: TensorType) -> Inverse | NoInverse:
        return NoInverse("it forgets each channel's mean and size")


def _picture(step: str, picture: TensorType) -> tuple[int, int, int]:
    """Channels, height and width, which must be known. Raises `Mistake`."""
    width_of(step, picture, ranks=(3,))
    channels, height, width = (dim.static for dim in picture.shape)
    if channels is None or height is None or width is None:
        raise Mistake("E0402", f"`{step}` needs a picture of a size that is known, but is given {picture}")
    return channels, height, width
