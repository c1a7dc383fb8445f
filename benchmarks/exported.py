"""Networks as ONNX models in memory: the published one by torch.onnx.export, with a batch of any size, and ours as
`crate_dsl.export` writes it, lowered, but without its proof.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from pathlib import Path

import onnx
import torch
from torch import nn

import crate_dsl
from crate_dsl.compiler.emit import emit
from crate_dsl.compiler.export import plain_weights
from crate_dsl.compiler.network import Network

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


def lowered_model(net: Network) -> onnx.ModelProto:
    """Ours, lowered."""
    lowered = crate_dsl.lower(net)
    return emit(lowered.graph, plain_weights(lowered.graph, lowered))
