"""Nested plain data with tensors in it as one safetensors file: what Lightning would pickle, without pickle.

The tensors lie in the file under their paths (`state_dict.objective.net.encoder.0.compress.…`); everything else is JSON
in the file's metadata, with a mark where each tensor belongs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from crate_dsl.language.diagnostics import UserError
from crate_dsl.training.files import write_tensors

#: Where the JSON stands in the file's metadata.
KEY = "crate_dsl.checkpoint"


def save_plain(value: Mapping[str, Any], path: Path) -> None:
    """Write nested mappings, lists, tuples, numbers, texts and tensors; whole or not at all.

    Raises:
        UserError: the file cannot be written.
        TypeError: there is something else in it.
    """
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_packed(value, "", tensors))
    write_tensors(path, tensors, {KEY: text})


def load_plain(path: Path, device: torch.device | str = "cpu") -> Any:
    """Read what `save_plain` wrote.

    Raises:
        UserError: there is no such file, or it is cut off, damaged, or something else.
    """
    try:
        with safe_open(path, "pt", device=str(device)) as file:
            text = (file.metadata() or {}).get(KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        if text is None:
            raise UserError(f"{path} is no checkpoint of a run")
        return _unpacked(json.loads(text), tensors)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError) as problem:
        raise UserError(f"{path} is cut off or damaged: {problem}") from problem


def _packed(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[path] = value.detach().contiguous()
        return {"$tensor": path}
    if isinstance(value, Mapping):
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return {
                key: _packed(item, f"{path}.{key}" if path else key, tensors) for key, item in value.items()
            }
        return {"$pairs": [[key, _packed(item, f"{path}.{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        items = [_packed(item, f"{path}.{index}", tensors) for index, item in enumerate(value)]
        return items if isinstance(value, list) else {"$tuple": items}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{path} is a {type(value).__name__}, which is no plain data")


def _unpacked(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpacked(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "$tensor" in value:
        return tensors[value["$tensor"]]
    if "$tuple" in value:
        return tuple(_unpacked(item, tensors) for item in value["$tuple"])
    if "$pairs" in value:
        return {key: _unpacked(item, tensors) for key, item in value["$pairs"]}
    return {key: _unpacked(item, tensors) for key, item in value.items()}
