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

#: Threads spin while a run lasts, since waking one takes longer than a small product, and sleep after it. Everything
#: else is onnxruntime's default: all optimisations, a thread a core. (Numbers so small that they are denormal are
#: computed as they are; `session.set_denormal_as_zero` would be faster where there are any.)
OPTIONS = {"session.intra_op.allow_spinning": "1", "session.force_spinning_stop": "1"}
#: onnxruntime's own level of messages: what matters is raised.
FATAL = 4

#: A batch's arrays by input name -> the first output.
Call = Callable[[Mapping[str, NDArray[Any]]], NDArray[Any]]


def onnxruntime_call(model: Path | bytes) -> Call:
    """A file, or its bytes, in onnxruntime on the CPU."""
    chosen = onnxruntime.SessionOptions()
    chosen.log_severity_level = FATAL
    for name, value in OPTIONS.items():
        chosen.add_session_config_entry(name, value)
    given = model if isinstance(model, bytes) else str(model)
    session = onnxruntime.InferenceSession(given, chosen, providers=["CPUExecutionProvider"])
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
