"""What an exported file says of itself: the spec's text, what was built from it, the inputs, the proof.

Everything lies in the ONNX file's `metadata_props` under `crate_dsl.…`, as text or JSON. Written by `emit`, read by
sessions and by `crate-dsl show model.onnx`. Nothing here needs torch or onnx.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from importlib.metadata import version
from pathlib import PurePath
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json

import crate_dsl
from crate_dsl.compiler.draws import as_data
from crate_dsl.compiler.graph import ModelGraph
from crate_dsl.compiler.types import TensorType

PREFIX = "crate_dsl."


class SourceText(BaseModel):
    """One file of a spec; `name` is relative to the folder of the spec that was exported."""

    model_config = ConfigDict(frozen=True)

    name: str
    text: str


class Target(BaseModel):
    """What was built: a model of the spec, its variant, and every parameter's value."""

    model_config = ConfigDict(frozen=True)

    model: str
    variant: str | None
    settings: dict[str, Any]


class Metadata(BaseModel):
    """The metadata of an exported file.

    `spec` holds the spec first and then what it imports; `inputs` the types of one sample; `draws` the declared draws
    (`draws.from_data` reads them); `proof` is the parity table, None in a file that was not proved; `extra` is what the
    exporting tool added (`scaling`: how pixels become numbers).
    """

    model_config = ConfigDict(frozen=True)

    version: str
    torch: str
    onnx: str
    spec: tuple[SourceText, ...] = Field(min_length=1)
    target: Target
    inputs: dict[str, TensorType]
    draws: dict[str, dict[str, Any]] = {}
    proof: dict[str, Any] | None = None
    extra: dict[str, str] = {}

    @property
    def text(self) -> str:
        """The spec's own text."""
        return self.spec[0].text

    def properties(self) -> dict[str, str]:
        """Every entry by its key in the file."""
        entries = self.model_dump(mode="json", include={*PLAIN, *STRUCTURED})
        texts = {name: entries[name] if name in PLAIN else json_text(entries[name]) for name in entries}
        if self.proof is None:
            del texts["proof"]
        return {PREFIX + name: text for name, text in (texts | self.extra).items()}


#: Entries that are plain text, and entries that are JSON.
PLAIN = ("version", "torch", "onnx")
STRUCTURED = ("spec", "target", "inputs", "draws", "proof")


def json_text(value: Any) -> str:
    """JSON on one line."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _plain(value: Any) -> Any:
    """A parameter's value as JSON takes it."""
    if isinstance(value, Fraction):
        return int(value) if value.denominator == 1 else float(value)
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value if isinstance(value, bool | int | float | str) else str(value)


def describe(graph: ModelGraph, extra: Mapping[str, str] = {}) -> Metadata:
    """The metadata of a graph that is about to be exported.

    `extra` are the caller's own entries, by name, with or without the prefix.

    Raises:
        ValueError: an extra entry has the name of one that is written anyway.
    """
    own = {name.removeprefix(PREFIX): text for name, text in extra.items()}
    if taken := sorted(own.keys() & {*PLAIN, *STRUCTURED}):
        raise ValueError(f"the metadata entries {', '.join(taken)} are written by the export itself")
    folder = PurePath(graph.sources[0].name).parent
    return Metadata(
        version=crate_dsl.__version__,
        torch=version("torch"),
        onnx=version("onnx"),
        spec=tuple(SourceText(name=_within(folder, s.name), text=s.text) for s in graph.sources),
        target=Target(
            model=graph.model,
            variant=graph.variant,
            settings={name: _plain(value) for name, value in graph.settings.items()},
        ),
        inputs={name: replace(entry.type, layout=None) for name, entry in graph.export_inputs.items()},
        draws={name: as_data(entry.source) for name, entry in graph.export_inputs.items() if entry.source},
        extra=own,
    )


def _within(folder: PurePath, name: str) -> str:
    """A source's name as imports write it: where the spec lay on this machine is nobody's business."""
    path = PurePath(name)
    return (path.relative_to(folder) if path.is_relative_to(folder) else path).as_posix()


def from_properties(properties: Mapping[str, str]) -> Metadata:
    """The metadata that `Metadata.properties` wrote.

    Raises:
        ValueError: entries are missing or broken; the message names the first.
    """
    entries = {key.removeprefix(PREFIX): text for key, text in properties.items() if key.startswith(PREFIX)}
    data: dict[str, Any] = {name: entries.pop(name) for name in PLAIN if name in entries}
    try:
        for name in STRUCTURED:
            if name in entries:
                data[name] = from_json(entries.pop(name))
        return Metadata.model_validate(data | {"extra": entries})
    except ValidationError as problem:  # a ValueError too, as what `from_json` raises is
        first = problem.errors()[0]
        place = ".".join(map(str, first["loc"])) or "a JSON entry"
        raise ValueError(f"{place}: {first['msg']}") from None
