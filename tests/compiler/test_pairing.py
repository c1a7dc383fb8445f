"""`inverse(stage, mode = …)`: order, pairs, who owns which weight, and what has no way back."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch

import crate_dsl
from crate_dsl.compiler.graph import ModelGraph
from crate_dsl.compiler.write_torch import torch_source
from tests.compiler.specs import codes, elaborated, found

#: Rounding of float32 over some twenty additions of numbers of size 1.
SINGLE = 1e-5


def autoencoder(encoder: str, mode: str, more: str = "") -> str:
    return f"""
model m(dim = 12, depth = 3) {{
    input image : float[1, 4, 6]
    learn class_token : float[dim]
    {more}
    stage encoder = {encoder}
    stage decoder = inverse(encoder, mode = {mode})

    code = image -> encoder
    y = code -> decoder

    output code, y
}}
"""


#: What these tests look at is the way back, whether it is certified or not.
pytestmark = pytest.mark.filterwarnings("ignore::crate_dsl.language.diagnostics.NotCertified")

WHOLE = """patchify(2) -> linear(dim) -> position(learned) -> prepend(class_token) -> repeat(depth) {
        norm -> linear(dim)
    }"""


def pairs(graph: ModelGraph) -> list[tuple[str, str]]:
    return [(pair.step, pair.undoes) for pair in graph.pairs]


def test_the_order_is_reversed_and_layers_are_paired() -> None:
    graph = elaborated(autoencoder(WHOLE, "learned"))
    assert pairs(graph) == [
        ("decoder.0.linear", "encoder.2.linear"),
        ("decoder.0.norm", "encoder.2.norm"),
        ("decoder.1.linear", "encoder.1.linear"),
        ("decoder.1.norm", "encoder.1.norm"),
        ("decoder.2.linear", "encoder.0.linear"),
        ("decoder.2.norm", "encoder.0.norm"),
        ("decoder.drop", "encoder.prepend"),
        ("decoder.unposition", "encoder.position"),
        ("decoder.linear", "encoder.linear"),
        ("decoder.unpatchify", "encoder.patchify"),
    ]
    assert {(pair.inverse, pair.stage) for pair in graph.pairs} == {("decoder", "encoder")}
    assert str(graph.type_of(graph.outputs["y"])) == "float[1, 4, 6]"


def test_a_learned_inverse_owns_its_weights_but_for_exact_steps() -> None:
    graph = elaborated(autoencoder(WHOLE, "learned"))
    own = {slot for slot in graph.slots if slot.startswith("decoder.")}
    assert "decoder.2.linear.weight" in own and "decoder.0.norm.bias" in own
    assert graph.node("decoder.unposition").weights["table"].slot == "encoder.position.table"
    assert graph.slots["decoder.linear.weight"].shape == (4, 12)


def test_a_tied_inverse_owns_nothing() -> None:
    encoder = "patchify(2) -> linear(dim, bias = false) -> position(learned) -> scale(4)"
    graph = elaborated(autoencoder(encoder, "tied", more="# ").replace("learn class_token : float[dim]", ""))
    assert not any(slot.startswith("decoder.") for slot in graph.slots)
    assert graph.node("decoder.transpose").weights["weight"].slot == "encoder.linear.weight"


def test_the_torch_code_names_the_paired_layer() -> None:
    text = torch_source(elaborated(autoencoder(RESIDUAL, "fixed_point(2)")))
    assert "for layer, paired in zip(self.layers, reversed([*encoder.layers])):  # 3 layers" in text
    assert text.count("class DecoderLayer(Scope)") == 1, "one text serves all layers"


RESIDUAL = """patchify(2) -> position(learned) -> repeat(depth) {
        residual { scale(0.25) }
        residual { norm(rms) -> scale(0.1) }
    }"""


def test_residuals_are_undone_by_iteration() -> None:
    """The error of x <- y - f(x) falls at least by the contraction's rate with each iteration."""
    errors = []
    for iterations in (1, 2, 4, 20):
        net = crate_dsl.build(elaborated(autoencoder(RESIDUAL, f"fixed_point({iterations})")))
        x = torch.randn(5, 1, 4, 6, generator=torch.Generator().manual_seed(0))
        errors.append((net(x)["y"] - x).abs().max().item())
    assert errors[0] > 2 * errors[1] > 8 * errors[2]
    assert errors[3] < SINGLE


def test_repeats_inside_repeats_and_stages_inside_stages() -> None:
    text = autoencoder(
        "front -> repeat(depth) { repeat(2) { linear(4) } norm } -> front2",
        "learned",
        more="stage front = patchify(2) -> position(sincos)\n    stage front2 = scale(2) -> scale(3)",
    ).replace("learn class_token : float[dim]", "")
    graph = elaborated(text)
    steps = pairs(graph)
    assert steps[0] == ("decoder.scale", "front2.scale_2")
    assert steps[2:5] == [
        ("decoder.0.norm", "encoder.2.norm"),
        ("decoder.0.0.linear", "encoder.2.1.linear"),
        ("decoder.0.1.linear", "encoder.2.0.linear"),
    ]
    assert steps[-1] == ("decoder.unpatchify", "front.patchify")
    net = crate_dsl.build(graph)
    assert net(torch.zeros(2, 1, 4, 6))["y"].shape == (2, 1, 4, 6)


@pytest.mark.parametrize(
    "idle", ["idle", "idle -> idle", "repeat(2) { idle }", "repeat(2) { input x  output x }"]
)
def test_what_does_nothing_is_undone_by_nothing(idle: str) -> None:
    text = autoencoder(
        f"scale(2) -> {idle} -> scale(4)", "learned", more="stage idle = { input x  output x }"
    ).replace("learn class_token : float[dim]", "")
    graph = elaborated(text)
    assert pairs(graph) == [("decoder.scale", "encoder.scale_2"), ("decoder.scale_2", "encoder.scale")]
    image = torch.randn(2, 1, 4, 6)
    assert torch.equal(crate_dsl.build(graph)(image)["y"], image)


def test_an_inverse_may_stand_in_a_pipeline_and_be_used_twice() -> None:
    graph = elaborated("""
model m {
    input z : float[6, 8]
    stage encoder = repeat(2) { linear(8) }
    stage decoder = inverse(encoder, mode = learned)
    code = z -> encoder
    a = code -> decoder
    b = z -> decoder
    c = code -> inverse(encoder, mode = learned)
    output a, b, c
}
""")
    assert {slot.partition(".")[0] for slot in graph.slots} == {"encoder", "decoder", "c"}
    assert len({slot for slot in graph.slots if slot.startswith("decoder.")}) == 4
    net = crate_dsl.build(graph)
    z = torch.randn(2, 6, 8)
    assert set(net(z)) == {"a", "b", "c"}


@pytest.mark.parametrize("mode", ["learned", "fixed_point(2)"])
def test_an_autoencoder_is_an_ordinary_module_and_exports(mode: str, tmp_path: Path) -> None:
    net = crate_dsl.build(elaborated(autoencoder(WHOLE if mode == "learned" else RESIDUAL, mode))).eval()
    x = torch.randn(3, 1, 4, 6)
    wanted = net(x)["y"]
    assert torch.equal(pickle.loads(pickle.dumps(net))(x)["y"], wanted)
    assert torch.equal(copy.deepcopy(net)(x)["y"], wanted)
    assert torch.equal(torch.compile(net, fullgraph=True, backend="eager")(x)["y"], wanted)
    torch.export.export(net, (x,))
    assert crate_dsl.export(net.graph, net, tmp_path / "net.onnx").passed


@pytest.mark.parametrize(
    ("encoder", "mode", "code", "words"),
    [
        ("patchify(2) -> relu", "learned", "E0530", "because of its `relu`"),
        ("patchify(2) -> pool", "learned", "E0530", "because of its `pool`: many tokens become one"),
        ("patchify(2) -> norm", "tied", "E0530", "it forgets each token's mean and size"),
        ("patchify(2) -> linear(3)", "tied", "E0530", "it adds a bias"),
        ("patchify(2) -> linear(3)", "fixed_point(3)", "E0530", "because of its `linear`"),
        ("patchify(2) -> linear(3)", "certified", "E0530", "because of its `linear`"),
        ("patchify(2) -> residual { norm }", "tied", "E0530", "because of its `residual`"),
        ("patchify(2) -> residual { residual { norm } }", "fixed_point(2)", "E0531", "more than steps"),
        ("{ input x  z = x -> patchify(2)  output z + z }", "learned", "E0531", "arithmetic joins"),
    ],
)
def test_what_has_no_way_back_is_named(encoder: str, mode: str, code: str, words: str) -> None:
    text = autoencoder(encoder, mode).replace("learn class_token : float[dim]", "")
    (problem,) = found(text)
    assert (problem.code, words in problem.message) == (code, True), problem.message
    assert problem.where is not None and problem.where.span.text.startswith("inverse(encoder")


def test_the_mode_must_be_said_and_the_stage_used() -> None:
    text = autoencoder("patchify(2) -> repeat(depth) { scale(dim) }", "learned")
    text = text.replace("learn class_token : float[dim]", "")
    assert codes(text) == []
    assert codes(text.replace(", mode = learned", "")) == ["E0302"]
    assert codes(text.replace("learned", "lerned")) == ["E0307"]
    assert codes(text.replace("learned", "fixed_point")) == ["E0302"]
    assert codes(text.replace("learned", "fixed_point(1000000000)")) == ["E0306"]
    assert codes(text.replace("code = image -> encoder", "code = image -> patchify(2)")) == ["E0506"]
