"""The same onnxruntime session for every file, and OpenVINO's, as functions of a batch's arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnxruntime
from numpy.typing import NDArray

from crate_dsl.compiler.runtime import options

#: A batch's arrays by input name -> the first output.
Call = Callable[[Mapping[str, NDArray[Any]]], NDArray[Any]]


def onnxruntime_call(model: Path | bytes) -> Call:
    """A file, or its bytes, in onnxruntime on the CPU, with the options that `open_session` runs with."""
    given = model if isinstance(model, bytes) else str(model)
    session = onnxruntime.InferenceSession(given, options(), providers=["CPUExecutionProvider"])
    names = [session.get_outputs()[0].name]
    return lambda feeds: session.run(names, feeds)[0]


def openvino_call(model: Path, precision: str) -> Call:
    """A file in OpenVINO on the CPU, computing in `f32` or `bf16`: by itself it takes the second where the processor is
    good at it. It knows no local functions, so that they are written out first.
    """
    import openvino

    core = openvino.Core()
    plain = onnx.inliner.inline_local_functions(onnx.load(str(model)))
    settings = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
    read = core.read_model(plain.SerializeToString(), b"")
    request = core.compile_model(read, "CPU", settings).create_infer_request()
    return lambda feeds: np.array(request.infer(dict(feeds))[0])


def missing(package: str) -> str | None:
    """Why a variant is left out; None where its package is installed."""
    return None if find_spec(package) else f"`{package}` is not installed: pip install -e '.[bench]'"
