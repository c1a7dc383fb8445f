"""What is exported of networks that learn without labels: the outputs and what they need, and nothing of how it was
learned.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import crate_dsl
from crate_dsl.compiler.network import Network

FOLDER = Path(str(files("crate_dsl.specs")))
#: The proof's own bound on outputs of size 1.
PROVED = 1e-4
SMALL = {"dim": 24, "depth": 2, "subspaces": 3}


@dataclass(frozen=True)
class Pretext:
    """What a file should hold: its inputs, of which some are drawn if nobody gives them, its outputs, and the owners of
    its weights; and who else owns weights in training.
    """

    target: str
    inputs: tuple[str, ...]
    draws: tuple[str, ...]
    outputs: tuple[str, ...]
    owners: frozenset[str]
    training_only: frozenset[str] = frozenset()


PRETEXTS = [
    # Both have the same weights, and the file those of the teacher.
    Pretext(
        "self_supervised.crate:simdino@fashion",
        inputs=("image",),
        draws=(),
        outputs=("features",),
        owners=frozenset({"teacher"}),
        training_only=frozenset({"class_token", "front", "encoder", "student"}),
    ),
    # The projector is a part of the loss.
    Pretext(
        "self_supervised.crate:contrastive@fashion",
        inputs=("image",),
        draws=(),
        outputs=("features",),
        owners=frozenset({"class_token", "front", "encoder", "reader"}),
        training_only=frozenset({"views"}),
    ),
    # What is hidden is an input, the decoder is needed for what is completed.
    Pretext(
        "self_supervised.crate:completion@fashion",
        inputs=("image", "hidden"),
        draws=("hidden",),
        outputs=("features", "completed"),
        owners=frozenset({"class_token", "blank", "front", "encoder", "decoder", "completed"}),
    ),
    Pretext(
        "self_supervised.crate:rotated@fashion",
        inputs=("image",),
        draws=(),
        outputs=("features",),
        owners=frozenset({"class_token", "front", "encoder", "reader"}),
        training_only=frozenset({"scores"}),
    ),
    Pretext(
        "crate_mae.crate@fashion",
        inputs=("image", "hidden"),
        draws=("hidden",),
        outputs=("completed",),
        owners=frozenset({"class_token", "mask_token", "code", "encoder", "decoder", "completed"}),
    ),
    # The masked reading has the weights of the plain one, and its tokens are drawn by the objective alone.
    Pretext(
        "text.crate:crate_bert@characters",
        inputs=("ids", "kept"),
        draws=(),
        outputs=("logits",),
        owners=frozenset({"embedding", "encoder", "reader"}),
    ),
]
#: What makes views and hides tokens in training.
RANDOM = ("crops", "augment", "rotations", "mask_tokens")


def built(target: str) -> Network:
    return crate_dsl.build(crate_dsl.load(str(FOLDER / target), set=SMALL), seed=0).eval()


def owners(paths: list[str]) -> set[str]:
    return {path.partition(".")[0] for path in paths}


@pytest.mark.parametrize("pretext", PRETEXTS, ids=lambda pretext: pretext.target)
def test_the_outputs_and_what_they_need(pretext: Pretext, tmp_path: Path) -> None:
    net = built(pretext.target)
    assert owners(list(net.graph.slots)) == pretext.owners | pretext.training_only
    path = tmp_path / "net.onnx"
    assert crate_dsl.export(net.graph, net, path, lower="none").passed
    session = crate_dsl.open_session(path, provider="cpu")
    assert (tuple(session.inputs), tuple(session.draws), session.outputs) == (
        pretext.inputs,
        pretext.draws,
        pretext.outputs,
    )
    model = onnx.load(path)
    assert owners([tensor.name for tensor in model.graph.initializer]) == pretext.owners
    words = {function.name for function in model.functions} | {node.op_type for node in model.graph.node}
    assert not [word for word in words if word.startswith(RANDOM)], words
    # Nothing draws inside the file: what is random is an input.
    operators = {node.op_type for function in model.functions for node in function.node} | words
    assert not {"RandomNormal", "RandomUniform", "Bernoulli", "Multinomial"} & operators


@pytest.mark.parametrize("pretext", PRETEXTS, ids=lambda pretext: pretext.target)
def test_lowered_files_have_the_same_inputs_and_outputs(pretext: Pretext, tmp_path: Path) -> None:
    net = built(pretext.target)
    assert crate_dsl.export(net.graph, net, tmp_path / "net.onnx").passed
    session = crate_dsl.open_session(tmp_path / "net.onnx", provider="cpu")
    assert (tuple(session.inputs), tuple(session.draws), session.outputs) == (
        pretext.inputs,
        pretext.draws,
        pretext.outputs,
    )


def test_the_teacher_is_what_is_exported(tmp_path: Path) -> None:
    """Its features are those of the file, and those of the student are others."""
    net = built("self_supervised.crate:simdino@fashion")
    with torch.no_grad():
        for path, weight in net.named_parameters():
            if path not in net.graph.averages:
                weight += 0.1 * torch.randn_like(weight)
    image = torch.randn(5, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    crate_dsl.export(net.graph, net, tmp_path / "net.onnx")
    found = crate_dsl.open_session(tmp_path / "net.onnx", provider="cpu")(image=image.numpy())["features"]
    with torch.no_grad():
        assert np.abs(found - net(image).numpy()).max() < PROVED
        net.average_(momentum=0)  # now the teacher is the student
        assert np.abs(found - net(image).numpy()).max() > 100 * PROVED


def test_what_is_hidden_is_drawn_or_given(tmp_path: Path) -> None:
    """Features are those of the whole picture, whatever is hidden; what is completed depends on it."""
    net = built("self_supervised.crate:completion@fashion")
    crate_dsl.export(net.graph, net, tmp_path / "net.onnx")
    image = np.random.default_rng(0).standard_normal((3, 1, 28, 28), np.float32)
    one, other = (crate_dsl.open_session(tmp_path / "net.onnx", provider="cpu", seed=seed) for seed in (1, 2))
    left, right = one(image=image), other(image=image)
    np.testing.assert_array_equal(left["features"], right["features"])
    assert np.abs(left["completed"] - right["completed"]).max() > 100 * PROVED
    hidden = np.arange(49)[None].repeat(3, 0) % 3 > 0
    given = [session(image=image, hidden=hidden)["completed"] for session in (one, other)]
    np.testing.assert_array_equal(*given)
