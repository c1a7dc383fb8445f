"""`conv` and `batch_norm` in ONNX."""

from __future__ import annotations

from crate_dsl.compiler.functions import Body
from crate_dsl.compiler.operators import Typing
from crate_dsl.compiler.steps.conv.operator import BatchNorm, Conv


def conv(b: Body, op: Conv, typing: Typing, x_bchw: str, *, weight: str, bias: str | None = None) -> str:
    return b(
        "Conv",
        *([x_bchw, weight] if bias is None else [x_bchw, weight, bias]),
        kernel_shape=[op.kernel, op.kernel],
        strides=[op.stride, op.stride],
        pads=[op.around] * 4,
    )


def batch_norm(
    b: Body, op: BatchNorm, typing: Typing, x_bchw: str, *, weight: str, bias: str, mean: str, variance: str
) -> str:
    return b("BatchNormalization", x_bchw, weight, bias, mean, variance, epsilon=op.eps)
