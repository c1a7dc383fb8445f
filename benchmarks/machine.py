"""What was measured on: the processor, what of it matters for matrix products, and the versions."""

from __future__ import annotations

import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

#: Of the processor's flags, those that decide how fast matrix products are.
FLAGS = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_bf16",
    "amx_int8",
    "asimd",
    "sve",
    "bf16",
)
PACKAGES = ("torch", "numpy", "onnx", "onnxruntime-gpu", "onnxruntime", "onnxscript", "openvino")


def machine() -> dict[str, Any]:
    """Processor, flags, cores and versions, without a date and without a name."""
    file = Path("/proc/cpuinfo")
    text = file.read_text() if file.is_file() else ""
    model = re.search(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", text, re.MULTILINE)
    return {
        "processor": model[1] if model else platform.processor() or platform.machine(),
        "flags": [flag for flag in FLAGS if flags and flag in flags[1].split()],
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := _version(name)) is not None},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
