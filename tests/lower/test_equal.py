"""Lowering never changes results: each rewrite alone, all but each, all together; in torch and in the exported file."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import crate_dsl
from crate_dsl.compiler.graph import ModelGraph
from crate_dsl.compiler.lower import REWRITES
from crate_dsl.language.diagnostics import SpecError
from tests.lower.corners import CORNERS, graph_of, picture, tokens
from tests.lower.holding import CHOICES, ROUNDING, errors, hold, perturbed
from tests.lower.strategies import specs

FOLDER = Path(str(files("crate_dsl.specs")))
#: Every shipped spec, in its smallest variant and with fewer layers.
SHIPPED = {
    "cbt.crate@fashion": {"depth": 2},
    "certified.crate@fashion": {"depth": 2},
    "crate.crate@fashion": {"depth": 3},
    "crate_alpha.crate@fashion": {"depth": 2},
    "crate_mae.crate@fashion": {"depth": 2},
    "reuse.crate:finetune@fashion": {"depth": 2},
    "reuse.crate:probe@fashion": {"depth": 2},
    "self_supervised.crate:completion@fashion": {"depth": 2},
    "self_supervised.crate:contrastive@fashion": {"depth": 2},
    "self_supervised.crate:prompted@fashion": {"depth": 2},
    "self_supervised.crate:rotated@fashion": {"depth": 2},
    "self_supervised.crate:simdino@fashion": {"depth": 2},
    "text.crate:crate_bert@characters": {"depth": 2},
    "text.crate:crate_gpt@characters": {"depth": 2},
    "text.crate:gpt@characters": {"depth": 2},
    "text.crate:tost_gpt@characters": {"depth": 2},
    "tost.crate@fashion": {"depth": 2},
    "vit.crate@fashion": {"depth": 2},
}
#: The random networks may stretch what they are given: each of float32's roundings then counts so many times.
STRETCHED = 20


def shipped(target: str) -> ModelGraph:
    return crate_dsl.load(str(FOLDER / target), set=SHIPPED[target])


def test_every_shipped_spec_is_here() -> None:
    files_here = {target.partition("@")[0].partition(":")[0] for target in SHIPPED}
    assert files_here == {path.name for path in FOLDER.glob("*.crate")}


@pytest.mark.parametrize("target", SHIPPED)
def test_shipped_specs(target: str, tmp_path: Path) -> None:
    net = perturbed(shipped(target))
    hold(net, *CHOICES)
    assert crate_dsl.export(net.graph, net, tmp_path / "net.onnx").worst < ROUNDING


@pytest.mark.parametrize("corner", CORNERS)
def test_corners(corner: str, tmp_path: Path) -> None:
    net = perturbed(CORNERS[corner])
    hold(net, *CHOICES)
    assert crate_dsl.export(net.graph, net, tmp_path / "net.onnx").worst < ROUNDING


@given(text=specs(), choice=st.sets(st.sampled_from(list(REWRITES)), min_size=1))
@settings(max_examples=150, deadline=None, derandomize=True, database=None)
def test_random_specs(text: str, choice: set[str]) -> None:
    net = perturbed(text)
    every, some, plain = errors(
        net, crate_dsl.lower(net), crate_dsl.lower(net, ",".join(sorted(choice))), net
    )
    assert max(every, some) < max(ROUNDING, STRETCHED * plain), (every, some, plain)


# ------------------------------------------------------------------ weights that training has led somewhere


@pytest.mark.parametrize(
    "chain", ["compress(3, rank = 4) sparsify", "residual { norm -> attend(3) } norm -> relu"]
)
def test_trained_weights(chain: str, tmp_path: Path) -> None:
    """Some steps on real digits: weights are neither random nor independent of one another."""
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]

    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(digits.target)
    graph = graph_of(
        "model m {\n input x : float[1, 8, 8]\n target label : index(10)\n learn c : float[12] = normal(1)\n"
        f" stage encoder = repeat(2) {{ {chain} }}\n"
        " y = x -> patchify(4) -> linear(12) -> prepend(c) -> position(learned) -> encoder -> select(c) -> norm\n"
        "       -> linear(10)\n output y\n objective cross_entropy(y, label)\n}"
    )
    net = crate_dsl.build(graph, seed=0)
    objective = crate_dsl.Objective(net)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    losses = []
    for step in range(60):
        batch = torch.arange(step * 64, step * 64 + 64) % len(images)
        loss = objective({"x": images[batch], "label": labels[batch]})
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0], "nothing was learnt"
    net.eval()
    hold(net, *CHOICES)
    proof = crate_dsl.export(graph, net, tmp_path / "net.onnx")
    assert proof.passed and proof.worst < ROUNDING
    with torch.no_grad():
        wanted = net.double()(images.double())
        found = crate_dsl.lower(net.float())(images)
    assert (found - wanted).abs().max() < ROUNDING * wanted.abs().max()
    assert torch.equal(found.argmax(1), wanted.argmax(1))


# ------------------------------------------------------------------ weights that no initial value is near


@pytest.mark.parametrize(
    ("chain", "slot", "value"),
    [
        ("compress(2, rank = 4, scale = learn(0.5))", "y.compress.scale", -0.7),
        ("compress(2, rank = 4, scale = learn(0.5))", "y.compress.scale", 0.0),
        ("sparsify(penalty = learn(0.5), prox = soft)", "y.sparsify.penalty", -0.7),
        ("sparsify(penalty = learn(0.5), prox = leaky(0.4))", "y.sparsify.penalty", -0.7),
        ("sparsify(step = learn(0.5))", "y.sparsify.step", 0.0),
        ("sparsify(norm = none)", "y.sparsify.dictionary", 0.0),
        ("compress(2, rank = 4, step = learn(0.5), out = tied)", "y.compress.step", -0.3),
    ],
)
def test_learned_numbers_are_not_held_above_zero(chain: str, slot: str, value: float, tmp_path: Path) -> None:
    net = crate_dsl.build(graph_of(tokens(chain)), seed=1).eval()
    with torch.no_grad():
        net.state_dict()[slot].fill_(value)
    hold(net, *CHOICES)
    assert crate_dsl.export(net.graph, net, tmp_path / "net.onnx").passed


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_is_exported_and_proved(choice: str, tmp_path: Path) -> None:
    net = perturbed(
        picture(
            "patchify(2) -> linear(12) -> prepend(c) -> position(learned) -> compress(2, rank = 4) -> sparsify"
            " -> select(c) -> norm -> linear(5)"
        )
    )
    proof = crate_dsl.export(net.graph, net, tmp_path / "net.onnx", lower=choice)
    assert proof.passed and proof.worst < ROUNDING
    texts = perturbed(CORNERS["select from texts"])
    assert crate_dsl.export(texts.graph, texts, tmp_path / "net.onnx", lower=choice).worst < ROUNDING


def test_parts_of_steps_take_no_names_away() -> None:
    """What the compiler alone writes has no spelling: its words are free for values, stages and inputs."""
    hold(
        perturbed(
            "model m {\n input shift : float[7, 12]\n stage attention = compress(2, rank = 4) -> sparsify\n"
            " affine = shift -> attention -> norm\n take = affine -> attention\n output take, affine\n}"
        ),
        "none",
        "all",
    )
    with pytest.raises(SpecError, match="unknown step `affine`"):
        graph_of(tokens("affine(3)"))
