"""Which of a spec's inputs and targets take images and labels, and which output holds the classes' scores."""

from __future__ import annotations

from dataclasses import dataclass

from crate_dsl.compiler.graph import Entry, ModelGraph
from crate_dsl.language.diagnostics import UserError
from crate_dsl.training.data import Data


@dataclass(frozen=True)
class Feed:
    """The names by which a network is fed. `scores` is None where no output has a number for each class."""

    image: str
    labels: tuple[str, ...]
    scores: str | None


def check_fits(graph: ModelGraph, data: Data) -> Feed:
    """Compare what a spec reads with what a source holds.

    Raises:
        UserError: no image input, another image size, labels that are missing, another number of classes, a draw of a
            length that no image tells.
    """
    taken = [entry for entry in graph.inputs.values() if entry.source is None]
    images = [entry for entry in taken if entry.type.kind == "float" and entry.type.rank == 3]
    labels = [
        entry
        for entry in (*taken, *graph.targets.values())
        if entry.type.kind == "index" and entry.type.rank == 0
    ]
    if len(images) != 1:
        found = ", ".join(f"{entry.name} : {entry.type}" for entry in taken) or "none"
        raise UserError(
            f"`{graph.model}` must have one input that is an image to be trained on images; its inputs are: {found}",
            "input image : float[channels, height, width]",
        )
    others = [
        entry for entry in (*taken, *graph.targets.values()) if entry not in images and entry not in labels
    ]
    if others:
        entry = others[0]
        raise UserError(
            f"`{graph.model}` reads `{entry.name}` : {entry.type}, which {data.text} does not hold"
        )
    _check_size(graph, images[0], data)
    _check_draws(graph, images[0])
    for entry in labels:
        _check_classes(graph, entry, data)
    scores = [
        name
        for name, value in graph.outputs.items()
        if labels and graph.type_of(value).kind == "float"
        if [dim.static for dim in graph.type_of(value).shape] == [labels[0].type.classes]
    ]
    return Feed(images[0].name, tuple(entry.name for entry in labels), scores[0] if scores else None)


def _check_size(graph: ModelGraph, image: Entry, data: Data) -> None:
    sizes = [dim.static for dim in image.type.shape]
    if any(size not in (None, held) for size, held in zip(sizes, data.shape, strict=True)):
        held = " x ".join(map(str, data.shape))
        help = f"choose a variant for {held}, or override its parameters: --set …"
        raise UserError(
            f"`{graph.model}` takes `{image.name}` : {image.type}, but the images of {data.text} are {held}",
            help,
        )


def _check_draws(graph: ModelGraph, image: Entry) -> None:
    """Nobody gives the draws of a training run, so the image must tell how long they are."""
    told = {dim.symbol for dim in image.type.shape}
    for entry in graph.inputs.values():
        unknown = [
            dim.symbol for dim in entry.type.shape if dim.symbol is not None and dim.symbol not in told
        ]
        if entry.source is not None and unknown:
            raise UserError(
                f"`{entry.name}` : {entry.type} cannot be drawn in training: nothing tells its length "
                f"`{unknown[0].name}`",
                "give it a length that is known",
            )


def _check_classes(graph: ModelGraph, label: Entry, data: Data) -> None:
    if not data.classes:
        raise UserError(f"`{graph.model}` needs labels for `{label.name}`, but {data.text} has none")
    if label.type.classes != len(data.classes):
        raise UserError(
            f"`{graph.model}` has {label.type.classes} classes (`{label.name}` : {label.type}), "
            f"but {data.text} has {len(data.classes)}",
            f"--set classes={len(data.classes)}, if that is what the spec calls them",
        )
