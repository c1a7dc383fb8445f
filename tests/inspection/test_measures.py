"""Every measure once more in float64, from its formula."""

from __future__ import annotations

from math import log, log2

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import crate_dsl
from crate_dsl.compiler.types import TensorType, floats
from crate_dsl.inspection.capacity import bits, edges
from crate_dsl.inspection.completion import hidden, nearest_visible
from crate_dsl.inspection.layers import axis, layers
from crate_dsl.inspection.measures import EPS, Measure, incoherence, nonzero, reduction, tokens_rate
from crate_dsl.inspection.views import attention_maps, cut, principal_components
from crate_dsl.training.batches import Held
from crate_dsl.training.data import SPLIT_SEED
from crate_dsl.training.feed import Feed
from crate_dsl.training.run import open_run
from tests.export.specs import TEXT, graph_of
from tests.inspection.conftest import PAIRED, SMALL, Inspected

#: Rounding of float64 over determinants of some dozens of rows.
EXACT = 1e-9
#: The network computes in float32: its numbers, relatively.
SINGLE = 1e-4


def log_det_rate(z_nd: Tensor, eps: float) -> float:
    """½ log det(I + d/(N ε²) Z Zᵀ), with tokens as rows."""
    tokens, width = z_nd.shape
    return 0.5 * float(
        torch.logdet(torch.eye(tokens, dtype=torch.float64) + width / (tokens * eps**2) * z_nd @ z_nd.T)
    )


def test_the_layers_of_a_run_are_measured_by_the_formulas(small: Inspected) -> None:
    """Every number of every layer of a trained network, image by image, from its weights."""
    run = open_run(small.run)
    net, data = run.net(), run.data()
    w = {name: value.double() for name, value in net.state_dict().items()}
    chosen = np.random.RandomState(SPLIT_SEED).permutation(len(data.test))[:40]
    assert small.data["data"]["chosen"] == chosen.tolist()
    images = Held(data.test.take(chosen), run.manifest.pixels(), Feed("image", (), None), torch.device("cpu"))
    x = images.batch(slice(None))["image"].double()
    patches = x.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 4, 5, 1).reshape(40, 4, 16)
    z = patches @ w["tokens.linear.weight"].T + w["tokens.linear.bias"]
    z = torch.cat([w["class_token"].expand(40, 1, 12), z], 1)

    def normed(z: Tensor, prefix: str) -> Tensor:
        return F.layer_norm(z, (12,), w[f"{prefix}norm_weight"], w[f"{prefix}norm_bias"])

    def heads(z: Tensor, prefix: str) -> Tensor:
        return (normed(z, prefix) @ w[f"{prefix}subspaces"].T).unflatten(-1, (2, 3)).transpose(1, 2)

    def published(w_bknp: Tensor) -> list[float]:
        unit = w_bknp / w_bknp.norm(dim=-1, keepdim=True)
        return [sum(log_det_rate(head, 0.1) for head in image) for image in unit]

    def objective(y: Tensor, code: Tensor, dictionary: Tensor) -> Tensor:
        return (0.5 * (y - code @ dictionary.T).square().sum((1, 2))) + 0.2 * code.abs().sum((1, 2))

    before: dict[str, list[float]] = {}
    for layer, found in enumerate(small.data["layers"]):
        c, s = f"encoder.{layer}.compress.", f"encoder.{layer}.sparsify."
        q = heads(z, c)
        entering = z
        attended = ((q @ q.mT) * 3**-0.5).softmax(-1) @ q
        z = z + attended.transpose(1, 2).flatten(2) @ w[c + "out_weight"].T + w[c + "out_bias"]
        after = heads(z, c)
        y, dictionary = normed(z, s), w[s + "dictionary"]
        code = (0.1 * (y @ dictionary) - 0.02).relu()
        code = (code + 0.1 * ((y - code @ dictionary.T) @ dictionary) - 0.02).relu()
        z = z + code @ w[s + "decode"].T
        start = objective(y, torch.zeros_like(code), dictionary)
        x_bnd = normed(entering, c)
        length = x_bnd.norm(dim=-1, keepdim=True)
        wanted = {
            "rate": published(q),
            "step_rate": published(after),
            "nonzero": (code > 0).double().mean((1, 2)).tolist(),
            "lasso": (1 - objective(y, code, dictionary) / start).tolist(),
            "tokens_rate": [log_det_rate(one / one.norm(dim=-1, keepdim=True), EPS) for one in z],
            "reduction": [
                log_det_rate(one, EPS) - sum(log_det_rate(head, EPS) for head in parts)
                for one, parts in zip(x_bnd / length, q / length[:, None], strict=True)
            ],
        }
        for name, values in wanted.items():
            assert found[name]["mean"] == pytest.approx(np.mean(values), rel=SINGLE), name
            assert found[name]["std"] == pytest.approx(np.std(values, ddof=1), rel=1e-2, abs=1e-6), name
        for name, past in (
            ("rate", before.get("rate")),
            ("nonzero", before.get("nonzero")),
            ("step_rate", wanted["rate"]),
        ):
            if past is None:
                assert found[name]["lower"] is None and found[name]["share"] is None
            else:
                assert found[name]["lower"] == (np.mean(wanted[name]) < np.mean(past))
                assert found[name]["share"] == pytest.approx(np.mean(np.less(wanted[name], past)), abs=0.03)
        before = wanted


def test_rates_and_sparsity_of_plain_tensors() -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(3, 7, 5, generator=generator)
    unit = z.double() / z.double().norm(dim=-1, keepdim=True)
    wanted = [log_det_rate(one, EPS) for one in unit]
    assert tokens_rate(z).tolist() == pytest.approx(wanted, abs=EXACT)
    assert tokens_rate(9 * z).tolist() == pytest.approx(wanted, abs=1e-5)
    # One subspace that is everything: nothing is saved. A token of zeros is no mistake.
    z[0, 2] = 0
    assert reduction(z, z[:, None]).abs().max() < EXACT
    code = torch.tensor([[[0.0, 1.0], [0.0, -2.0]], [[0.0, 0.0], [0.0, 1e-30]]])
    assert nonzero(code).tolist() == [0.5, 0.25]


def test_incoherence() -> None:
    generator = torch.Generator().manual_seed(0)
    basis, _ = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64))
    orthonormal = incoherence(basis[:4])
    assert orthonormal.deviation < EXACT and orthonormal.coherence < EXACT and 0 < orthonormal.random < 1
    rows = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    found = incoherence(rows)
    gram = (rows @ rows.T).numpy()
    assert found.deviation == pytest.approx(np.linalg.norm(gram - np.eye(5), 2), abs=EXACT)
    cosines = np.abs(gram / np.sqrt(np.outer(np.diag(gram), np.diag(gram)))) - np.eye(5)
    assert found.coherence == pytest.approx(cosines.max(), abs=EXACT)
    assert incoherence(torch.tensor([[1.0, 0.0], [-2.0, 0.0]])).coherence == pytest.approx(1)


def test_capacity() -> None:
    assert bits(floats(50, 128)) == 50 * 128 * 32
    assert bits(TensorType("index", floats(32).shape, classes=4096)) == 32 * log2(4096) == 384
    assert bits(TensorType("bool", floats(9).shape)) == 9
    graph = graph_of(SMALL)
    found = {
        (edge.first, edge.last): edge
        for edge in edges(graph, {"encoder.1.sparsify": Measure(log(2) * 3, 0.0)})
    }
    layers_ = found["encoder.0.compress", "encoder.2.sparsify"]
    assert (layers_.bits, layers_.each, layers_.used) == (5 * 12 * 32, 12 * 32, pytest.approx((3, 3)))
    assert found["image", "image"].bits == 64 * 32 and found["image", "image"].used is None
    symbolic = edges(graph_of(TEXT), {})
    assert symbolic[0].bits == pytest.approx(9 * log2(17)), "lengths count at their bound"


def test_layers_are_groups_of_steps() -> None:
    found = layers(graph_of(SMALL))
    assert [layer.name for layer in found] == ["encoder.0", "encoder.1", "encoder.2"]
    assert {layer.stage for layer in found} == {"encoder"} and not any(layer.decodes for layer in found)
    where = axis(graph_of(SMALL), found[0].nodes[0])
    assert where is not None and (where.patches, where.rows, where.columns) == (slice(1, 5), 2, 2)
    assert where.class_token == ("class_token", 0)
    paired = layers(graph_of(PAIRED))
    assert [(layer.name, layer.decodes) for layer in paired] == [
        ("encoder.0", False),
        ("encoder.1", False),
        ("decoder.0", True),
        ("decoder.1", True),
    ]
    # Two compress steps in one owner are two layers; a black box is told by its attention.
    twice = graph_of(
        "model m { input z : float[5, 6]\n stage s = compress(2, 3) -> compress(2, 3)\n y = z -> s\n output y }"
    )
    assert [layer.name for layer in layers(twice)] == ["s", "s (2)"]
    black = layers(crate_dsl.load("specs/vit.crate@fashion"))
    assert len(black) == 4 and black[0].tokens.node == "encoder.0.residual_2"


def test_attention_rows() -> None:
    attention = np.random.default_rng(0).random((2, 3, 7, 7))
    maps = attention_maps(attention, slice(1, 7), (2, 3), 0)
    assert maps.shape == (2, 3, 2, 3)
    assert maps[1, 2, 1, 0] == attention[1, 2, 0, 1 + 3]
    mean = attention_maps(attention, slice(1, 7), (2, 3), None)
    assert mean[1, 2, 1, 0] == pytest.approx(attention[1, 2, 1:, 4].mean())


def test_principal_components() -> None:
    features = np.random.default_rng(0).standard_normal((3, 20, 6)) * [5, 4, 3, 2, 1, 0.5]
    found, explained = principal_components(features)
    rows = features.reshape(60, 6)
    values, vectors = np.linalg.eigh(np.cov(rows.T))
    for k in range(4):
        scores = (rows - rows.mean(0)) @ vectors[:, -1 - k]
        scores = (scores - scores.min()) / np.ptp(scores)
        own = found.reshape(60, 4)[:, k]
        assert min(np.abs(own - scores).max(), np.abs(own - (1 - scores)).max()) < EXACT
    assert explained == pytest.approx(values[::-1][:4] / values.sum())
    alike, _ = principal_components(np.ones((2, 4, 5)))
    assert np.isfinite(alike).all()


def test_a_planted_object_is_cut_out() -> None:
    rows, columns = 6, 8
    planted = np.zeros((rows, columns), bool)
    planted[1:4, 2:6] = True
    generator = np.random.default_rng(0)
    features = np.where(planted.reshape(-1, 1), [1.0, 0, 0], [0, 1.0, 0]) + 0.05 * generator.standard_normal(
        (48, 3)
    )
    first, *_ = cut(features, (rows, columns))
    assert np.array_equal(first, planted)
    # Another one, apart from it and unlike it, is cut out next.
    planted[:, -1] = False
    second = np.zeros((rows, columns), bool)
    second[5, 0:3] = True
    features[second.reshape(-1)] = [0, 0, 1.0]
    found = cut(features, (rows, columns))
    assert any(np.array_equal(mark, second) for mark in found) and any(
        np.array_equal(mark, planted) for mark in found
    )
    assert cut(np.ones((48, 3)), (rows, columns)) == [], "nothing to cut where all patches are alike"
    assert cut(np.zeros((48, 3)), (rows, columns)) == []


def test_the_nearest_visible_patch_and_what_is_hidden() -> None:
    from crate_dsl.compiler.types import Grid

    patches = torch.arange(12.0).reshape(1, 6, 2)
    marks = torch.tensor([[True, False, True, True, True, False]])
    filled = nearest_visible(patches, marks, Grid(2, 3, 4, 1))
    # Places of a 2 x 3 grid: 0 is beside 1; 2 is beside 1 and 5, of which 1 comes first; 3 is nearest to 1, 4 to 1.
    assert filled[0, :, 0].tolist() == [2, 2, 2, 2, 2, 10]
    assert hidden(torch.tensor([[5, 1]]), 6).tolist() == marks.tolist()
    assert hidden(marks, 6) is marks
