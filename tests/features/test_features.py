"""Features of images: what is read, and what neighbours and linear maps say of it, against the formulas."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize

import crate_dsl
from crate_dsl.compiler.graph import ModelGraph
from crate_dsl.features import Split, compare, dimensions, linear, nearest, path_of, read, readable
from crate_dsl.language.diagnostics import Caution, UserError
from crate_dsl.language.source import Source
from crate_dsl.training.batches import MEASURING_BATCH
from crate_dsl.training.data import Data, Part, Scaling
from crate_dsl.training.run import Run
from crate_dsl.training.train import train
from crate_dsl.workspace import Target, load_source

#: Two views in training, noise in the features, a head that is no part of them.
SPEC = """
model encoder(dim = 12) {
    input image : float[1, 8, 8]
    input noise : float[dim] = normal(0.5)
    stage reader = patchify(4) -> linear(dim) -> compress(3, rank = 4) -> pool
    views    = image -> crops(2, size = 8, scale = [0.5, 1]) -> each { reader -> linear(5) }
    tokens   = image -> patchify(4)
    plain    = image -> reader
    features = plain + noise
    scores   = plain -> norm -> linear(7)
    output features, tokens, scores
    objective info_nce(views[0], views[1], temperature = 0.5)
    train { optimizer = adamw(lr = 1e-3)  epochs = 1  batch = 32 }
}
"""
SCALING = Scaling((0.3,), (0.7,))


def graph() -> ModelGraph:
    return load_source(Source("encoder.crate", SPEC), Target("encoder.crate"))


def clouds(sizes: tuple[int, int] = (90, 41), width: int = 5, classes: int = 3) -> Split:
    """Overlapping clouds of different widths, far from zero and of different scales along each axis."""
    rng = np.random.default_rng(0)
    centres_cd = rng.standard_normal((classes, width))

    def drawn(count: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        labels_n = rng.integers(0, classes, count)
        vectors_nd = centres_cd[labels_n] + rng.standard_normal((count, width))
        return (vectors_nd + 0.5) * np.arange(1, width + 1), labels_n

    return Split(*drawn(sizes[0]), *drawn(sizes[1]))


def some_data(train: int = 40, test: int = 17) -> Data:
    rng = np.random.default_rng(1)
    parts = [
        Part(rng.integers(0, 256, (count, 1, 8, 8), np.uint8), np.arange(count) % 3)
        for count in (train, 5, test)
    ]
    return Data("some", ("a", "b", "c"), *parts)


# ------------------------------------------------------------------ what vectors tell


@pytest.mark.parametrize("neighbours", [1, 7, 20])
def test_neighbours_vote(neighbours: int) -> None:
    """The most frequent class of the k largest cosines f·g / (|f| |g|)."""
    split = clouds()
    right = 0
    for vector_d, label in zip(split.test_nd, split.test_labels_n, strict=True):
        cosines_n = [
            vector_d @ other_d / (np.sqrt(vector_d @ vector_d) * np.sqrt(other_d @ other_d))
            for other_d in split.train_nd
        ]
        voters = np.argsort(cosines_n)[::-1][:neighbours]
        right += np.bincount(split.train_labels_n[voters]).argmax() == label
    assert nearest(split, neighbours) == right / len(split.test_nd)
    # The length of a vector has no say.
    lengths_n1 = np.random.default_rng(3).uniform(0.01, 100, (len(split.train_nd), 1))
    assert nearest(replace(split, train_nd=lengths_n1 * split.train_nd), neighbours) == nearest(
        split, neighbours
    )


def test_the_linear_map_is_the_minimum() -> None:
    """Mean cross-entropy + |W|² / 2n of standardised numbers, minimised by another program."""
    split = clouds()
    mean_d, std_d = split.train_nd.mean(0), split.train_nd.std(0)
    x_nd, y_n = (split.train_nd - mean_d) / std_d, split.train_labels_n
    n, d, c = len(x_nd), x_nd.shape[1], 3

    def loss(flat: NDArray[np.float64]) -> float:
        w_dc, b_c = flat[: d * c].reshape(d, c), flat[d * c :]
        scores_nc = x_nd @ w_dc + b_c
        likelihood_n = scores_nc[np.arange(n), y_n] - np.log(np.exp(scores_nc).sum(1))
        return float(-likelihood_n.mean() + (w_dc**2).sum() / (2 * n))

    found = minimize(loss, np.zeros(d * c + c), method="BFGS", options={"gtol": 1e-7}).x
    scores_mc = (split.test_nd - mean_d) / std_d @ found[: d * c].reshape(d, c) + found[d * c :]
    assert linear(split) == (scores_mc.argmax(1) == split.test_labels_n).mean()


def test_a_linear_map_that_was_not_done_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crate_dsl.features.MOST_STEPS", 1)
    with pytest.warns(Caution, match="not at its minimum after 1 steps"):
        linear(clouds())


def test_dimensions() -> None:
    """exp(-Σ p log p) of the singular values' shares p."""
    vectors_nd = clouds().train_nd
    values_d = np.linalg.svd(vectors_nd - vectors_nd.mean(0), compute_uv=False)
    shares_d = values_d / values_d.sum()
    assert dimensions(vectors_nd) == pytest.approx(np.exp(-(shares_d * np.log(shares_d)).sum()), rel=1e-9)
    # Vectors that differ in one direction use one, whatever is added to all of them.
    line_nd = np.outer(np.arange(9.0), np.arange(1.0, 5.0)) + 3
    assert dimensions(line_nd) == pytest.approx(1, abs=1e-5)
    assert dimensions(np.ones((4, 3))) == 0


# ------------------------------------------------------------------ what is read


def test_names_of_what_can_be_read() -> None:
    known = readable(graph())
    assert {"features", "plain", "scores", "scores.norm"} <= known.keys()
    assert not {"tokens", "views", "image", "noise"} & known.keys()
    assert known["plain"] == known[known["plain"]]


@pytest.mark.parametrize("output", ["features", "plain", "scores.norm"])
def test_features_are_what_the_network_says(output: str) -> None:
    """On scaled pixels, more of them than go in at once, and with the same draws each time."""
    net = crate_dsl.build(graph(), seed=4).eval()
    data = some_data(train=MEASURING_BATCH + 3)
    cpu = torch.device("cpu")
    found = read(net, path_of(net.graph, output), data.train, data, SCALING, cpu)
    assert found.shape == (MEASURING_BATCH + 3, 12) and found.dtype == np.float64
    np.testing.assert_array_equal(
        found, read(net, path_of(net.graph, output), data.train, data, SCALING, cpu)
    )
    image = torch.from_numpy(SCALING.apply(data.train.images_nchw))
    with torch.no_grad():
        plain = net.reader(image)
        wanted = {"plain": plain, "scores.norm": torch.nn.functional.layer_norm(plain, (12,))}
    if output in wanted:
        np.testing.assert_allclose(
            found, wanted[output].numpy(), atol=1e-5
        )  # float32, sums of some ten numbers
    else:
        # Noise with a spread of 0.5, 6,000 numbers: four standard errors of its spread.
        assert abs((found - plain.numpy()).std() - 0.5) < 0.02


def test_features_that_are_not_finite() -> None:
    net = crate_dsl.build(graph(), seed=4).eval()
    data = some_data()
    with torch.no_grad():
        net.get_parameter("reader.linear.weight")[0] = torch.nan
    with pytest.raises(UserError, match="not finite"):
        read(net, path_of(net.graph, "plain"), data.train, data, SCALING, torch.device("cpu"))


@pytest.mark.parametrize(
    ("output", "problem"),
    [
        ("feature", "`encoder` has no output `feature`\nhelp: did you mean `features`?"),
        (
            "tokens",
            r"`tokens` is float\[4, 16\], but features are one float\[d\] for each image\nhelp: it can read",
        ),
        ("views", r"`views` is float\[2, 5\], but features are one"),
        ("zzz", "`encoder` has no output `zzz`\nhelp: --output: it can read `scores`"),
    ],
)
def test_what_cannot_be_read(output: str, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        path_of(graph(), output)


def test_a_network_of_tokens_alone() -> None:
    text = "model m { input image : float[1, 8, 8]  y = image -> patchify(4)  output y }"
    found = load_source(Source("m.crate", text), Target("m.crate"))
    with pytest.raises(UserError, match="a stage ends with one vector"):
        path_of(found, "features")


# ------------------------------------------------------------------ a run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("features")
    (folder / "encoder.crate").write_text(SPEC)
    return train(str(folder / "encoder.crate"), "digits", folder / "run", limit=60, progress=False)


def test_a_run_beside_what_it_is_held_against(run: Run) -> None:
    data = run.data()
    done: list[int] = []
    found = compare(run, data, output="plain", probe=True, random=True, pixels=True, advance=done.append)
    ours, untrained, pixels = found.rows
    assert (ours.source, untrained.source, pixels.source) == ("plain", "untrained", "pixels")
    assert (ours.width, untrained.width, pixels.width) == (12, 12, 64)
    assert (found.train_images, found.test_images, found.classes) == (60, len(data.test), 10)
    assert sum(done) == 2 * (60 + len(data.test))

    def split(net: crate_dsl.compiler.network.Network) -> Split:
        scaling, cpu = run.manifest.pixels(), torch.device("cpu")
        train_nd, test_nd = (
            read(net, path_of(net.graph, "plain"), part, data, scaling, cpu) for part in parts
        )
        return Split(train_nd, data.train.labels_n, test_nd, data.test.labels_n)

    parts = (data.train, data.test)
    assert ours.nearest == nearest(split(run.net())) and ours.probe == linear(split(run.net()))
    fresh = crate_dsl.build(run.graph(), seed=run.manifest.seed)
    assert untrained.nearest == nearest(split(fresh.eval()))
    assert compare(run, data, output="plain").rows == (replace(ours, probe=None),)


def test_what_cannot_be_measured(run: Run) -> None:
    data = run.data()
    assert data.train.labels_n is not None
    one_class = replace(data.train, labels_n=0 * data.train.labels_n)
    higher = Part(np.zeros((30, 1, 9, 8), np.uint8), np.arange(30) % 3)
    for changed, problem in [
        (data, "there are no 61 neighbours: digits has 60 training images"),
        (replace(data, train=replace(data.train, labels_n=None)), "digits has no labels"),
        (replace(data, test=data.test.take(np.arange(0))), "digits has no test images"),
        (replace(data, train=one_class), "the training images of digits are of one class"),
        (Data("higher", ("a", "b", "c"), higher, higher, higher), "but the images of higher are 1 x 9 x 8"),
    ]:
        with pytest.raises(UserError, match=problem):
            compare(run, changed, neighbours=61 if changed is data else 20, probe=True)


def test_classes_may_be_others_than_those_of_training(run: Run) -> None:
    """Labels serve the count alone: a network that never saw any is measured with those of any source."""
    assert compare(run, some_data(), neighbours=3).classes == 3
