"""The machine's matrix-product peak, measured: the best of several sizes, in torch and in onnxruntime."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx
import torch
from onnx import helper

from benchmarks.measure import Effort, interleaved, rows
from benchmarks.sessions import onnxruntime_call

#: (m, k, n) of the products that are tried: what networks ask for, and what libraries like best.
SIZES = ((1576, 768, 768), (1576, 768, 3072), (1024, 1024, 1024), (2048, 2048, 2048), (4096, 1024, 1024))


def measured(effort: Effort) -> dict[str, float]:
    """Operations a second by precision, 2 for a multiply-add: the best median.

    onnxruntime has no bfloat16 product on CPUs, so that peak is torch's.
    """
    variants = {}
    for m, k, n in SIZES:
        for dtype in (torch.float32, torch.bfloat16):
            left, right = torch.randn(m, k).to(dtype), torch.randn(k, n).to(dtype)
            name = str(dtype).removeprefix("torch.")
            variants[f"{name} torch {m} {k} {n}"] = partial(torch.mm, left, right)
        variants[f"float32 onnxruntime {m} {k} {n}"] = partial(
            onnxruntime_call(_product(m, k, n).SerializeToString()),
            {"a": np.random.default_rng(0).random((m, k), np.float32)},
        )
    best: dict[str, float] = {}
    for name, row in rows(interleaved(variants, effort), next(iter(variants))).items():
        precision, _, *size = name.split()
        m, k, n = map(int, size)
        best[precision] = max(best.get(precision, 0.0), 2 * m * k * n / row["median"])
    return best


def _product(m: int, k: int, n: int) -> onnx.ModelProto:
    """One product with a weight, as a network has it."""
    weight = np.random.default_rng(1).random((k, n), np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["a", "b"], ["c"])],
        "product",
        [helper.make_tensor_value_info("a", onnx.TensorProto.FLOAT, [m, k])],
        [helper.make_tensor_value_info("c", onnx.TensorProto.FLOAT, [m, n])],
        [onnx.numpy_helper.from_array(weight, "b")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
