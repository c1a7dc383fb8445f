"""Which of a spec's inputs and targets take images and labels, or text; and which output holds the scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from crate_dsl.compiler.graph import Entry, ModelGraph
from crate_dsl.compiler.steps.likelihood.operator import MaskedToken, NextToken
from crate_dsl.compiler.steps.random.operator import MaskTokens
from crate_dsl.compiler.types import Dim
from crate_dsl.language.diagnostics import UserError
from crate_dsl.training.data import Data
from crate_dsl.training.vocabulary import Vocabulary


@dataclass(frozen=True)
class Feed:
    """The names by which a network is fed. `scores` is None where no output has a number for each class."""

    image: str
    labels: tuple[str, ...]
    scores: str | None


@dataclass(frozen=True)
class Reading:
    """The names by which a network is fed with text, in windows of `length` tokens.

    `kept` is the input that is true for real tokens, where there is one: only then may a window be shorter. `predicts`
    says which tokens the objective tells, where it is their likelihood in nats and nothing else. `scores` is the output
    that has a number for each token of the vocabulary, of which there are `vocabulary`.
    """

    ids: str
    kept: str | None
    length: int
    vocabulary: int
    predicts: Literal["next", "hidden"] | None
    scores: str | None


def check_reads(graph: ModelGraph, text: str, vocabulary: Vocabulary) -> Reading:
    """Compare what a spec reads with the text that `text` names.

    Raises:
        UserError: no input of tokens, one with too few of them, something that no text holds, a draw of a length that
            no text tells, a mask token that is a token of the text.
    """
    taken = [entry for entry in graph.inputs.values() if entry.source is None]
    texts = _texts(taken)
    if len(texts) != 1:
        raise UserError(
            f"`{graph.model}` must have one input of tokens, to be trained on text; its inputs are: {_listed(taken)}",
            "input ids : index(vocab)[n <= context]",
        )
    (ids,) = texts
    kept = [entry for entry in taken if entry.type.kind == "bool" and entry.type.shape == ids.type.shape]
    others = [entry for entry in (*taken, *graph.targets.values()) if entry not in (ids, *kept[:1])]
    if others:
        raise UserError(
            f"`{graph.model}` reads `{others[0].name}` : {others[0].type}, which {text} does not hold"
        )
    _check_draws(graph, ids)
    _check_vocabulary(graph, ids, text, vocabulary)
    assert ids.type.classes is not None
    term = graph.item(graph.objective.node) if graph.objective is not None else None
    operator = getattr(term, "operator", None)
    plain = isinstance(operator, (NextToken, MaskedToken)) and not operator.smoothing
    scores = [
        name
        for name, value in graph.outputs.items()
        if graph.type_of(value).kind == "float"
        if graph.type_of(value).shape == (*ids.type.shape, Dim.of(ids.type.classes))
    ]
    return Reading(
        ids=ids.name,
        kept=kept[0].name if kept else None,
        length=ids.type.shape[0].bound,
        vocabulary=ids.type.classes,
        predicts=None if not plain else "next" if isinstance(operator, NextToken) else "hidden",
        scores=scores[0] if scores else None,
    )


def _texts(entries: Sequence[Entry]) -> list[Entry]:
    """Those that are a token for each place of a text."""
    return [entry for entry in entries if entry.type.kind == "index" and entry.type.rank == 1]


def _listed(entries: Sequence[Entry]) -> str:
    return ", ".join(f"{entry.name} : {entry.type}" for entry in entries) or "none"


def _check_vocabulary(graph: ModelGraph, ids: Entry, text: str, vocabulary: Vocabulary) -> None:
    size = vocabulary.size
    assert ids.type.classes is not None
    fills = [node.operator.fill for node in graph.nodes if isinstance(node.operator, MaskTokens)]
    wanted = size + bool(fills)
    help = f"--set vocab={wanted}" + (f" --set fill={wanted - 1}" if fills else "")
    help += ", if that is what the spec calls them"
    if ids.type.classes < size:
        raise UserError(
            f"`{graph.model}` knows {ids.type.classes:,} tokens (`{ids.name}` : {ids.type}), but {text} has {size:,}",
            help,
        )
    for fill in fills:
        if fill < size:
            raise UserError(
                f"`mask_tokens` of `{graph.model}` hides tokens behind token {fill}, which stands for "
                f"`{vocabulary.decode([fill])}` in {text}",
                help,
            )


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
        reads_text = len(_texts(taken)) == 1
        raise UserError(
            f"`{graph.model}` must have one input that is an image, to be trained on images; "
            f"its inputs are: {_listed(taken)}",
            "it reads text: --data text:PATH"
            if reads_text
            else "input image : float[channels, height, width]",
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
    """Nobody gives the draws of a training run, so the image or text must tell how long they are."""
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
