"""What an inspection found, as plain data: the page draws it, the JSON file is it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from crate_dsl.compiler.graph import ModelGraph, Node
from crate_dsl.compiler.network import Network
from crate_dsl.compiler.promises import promises
from crate_dsl.inspection.capacity import Edge, edges
from crate_dsl.inspection.completion import Completions, Pictures, task
from crate_dsl.inspection.layers import Layer, layers
from crate_dsl.inspection.measures import Incoherence, Measure, Samples, incoherence
from crate_dsl.inspection.measuring import LayerSamples, measure
from crate_dsl.inspection.pairs import Pairs
from crate_dsl.inspection.subject import Subject
from crate_dsl.inspection.viewing import Features, Maps, view
from crate_dsl.language.diagnostics import UserError
from crate_dsl.training.batches import MEASURING_SEED
from crate_dsl.training.data import on_unit_scale
from crate_dsl.training.supply import Images, Texts

#: How many layers have their attention drawn where nobody chooses.
MAPPED = 3
#: Pictures of completion.
COMPLETED = 8
#: Texts whose attention is drawn: a map of one has a weight for each pair of its tokens.
TEXTS = 2


@dataclass(frozen=True)
class Trend:
    """A measure of a layer beside the same of the layer before.

    `lower` says whether its mean is lower, `share` in what share of the images the image's own number is; both are None
    for the first layer of a stage, and where nothing of the kind is expected.
    """

    mean: float
    std: float
    lower: bool | None
    share: float | None


@dataclass(frozen=True)
class LayerReport:
    """A layer's measures; None where it has no step that shows them. Rates are in nats.

    `rate` is Rᶜ of what enters; `step_rate` that of the compress step's own result, which is to be lower than `rate`;
    `tokens_rate` is R of what leaves; `reduction` R - Rᶜ of what enters; `nonzero` the share of the code that is not
    zero; `lasso` the share of the objective that the sparsify step gains.
    """

    name: str
    stage: str
    decodes: bool
    rate: Trend | None
    step_rate: Trend | None
    tokens_rate: Measure
    reduction: Measure | None
    nonzero: Trend | None
    lasso: Measure | None
    subspaces: Incoherence | None
    dictionary: Incoherence | None


@dataclass(frozen=True)
class PairReport:
    """How far a step, layer or stage and what undoes it are from the identity: ‖x̂ - x‖ / ‖x‖ over images."""

    extent: str
    name: str
    undone_by: str
    mode: str
    mean: float
    worst: float


@dataclass(frozen=True)
class PromiseReport:
    """What an inverse promises; `tolerance` is its certificate's, None where nothing is certified."""

    inverse: str
    stage: str
    mode: str
    tolerance: float | None


@dataclass(frozen=True)
class CompletionReport:
    """The mean squared error on hidden patches, pixels from 0 to 1: the network's and two guesses'."""

    output: str
    hidden: float
    network: Measure
    mean_image: Measure
    nearest_patch: Measure


@dataclass(frozen=True, eq=False)
class Report:
    """An inspection. `pictures` are not in the JSON."""

    subject: Subject
    layers: tuple[LayerReport, ...]
    pairs: tuple[PairReport, ...]
    promises: tuple[PromiseReport, ...]
    maps: tuple[Maps, ...]
    features: Features | None
    completion: CompletionReport | None
    pictures: Pictures | None
    capacity: tuple[Edge, ...]
    shown: int


def inspect(
    subject: Subject,
    *,
    shown: int,
    batch: int,
    chosen: str | None = None,
    advance: Callable[[int], None] = lambda images: None,
) -> Report:
    """Measure a network on its images.

    Args:
        subject: the network and the images.
        shown: how many of the images are shown with their maps; of texts, two at most.
        batch: how many go in at once.
        chosen: a glob for the layers whose attention is mapped, the last of which has its tokens compared.
        advance: told how many images were measured since it was last told.

    Raises:
        UserError: no layer is called so.
    """
    net, graph = subject.net, subject.graph
    if isinstance(subject.supply, Texts):
        shown = min(shown, TEXTS)
    found = layers(graph)
    mapped, compared = _chosen(found, chosen, graph.model)
    completing = task(graph)
    completions = None
    if completing is not None:
        assert isinstance(subject.supply, Images)  # what is completed is cut from an image
        mean_chw = torch.from_numpy(on_unit_scale(subject.supply.data.train.images_nchw).mean(0))
        completions = Completions(completing, subject.supply.scaling, mean_chw, min(shown, COMPLETED))
    device = subject.held.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad():
        torch.manual_seed(MEASURING_SEED)
        samples, pairs = measure(net, found, subject.batches(batch), completions, advance)
        few = subject.batch(0, shown)
        maps, features = view(net, mapped, compared, few, batch, pairs=isinstance(subject.supply, Texts))
    rates = {layer.tokens.node: samples[layer.name].tokens_rate.measure() for layer in found}
    return Report(
        subject=subject,
        layers=tuple(_layers(subject, found, samples)),
        pairs=tuple(_pairs(pairs)),
        promises=tuple(
            PromiseReport(promise.inverse, promise.stage, promise.spelled, promise.tolerance())
            for promise in promises(graph)
        ),
        maps=maps,
        features=features,
        completion=_completion(completions, graph) if completions else None,
        pictures=_pictures(completions) if completions else None,
        capacity=tuple(edges(graph, rates)),
        shown=min(shown, subject.count),
    )


def _chosen(found: tuple[Layer, ...], glob: str | None, model: str) -> tuple[list[Layer], Layer | None]:
    """The layers whose attention is mapped, and the one whose tokens are compared."""
    if glob is not None:
        mapped = [layer for layer in found if fnmatchcase(layer.name, glob)]
        if not mapped:
            names = ", ".join(layer.name for layer in found) or "none"
            raise UserError(f"no layer of `{model}` is called `{glob}`", f"layers: {names}")
        return mapped, next((layer for layer in reversed(mapped) if layer.features), None)
    encoding = [layer for layer in found if not layer.decodes]
    attending = [layer for layer in encoding if layer.with_tap("attention")]
    # Evenly from the first to the last but one, whose attention is the one that is usually shown.
    last = max(len(attending) - 2, 0)
    places = sorted({round(last * at / (MAPPED - 1)) for at in range(MAPPED)})
    mapped = [attending[place] for place in places if place < len(attending)]
    return mapped, next((layer for layer in reversed(encoding) if layer.features), None)


# ------------------------------------------------------------------ layers


def _layers(
    subject: Subject, found: tuple[Layer, ...], samples: dict[str, LayerSamples]
) -> list[LayerReport]:
    reports = []
    before: Layer | None = None
    for layer in found:
        own = samples[layer.name]
        same = before is not None and before.stage == layer.stage and not layer.decodes
        past = samples[before.name] if before is not None and same else None
        rate, code = layer.with_tap("projection"), layer.with_tap("code")
        reports.append(
            LayerReport(
                name=layer.name,
                stage=layer.stage,
                decodes=layer.decodes,
                rate=_trend(own.rate, past.rate if past else None),
                step_rate=_trend(own.step_rate, own.rate),
                tokens_rate=own.tokens_rate.measure(),
                reduction=own.reduction.measure() if own.reduction.values else None,
                nonzero=_trend(own.nonzero, past.nonzero if past else None),
                lasso=_gained(own),
                subspaces=_incoherence(subject.net, rate, "subspaces"),
                dictionary=_incoherence(subject.net, code, "dictionary", columns=True),
            )
        )
        before = layer
    return reports


def _trend(samples: Samples, past: Samples | None) -> Trend | None:
    if not samples.values:
        return None
    measured = samples.measure()
    if past is None or not past.values:
        return Trend(measured.mean, measured.std, None, None)
    return Trend(measured.mean, measured.std, measured.mean < past.measure().mean, samples.share_below(past))


def _incoherence(net: Network, node: Node | None, name: str, *, columns: bool = False) -> Incoherence | None:
    """Of a weight that a step reads, its own or another's: its rows, or its columns."""
    if node is None or name not in node.weights:
        return None
    weight = net.get_parameter(node.weights[name].slot)
    return incoherence(weight.T if columns else weight)


def _gained(samples: LayerSamples) -> Measure | None:
    """What share of the objective at its start a sparsify step takes away, image by image."""
    pairs = zip(samples.lasso_before.values, samples.lasso_after.values, strict=True)
    shares = Samples([1 - after / before if before else 0.0 for before, after in pairs])
    return shares.measure() if shares.values else None


# ------------------------------------------------------------------ pairs and completion


def _pairs(pairs: Pairs) -> list[PairReport]:
    return [
        PairReport(
            extent=way.extent,
            name=way.name,
            undone_by=way.undone_by,
            mode=way.pairs[0].mode.word,
            mean=way.errors.measure().mean,
            worst=max(way.errors.values),
        )
        for way in pairs.ways
    ]


def _completion(completions: Completions, graph: ModelGraph) -> CompletionReport:
    completed = completions.task.completed
    hidden = torch.cat([pictures.hidden for pictures in completions.pictures])
    return CompletionReport(
        output=graph.names.get(completed, completed.node),
        hidden=float(hidden.double().mean()),
        network=completions.network.measure(),
        mean_image=completions.mean.measure(),
        nearest_patch=completions.nearest.measure(),
    )


def _pictures(completions: Completions) -> Pictures:
    def joined(get: Callable[[Pictures], Tensor]) -> Tensor:
        return torch.cat([get(pictures) for pictures in completions.pictures])

    return Pictures(joined(lambda p: p.shown), joined(lambda p: p.completed), joined(lambda p: p.hidden))
