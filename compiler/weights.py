"""A network's weights: from a file that holds them by spec path, and as arrays for export."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import nn

from crate_dsl.compiler.constraints import violated
from crate_dsl.compiler.graph import ModelGraph
from crate_dsl.language.diagnostics import UserError

#: Names shown of weights that do not fit; the rest is only counted.
SHOWN = 8


def load_weights(net: nn.Module, path: str | Path) -> None:
    """Give a network the weights of a `.safetensors` file: all of them, and nothing else.

    Such a file is a run's `model.safetensors`, or what `crate-dsl import` writes.

    Raises:
        UserError: there is no such file, it is damaged, or its names and shapes are not the network's: each is named.
    """
    if not Path(path).is_file():
        raise UserError(f"there is no file `{path}`")
    expected = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    try:
        with safe_open(path, "pt") as file:
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            wrong = [f"`{name}` is missing" for name in expected if name not in found]
            wrong += [f"`{name}` is not known" for name in found if name not in expected]
            wrong += [
                f"`{name}` is {list(found[name])}, but must be {list(shape)}"
                for name, shape in expected.items()
                if name in found and found[name] != shape
            ]
            if wrong:
                more = f"; and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
                raise UserError(f"{path} does not fit the network: {'; '.join(wrong[:SHOWN])}{more}")
            weights = {name: file.get_tensor(name) for name in found}
    except (SafetensorError, OSError) as problem:
        raise UserError(f"{path} is cut off or damaged: {problem}") from problem
    broken = [name for name, tensor in weights.items() if not tensor.isfinite().all()]
    if broken:
        raise UserError(f"{path} holds NaN or infinity in `{'`, `'.join(broken[:SHOWN])}`")
    net.load_state_dict(weights)


def plain_weights(graph: ModelGraph, net: nn.Module) -> dict[str, NDArray[np.float32]]:
    """The network's weights by slot path.

    Raises:
        UserError: they are not this graph's, not float32, not finite, or off their constraint.
    """
    state: dict[str, torch.Tensor] = {name: value.detach() for name, value in net.state_dict().items()}
    if missing := [f"`{slot}`" for slot in graph.slots if slot not in state]:
        raise UserError(
            f"this is not the network of `{graph.model}`: it has no weight {', '.join(missing[:3])}"
        )
    for slot, wanted in graph.slots.items():
        value = state[slot]
        if tuple(value.shape) != wanted.shape:
            raise UserError(
                f"this is not the network of `{graph.model}`: `{slot}` is of shape {list(value.shape)}, not"
                f" {list(wanted.shape)}"
            )
        if value.dtype != torch.float32:
            dtype = str(value.dtype).removeprefix("torch.")
            raise UserError(f"`{slot}` is {dtype}, and float32 is what is exported", "net.float()")
        if not bool(torch.isfinite(value).all()):
            raise UserError(
                f"`{slot}` holds numbers that are not finite", "export a checkpoint from before it diverged"
            )
        if (off := violated(value, wanted)) is not None:
            raise UserError(
                f"`{slot}` must be {wanted.constraint}, and is off by {off:.1e}",
                "a training loop of your own calls `net.constrain_()` after each step",
            )
    return {slot: state[slot].cpu().numpy() for slot in graph.slots}
