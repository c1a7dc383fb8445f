"""What the features of a network are good for: its nearest neighbours and a linear map, on labels that it never saw.

Both are the field's usual questions to an encoder that learned without labels, after Wu et al. 2018 (arXiv 1805.01978)
and Caron et al. 2021 (DINO, arXiv 2104.14294), with two things made plain: each neighbour has one vote, and the linear
map is the minimum of its loss rather than what some epochs of descent come to. scikit-learn does both.

Axes: n images, d numbers in the features of each.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import crate_dsl
from crate_dsl.compiler.graph import ModelGraph, Value
from crate_dsl.compiler.network import Network
from crate_dsl.compiler.trace import trace
from crate_dsl.language.diagnostics import Caution, UserError, did_you_mean
from crate_dsl.training.batches import MEASURING_SEED, Held
from crate_dsl.training.data import Data, Labels, Part, Scaling
from crate_dsl.training.feed import check_fits
from crate_dsl.training.run import Run
from crate_dsl.training.sources import required_module

#: What is read where nothing else is asked for: the shipped specs call it so.
OUTPUT = "features"
#: How many neighbours vote.
NEIGHBOURS = 20
#: Steps that the linear map may take to its minimum. It takes a hundred or two.
MOST_STEPS = 2000
#: How many names an error lists.
SHOWN = 6

Vectors = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Split:
    """Vectors with the labels of their images: those to fit on, and those to be right about."""

    train_nd: Vectors
    train_labels_n: Labels
    test_nd: Vectors
    test_labels_n: Labels


@dataclass(frozen=True)
class Accuracy:
    """How well some vectors tell the classes of the test images.

    `source` says whose they are, `width` is d, `dimensions` how many of these they use; `nearest` and `probe` are
    shares of the test images. `probe` is None where nobody asked for it.
    """

    source: str
    width: int
    dimensions: float
    nearest: float
    probe: float | None


@dataclass(frozen=True)
class Comparison:
    """What was measured, and on what: a row for a run's features, and for each thing that they are held against."""

    run: str
    data: str
    output: str
    neighbours: int
    train_images: int
    test_images: int
    classes: int
    rows: tuple[Accuracy, ...]


def compare(
    run: Run,
    data: Data,
    *,
    output: str = OUTPUT,
    neighbours: int = NEIGHBOURS,
    probe: bool = False,
    random: bool = False,
    pixels: bool = False,
    device: torch.device | None = None,
    advance: Callable[[int], None] = lambda images: None,
) -> Comparison:
    """Measure the features of a run's network, fitted on the training images of a source, counted on its test images.

    Args:
        run: whose network.
        data: a source with labels. They are used here alone.
        output: what is read: an output, a named value or a step's path (`logits.norm`), of the type float[d].
        neighbours: how many training images vote on each test image.
        probe: fit a linear map, too.
        random: measure the same network untrained, too: with weights that are drawn from the run's seed.
        pixels: measure the pixels themselves.
        device: where features are computed; on the CPU, if nothing is said.
        advance: told how many more images are done.

    Raises:
        UserError: the data have no labels, one class or too few images, or do not fit; there is no such output, or its
            type is another; features are not finite; the run's weights are damaged.
    """
    required_module("sklearn", "features")
    on = device or torch.device("cpu")
    if data.train.labels_n is None or data.test.labels_n is None:
        raise UserError(f"{data.text} has no labels, so nothing can be right or wrong")
    if not len(data.test):
        raise UserError(f"{data.text} has no test images")
    if neighbours > len(data.train):
        raise UserError(
            f"there are no {neighbours:,} neighbours: {data.text} has {len(data.train):,} training images"
        )
    if probe and len(np.unique(data.train.labels_n)) < 2:
        raise UserError(
            f"the training images of {data.text} are of one class: there is nothing to tell apart"
        )
    graph, scaling = run.graph(), run.manifest.pixels()
    path = path_of(graph, output)

    def measured(source: str, vectors: Callable[[Part], Vectors]) -> Accuracy:
        assert data.train.labels_n is not None and data.test.labels_n is not None
        split = Split(vectors(data.train), data.train.labels_n, vectors(data.test), data.test.labels_n)
        return accuracy(source, split, neighbours, probe=probe)

    def of(net: Network) -> Callable[[Part], Vectors]:
        return lambda part: read(net, path, part, data, scaling, on, advance)

    rows = [measured(output, of(run.net()))]
    if random:
        rows.append(measured("untrained", of(crate_dsl.build(graph, seed=run.manifest.seed).eval())))
    if pixels:
        rows.append(measured("pixels", lambda part: flat(part, scaling)))
    return Comparison(
        run=str(run.folder),
        data=data.text,
        output=output,
        neighbours=neighbours,
        train_images=len(data.train),
        test_images=len(data.test),
        classes=len(data.classes),
        rows=tuple(rows),
    )


# ------------------------------------------------------------------ vectors of images


def readable(graph: ModelGraph) -> dict[str, str]:
    """The paths, as `trace` knows them, of what is one float[d] for each image, by the names that it may be called.

    Outputs and named values come under their names, and every step under its path.
    """
    found = {}
    for node in graph.nodes:
        if node.name not in graph.exported or graph.items[node.name] > 1:
            continue
        for index, wanted in enumerate(node.typing.outputs):
            if wanted.kind == "float" and wanted.rank == 1:
                path = node.name if len(node.typing.outputs) == 1 else f"{node.name}.{index}"
                found[path] = Value(node.name, index)
    paths = {value: path for path, value in found.items()}
    named = {name: value for value, name in graph.names.items()} | dict(graph.outputs)
    return {name: paths[value] for name, value in named.items() if value in paths} | {
        path: path for path in found
    }


def path_of(graph: ModelGraph, output: str) -> str:
    """The path, as `trace` knows it, of what is called `output`.

    Raises:
        UserError: there is nothing of that name, or it is not one float[d] for each image.
    """
    known = readable(graph)
    if output in known:
        return known[output]
    # The last are the nearest to the output; a value and the step that makes it are one.
    shown = list({known[name]: name for name in reversed(known)}.values())[:SHOWN]
    help = (
        f"it can read {', '.join(f'`{name}`' for name in shown)}"
        if shown
        else "a stage ends with one vector for each image by select(class_token), or by pool"
    )
    values = {name: value for value, name in graph.names.items()} | dict(graph.outputs)
    if output in values:
        raise UserError(
            f"`{output}` is {graph.type_of(values[output])}, but features are one float[d] for each image",
            help,
        )
    near = did_you_mean(output, known)
    raise UserError(
        f"`{graph.model}` has no output `{output}`",
        f"did you mean `{near}`?" if near else f"--output: {help}",
    )


def read(
    net: Network,
    path: str,
    part: Part,
    data: Data,
    scaling: Scaling,
    device: torch.device,
    advance: Callable[[int], None] = lambda images: None,
) -> Vectors:
    """What stands at a path of the network for each image of a part, (n, d). Draws are the same each time.

    Raises:
        UserError: the images do not fit the network; a number is not finite.
    """
    graph = net.graph
    # Nothing is trained: labels are asked for only where the network itself reads them.
    feed = check_fits(replace(graph, targets={}, inputs=graph.export_inputs), data)
    held = Held(part, scaling, feed, device)
    net = net.to(device)
    found = []
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(MEASURING_SEED)
        for start in range(0, len(held), held.portion):
            batch = held.batch(slice(start, start + held.portion))
            inputs = {name: tensor for name, tensor in batch.items() if name in graph.export_inputs}
            found.append(trace(net, path, **inputs)[path].cpu().numpy())
            advance(len(found[-1]))
    vectors_nd = np.concatenate(found).astype(np.float64)
    if not np.isfinite(vectors_nd).all():
        raise UserError(f"`{path}` is not finite (NaN or infinite) for some images of {data.text}")
    return vectors_nd


def flat(part: Part, scaling: Scaling) -> Vectors:
    """The pixels of each image as one vector, scaled as the network has them, (n, c h w)."""
    return scaling.apply(part.images_nchw).reshape(len(part), -1).astype(np.float64)


# ------------------------------------------------------------------ what they tell


def accuracy(source: str, split: Split, neighbours: int = NEIGHBOURS, *, probe: bool = True) -> Accuracy:
    """All that is measured of some vectors."""
    return Accuracy(
        source=source,
        width=split.train_nd.shape[1],
        dimensions=dimensions(split.train_nd),
        nearest=nearest(split, neighbours),
        probe=linear(split) if probe else None,
    )


def nearest(split: Split, neighbours: int = NEIGHBOURS) -> float:
    """The share of test images whose class is that of most of their `neighbours` nearest training images.

    Near is a large cosine, f·g / (|f| |g|). Of classes with equally many votes it is the first.
    """
    from sklearn.neighbors import KNeighborsClassifier

    # Of unit vectors, |f - g|² = 2 - 2 f·g: a small distance is a large cosine, and scikit-learn has a quick way to it.
    votes = KNeighborsClassifier(n_neighbors=neighbours, algorithm="brute")
    votes.fit(unit(split.train_nd), split.train_labels_n)
    return float(votes.score(unit(split.test_nd), split.test_labels_n))


def linear(split: Split) -> float:
    """The share of test images that a linear map of their vectors gives the right class: a linear probe.

    The map is that with the smallest mean cross-entropy + |W|² / 2n on the training images, whose every number is first
    brought to mean 0 and spread 1.

    Warns:
        Caution: the minimum was not reached.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(split.train_nd)
    fitted = LogisticRegression(C=1.0, max_iter=MOST_STEPS)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", ConvergenceWarning)
        fitted.fit(scaler.transform(split.train_nd), split.train_labels_n)
    if any(issubclass(entry.category, ConvergenceWarning) for entry in told):
        warnings.warn(
            Caution(f"the linear map is not at its minimum after {MOST_STEPS:,} steps"), stacklevel=2
        )
    return float(fitted.score(scaler.transform(split.test_nd), split.test_labels_n))


def dimensions(vectors_nd: Vectors) -> float:
    """How many dimensions vectors use: exp of the entropy of their singular values' shares, from 1 to d.

    RankMe (Garrido et al. 2023), arXiv 2210.02885, equation 1, of vectors less their mean. Features that collapsed, all
    images being one to them, use one or two.

    >>> round(dimensions(np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])), 6)
    2.0
    """
    centred_nd = vectors_nd - vectors_nd.mean(axis=0)
    # The singular values are the roots of the eigenvalues of d x d numbers, which are few.
    values_d = np.sqrt(np.linalg.eigvalsh(centred_nd.T @ centred_nd).clip(min=0))
    total = values_d.sum()
    if total == 0:
        return 0.0
    shares_d = values_d[values_d > 0] / total
    return float(np.exp(-(shares_d * np.log(shares_d)).sum()))


def unit(vectors_nd: Vectors) -> Vectors:
    """Vectors of length 1; zero stays zero."""
    lengths_n1: NDArray[Any] = np.linalg.norm(vectors_nd, axis=1, keepdims=True)
    return vectors_nd / np.where(lengths_n1 > 0, lengths_n1, 1)
