"""`run.json`: what a run was asked to do, and what its weights need to be read by.

Beside it, `spec/` holds the texts as they were, so a run needs no file from anywhere else.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from fractions import Fraction
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

import crate_dsl
from crate_dsl.compiler.graph import ModelGraph
from crate_dsl.compiler.recipe import Recipe
from crate_dsl.language.diagnostics import UserError
from crate_dsl.training.data import Scaling
from crate_dsl.training.files import write_text
from crate_dsl.training.overrides import recipe_of
from crate_dsl.training.text import PARTS, PartName

if TYPE_CHECKING:
    from crate_dsl.training.supply import Supply  # it imports torch, and what reads an exported file does not

#: More than any run.json needs; a larger file is something else.
MAXIMUM_MANIFEST_BYTES = 2**24

Precision = Literal["32", "bf16", "16"]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class ScalingEntry(BaseModel):
    """`Scaling` as JSON: mean and spread of each channel on a 0..1 scale, for the input of that name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    input: str
    mean: tuple[Finite, ...]
    std: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...]

    @property
    def scaling(self) -> Scaling:
        return Scaling(self.mean, self.std)


def read_scaling(text: str, name: str) -> ScalingEntry:
    """The scaling in an exported file (`metadata.extra["scaling"]`). Raises `UserError` where it is damaged."""
    try:
        return ScalingEntry.model_validate_json(text)
    except ValidationError as problem:
        raise UserError(f"`{name}` is damaged: its scaling of pixels cannot be read") from problem


#: Mean and spread of ImageNet's pixels, as all networks trained on it take them.
IMAGENET = Scaling((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def asked_scaling(text: str, graph: ModelGraph) -> ScalingEntry:
    """A scaling as a user writes it: `imagenet`, or `0.28/0.35`, `0.48,0.45,0.4/0.2,0.2,0.2`.

    Raises:
        UserError: it is no scaling, or not one for the picture that the graph takes.
    """
    pictures = [
        entry for entry in graph.export_inputs.values() if entry.type.kind == "float" and entry.type.rank == 3
    ]
    if len(pictures) != 1:
        raise UserError(f"`{graph.model}` does not take one picture: there is nothing to scale")
    (picture,), scaling = pictures, IMAGENET
    help = (
        "--scaling imagenet, or each channel's mean and spread: --scaling 0.485,0.456,0.406/0.229,0.224,0.225"
    )
    try:
        if text != "imagenet":
            mean, std = (tuple(map(float, part.split(","))) for part in text.split("/"))
            scaling = Scaling(mean, std)
        entry = ScalingEntry(input=picture.name, mean=scaling.mean, std=scaling.std)
    except ValueError:  # pydantic's errors are such, too
        raise UserError(f"`{text}` is no scaling of pixels", help) from None
    channels = picture.type.shape[0].bound
    if {len(scaling.mean), len(scaling.std)} != {channels}:
        raise UserError(f"`{picture.name}` has {channels} channels, but `{text}` is not for so many", help)
    return entry


class Manifest(BaseModel):
    """The entries of `run.json`.

    `scaling` and `classes` are those of images. A run on text has a `vocabulary` as it was asked for, with so many
    `tokens`, and how many `characters` each part has.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    spec: str
    model: str
    variant: str | None
    settings: dict[str, Any]
    recipe: dict[str, str]
    data: str
    limit: int | None
    fingerprint: str
    classes: tuple[str, ...] = ()
    scaling: ScalingEntry | None = None
    vocabulary: str | None = None
    tokens: int | None = None
    characters: dict[PartName, Annotated[int, Field(ge=0)]] | None = None
    seed: int
    precision: Precision
    compiled: bool = False
    #: The weights that it began with, as they were asked for, and a hash of their file.
    start: str | None = None
    start_fingerprint: str | None = None
    parameters: int
    versions: dict[str, str]

    @field_validator("spec")
    @classmethod
    def _inside(cls, name: str) -> str:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or not name.endswith(".crate"):
            raise ValueError("it must be a .crate file inside spec/")
        return name

    @model_validator(mode="after")
    def _of_one_kind(self) -> Manifest:
        of_text = None not in (self.vocabulary, self.tokens) and set(self.characters or ()) == set(PARTS)
        if (self.scaling is not None) == of_text:
            raise ValueError(
                "it must tell the scaling of images, or the vocabulary, tokens and characters of texts"
            )
        return self

    @property
    def target(self) -> str:
        """The spec inside the folder as a target of the command line: `spec/crate.crate:crate@tiny`."""
        return f"spec/{self.spec}:{self.model}" + (f"@{self.variant}" if self.variant else "")

    def overrides(self) -> dict[str, Any]:
        """Every parameter's value, to load the spec with."""
        return {name: _exact(value) for name, value in self.settings.items()}

    def pixels(self) -> Scaling:
        """The scaling of the images. Raises `UserError` where it was trained on text."""
        if self.scaling is None:
            raise UserError(f"`{self.model}` was trained on text, but this needs a network of images")
        return self.scaling.scaling

    def recipe_in_force(self) -> Recipe:
        """The recipe. Raises `UserError` where its texts are none."""
        return recipe_of({}, self.recipe)

    def write(self, path: Path) -> None:
        write_text(path, self.model_dump_json(indent=2) + "\n")

    @staticmethod
    def read(path: Path) -> Manifest:
        """Read a run's `run.json`. Raises `UserError` where there is none, or it is cut off or damaged."""
        try:
            with path.open("rb") as file:
                content = file.read(MAXIMUM_MANIFEST_BYTES + 1)
        except OSError as problem:
            raise UserError(f"{path.parent} holds no run: {path.name} could not be read") from problem
        if len(content) > MAXIMUM_MANIFEST_BYTES:
            raise UserError(f"{path} is larger than {MAXIMUM_MANIFEST_BYTES:,} bytes: it describes no run")
        try:
            return Manifest.model_validate_json(content)
        except ValidationError as problem:
            first = problem.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise UserError(
                f"{path} is damaged: {f'`{place}`: ' if place else ''}{first['msg'].lower()}"
            ) from problem


def manifest_of(
    graph: ModelGraph,
    supply: Supply,
    recipe: Recipe,
    *,
    limit: int | None,
    seed: int,
    precision: Precision,
    compiled: bool,
    start: str | None = None,
) -> Manifest:
    """What a run that is about to begin will be."""
    return Manifest(
        spec=next(iter(spec_texts(graph))),
        model=graph.model,
        variant=graph.variant,
        settings={name: _plain(value) for name, value in graph.settings.items()},
        recipe=recipe.written(),
        data=supply.text,
        limit=limit,
        fingerprint=supply.fingerprint,
        **supply.described(),
        seed=seed,
        precision=precision,
        compiled=compiled,
        start=start,
        parameters=graph.parameters,
        versions={
            "crate_dsl": crate_dsl.__version__,
            **{name: version(name) for name in ("torch", "lightning")},
        },
    )


def spec_texts(graph: ModelGraph) -> dict[str, str]:
    """The texts that a graph was made from, the spec's own first, by their paths relative to its folder."""
    folder = os.path.dirname(graph.sources[0].name) or "."
    return {Path(os.path.relpath(source.name, folder)).as_posix(): source.text for source in graph.sources}


def differences(old: Manifest, new: Manifest) -> list[str]:
    """What is asked for now and was not asked for when the run began, a sentence each."""
    names = ("model", "variant", "data", "vocabulary", "limit", "seed", "precision", "compiled", "start")
    found = [
        f"{name} was {getattr(old, name)}, now it is {getattr(new, name)}"
        for name in names
        if getattr(old, name) != getattr(new, name)
    ]
    for what, before, after in (("", old.settings, new.settings), (" of the recipe", old.recipe, new.recipe)):
        found += [
            f"{name}{what} was {before.get(name, 'off')}, now it is {after.get(name, 'off')}"
            for name in dict.fromkeys((*before, *after))
            if before.get(name) != after.get(name)
        ]
    if not found and old.fingerprint != new.fingerprint:
        what = "texts" if new.vocabulary else "images or labels"
        found.append(f"the {what} of {new.data} are others than they were")
    return found


def _plain(value: Any) -> Any:
    """A parameter's value as JSON holds it: exactly, so a third is the text 1/3."""
    if isinstance(value, Fraction):
        if value.denominator == 1:
            return int(value)
        near = float(value)
        return near if Fraction(repr(near)) == value else str(value)
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _exact(value: Any) -> Any:
    if isinstance(value, str) and re.fullmatch(r"-?\d+/[1-9]\d*", value):
        return Fraction(value)
    return [_exact(item) for item in value] if isinstance(value, list) else value


def same_texts(folder: Path, texts: Mapping[str, str]) -> bool:
    """Whether `spec/` holds these texts."""
    return all(
        (folder / name).is_file() and (folder / name).read_bytes() == text.encode()
        for name, text in texts.items()
    )
