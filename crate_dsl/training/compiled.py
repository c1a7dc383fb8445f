"""Compiled training: one program for the whole of an objective's forward and backward."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from crate_dsl.language.diagnostics import UserError


def compile_(objective: nn.Module) -> None:
    """Compile an objective in place: its names, weights and class stay what they are, and what it draws at random.

    The first step of a run takes long: that is when it is compiled. All batches of a run are of one size.
    """
    objective.compile(dynamic=False, options={"fallback_random": True})


def check_compiler(device: torch.device) -> None:
    """Compile something small, to find out before a run begins.

    Raises:
        UserError: there is no compiler here, or it lacks what torch needs of it.
    """
    from torch._dynamo.exc import TorchDynamoException

    # From a cache it would work without a compiler.
    doubled = torch.compile(_doubled, dynamic=False, options={"fx_graph_cache": False})
    try:
        doubled(torch.ones(3, device=device))
    except TorchDynamoException as problem:  # what torch makes of every failure to compile
        said = next(
            (line.strip() for line in str(problem).splitlines() if line.strip()), "no reason is given"
        )
        help = "install g++ or clang, or name one: CXX=/path/to/g++"
        if device.type == "cuda":
            help = "install triton, and gcc or clang: CC=/path/to/gcc"
        raise UserError(f"`--compile` cannot be used here: {said}", help) from problem


def _doubled(values: Tensor) -> Tensor:
    return values + values
