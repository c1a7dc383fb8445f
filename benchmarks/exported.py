"""The published network as its users export it: torch.onnx.export, with a batch of any size."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from pathlib import Path

import torch
from torch import nn

#: torch's dynamo exporter writes this version and newer.
OPSET = 20


def program(net: nn.Module, image_bchw: torch.Tensor) -> torch.onnx.ONNXProgram:
    """An exported program of a classifier of images. What the exporter prints and warns of is kept quiet: it is about
    torch's own inside.
    """
    batch = torch.export.Dim("batch", min=1, max=4096)
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            found = torch.onnx.export(
                net.eval(),
                (image_bchw,),
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                input_names=["image"],
                output_names=["logits"],
                dynamic_shapes=({0: batch},),
            )
    finally:
        logger.setLevel(level)
    assert found is not None
    return found


def write(net: nn.Module, image_bchw: torch.Tensor, path: Path) -> None:
    """The same as a file, if it is not there yet. The example must not be of batch 1, which would be written down."""
    if not path.exists():
        program(net, image_bchw).save(str(path))
