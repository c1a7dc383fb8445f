"""Affine maps in fewer bits, in ONNX. `…` are any axes."""

from __future__ import annotations

import numpy as np
import onnx

from crate_dsl.compiler.functions import Body
from crate_dsl.compiler.operators import Typing
from crate_dsl.compiler.steps.reduced.operator import HalfAffine, Int8Affine


def half_affine(
    b: Body, op: HalfAffine, typing: Typing, z: str, *, matrix: str, bias: str | None = None
) -> str:
    if op.element == "float16":
        # Where there is no product of 16 bits, as on most CPUs, onnxruntime takes the casts out and uses float32.
        narrow = b("Cast", z, to=onnx.TensorProto.FLOAT16)
        out = b("Cast", b("MatMul", narrow, matrix), to=onnx.TensorProto.FLOAT)
        out = out if bias is None else b("Add", out, bias)
    else:
        # onnxruntime has no product of bfloat16 on CPUs, and puts none in its place: the weights alone have 16 bits.
        wide = b("Cast", matrix, to=onnx.TensorProto.FLOAT)
        out = _product(b, typing, z, wide, bias)
    return b("Add", out, z) if op.near else out


def int8_affine(
    b: Body,
    op: Int8Affine,
    typing: Typing,
    z: str,
    *,
    matrix: str,
    step: str,
    origin: str,
    steps: str,
    bias: str | None = None,
) -> str:
    # Standard quantisation. onnxruntime makes one product of whole numbers of it, if no origin is left out.
    tokens = b("DequantizeLinear", b("QuantizeLinear", z, step, origin), step, origin)
    wide = b("DequantizeLinear", matrix, steps, b.constant(np.zeros(op.dim, np.int8)), axis=1)
    if bias is not None:
        bias = b("DequantizeLinear", bias, b("Mul", step, steps), axis=0)
    out = _product(b, typing, tokens, wide, bias)
    return b("Add", out, z) if op.near else out


def _product(b: Body, typing: Typing, z: str, matrix: str, bias: str | None) -> str:
    if typing.output.flat or typing.output.rank == 1:
        return b("Gemm", z, matrix, *([] if bias is None else [bias]))
    product = b("MatMul", z, matrix)
    return product if bias is None else b("Add", product, bias)
