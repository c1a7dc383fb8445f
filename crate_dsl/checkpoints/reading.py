"""A checkpoint's tensors by name, from a file that nobody has to trust: what would have to be run is refused."""

from __future__ import annotations

import re
import struct
import warnings
import zipfile
from argparse import Namespace
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from crate_dsl.language.diagnostics import UserError

#: No published checkpoint, optimiser included, comes near either.
LARGEST_BYTES, MOST_KEYS = 32 * 2**30, 10_000
#: What training scripts call the state that they save beside other things; such wrappers are nested twice at most.
WRAPPERS, DEPTH = ("state_dict", "model"), 2
#: What `DataParallel` and `DistributedDataParallel` put before every name.
PREFIX = "module."
#: What a weight may be called.
NAME = re.compile(r"[\w.]{1,200}")
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
#: What torch's restricted unpickler raises at files that are cut off, damaged or hostile.
DAMAGED = (
    UnpicklingError,
    zipfile.BadZipFile,
    struct.error,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
#: How torch names, in the middle of a page of advice, what it would have had to call.
_FOREIGN = re.compile(r"GLOBAL ([\w.]+)")
#: Wrong names that are shown; the rest is only counted.
SHOWN = 8


@dataclass(frozen=True)
class Checkpoint:
    """A file's tensors by name, as they lie there, and in words what was opened, stripped or left alone."""

    path: Path
    tensors: Mapping[str, Tensor]
    notes: tuple[str, ...]


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a file of `torch.save`, or a `.safetensors` file. Nothing in it is run.

    Raises:
        UserError: there is no such file; it is cut off, damaged, something else, or far too large; it holds other
            Python objects than tensors and plain data; or what it holds are no plain floating-point tensors by name.
    """
    if path.is_dir():
        raise UserError(f"`{path}` is a folder, not a checkpoint")
    if not path.is_file():
        raise UserError(f"there is no file `{path}`")
    if path.stat().st_size > LARGEST_BYTES:
        raise UserError(f"`{path}` is larger than any checkpoint: more than {LARGEST_BYTES / 2**30:.0f} GiB")
    value, notes = _unwrapped(_safetensors(path) if path.suffix == ".safetensors" else _torch(path))
    if not isinstance(value, Mapping) or not any(isinstance(item, Tensor) for item in value.values()):
        raise UserError(f"`{path}` holds no weights by name", "torch.save(model.state_dict(), …)")
    if len(value) > MOST_KEYS:
        raise UserError(f"`{path}` is larger than any checkpoint: {len(value):,} names")
    if wrong := list(_wrong(value)):
        raise UserError(f"`{path}` holds what is no weight: {some(wrong)}")
    tensors: dict[str, Tensor] = {name: tensor.detach() for name, tensor in value.items()}
    if all(name.startswith(PREFIX) for name in tensors):
        tensors = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}
        notes.append(f"`{PREFIX}` is stripped from every key")
    return Checkpoint(path, tensors, tuple(notes))


def some(items: list[str]) -> str:
    """The first items with semicolons between them, and how many more there are."""
    more = f"; and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return "; ".join(items[:SHOWN]) + more


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, OverflowError) as problem:
        raise UserError(f"`{path}` is cut off, damaged, or no safetensors file: {problem}") from problem


def _torch(path: Path) -> Any:
    """What `torch.save` wrote. Of Python's objects, the arguments of a training script are let in: plain data."""
    try:
        zipped = zipfile.is_zipfile(path)
        if zipped and any(entry.compress_type for entry in zipfile.ZipFile(path).infolist()):
            raise UserError(f"`{path}` is a compressed archive: torch writes none")
        with torch.serialization.safe_globals([Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's doubts: what comes of it is looked at key by key
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except DAMAGED as problem:
        if foreign := _FOREIGN.search(str(problem)):
            raise UserError(
                f"`{path}` holds more than tensors: to read it, `{foreign[1]}` would have to be run, and was not",
                "where the file was made: torch.save(model.state_dict(), …)",
            ) from problem
        raise UserError(f"`{path}` is cut off, damaged, or not written by torch.save") from problem


def _unwrapped(value: Any) -> tuple[Any, list[str]]:
    """The state inside its wrappers, and what was met on the way."""
    notes: list[str] = []
    for _ in range(DEPTH):
        inner = [w for w in WRAPPERS if isinstance(value, Mapping) and isinstance(value.get(w), Mapping)]
        if not inner:
            break
        beside = [
            f"`{key}`" for key in value if key != inner[0] and isinstance(key, str) and NAME.fullmatch(key)
        ]
        notes.append(f"read from `{inner[0]}`" + (f"; not read: {', '.join(beside)}" if beside else ""))
        value = value[inner[0]]
    return value, notes


def _wrong(state: Mapping[Any, Any]) -> Iterator[str]:
    """What there is in a state that cannot be a weight."""
    for name, value in state.items():
        if not isinstance(name, str) or not NAME.fullmatch(name):
            yield "a name that is none"
        elif type(value) not in (Tensor, nn.Parameter):
            yield f"`{name}` is of type {type(value).__name__}"
        elif value.dtype not in FLOATS:
            yield f"`{name}` is of {str(value.dtype).removeprefix('torch.')}"
        elif value.layout != torch.strided or value.device.type != "cpu":
            yield f"`{name}` is no plain tensor"
