"""Causal networks: prefix laws, with a cache and without, in torch and in onnxruntime; and what has no cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import crate_dsl
from benchmarks import prefix
from crate_dsl.compiler.network import Network
from crate_dsl.compiler.prove import ProofError, perturb, portions
from crate_dsl.compiler.stepping import empty, step_graph, stepped
from crate_dsl.compiler.steps.cached import onnx
from crate_dsl.language.diagnostics import UserError
from crate_dsl.language.source import Source
from crate_dsl.workspace import Target, load_source
from tests.lower.holding import CHOICES

#: Rounding of float64 in some layers; and what the laws are held to in float32.
EXACT, SINGLE = 1e-12, prefix.LIMIT
LENGTH = 23

NETWORKS = {name: ("step", text) for name, text in prefix.STEPS.items()} | {
    name: ("text", name) for name in prefix.MODELS
}


@pytest.mark.parametrize("name", NETWORKS)
def test_prefix_laws(name: str) -> None:
    kind, what = NETWORKS[name]
    net = prefix.step_network(what, LENGTH) if kind == "step" else prefix.text_network(what)
    found = prefix.errors(net, LENGTH)
    assert max(found.prefix_float64, found.cached_float64) < EXACT
    assert found.worst < SINGLE
    assert found.largest > 1, "there is something to compare"


def built(body: str, head: str = "input z : float[n <= 12, 8]", seed: int = 1) -> Network:
    text = f"model example {{\n    {head}\n    y = z -> {body}\n    output y\n}}\n"
    net = crate_dsl.build(load_source(Source("test.crate", text), Target("test.crate")), seed=seed).eval()
    perturb(net, net.graph.slots)
    return net


def told(net: Network, sizes: list[int], z: Tensor) -> Tensor:
    """What comes out of a network, or of what was made of it for the next tokens, one portion after another."""
    one = net if net.graph.cache is not None else stepped(net)
    cache = one.graph.cache
    assert cache is not None
    states, past, parts = empty(one.graph, len(z)), 0, []
    for size in sizes:
        given = {cache.tokens: z[:, past : past + size], cache.past: torch.full((len(z),), past)}
        found = one(**given, **states)
        parts.append(found[cache.scores])
        states = {state: found[after] for state, after in cache.states}
        past += size
    return torch.cat(parts, 1)


# ------------------------------------------------------------------ what is held


def test_attention_within_subspaces_holds_half_of_what_attention_holds() -> None:
    """One tensor a layer where q = k = v, two where keys and values are their own; sums do not grow."""
    held = {
        model: [
            str(entry.type)
            for name, entry in step_graph(prefix.text_network(model).graph).inputs.items()
            if name.startswith("state_")
        ]
        for model in prefix.MODELS
    }
    assert held["crate_gpt"] == 6 * ["float[past, 128]"]
    assert held["gpt"] == 12 * ["float[past, 66]"]
    assert held["tost_gpt"] == 6 * ["float[2, 4, 37]"]


def test_its_weights_are_copies_under_the_same_names() -> None:
    net = prefix.text_network("crate_gpt")
    one = stepped(net)
    assert list(one.state_dict()) == list(net.state_dict())
    with torch.no_grad():
        one.get_parameter("encoder.0.compress.subspaces").zero_()
    assert net.get_parameter("encoder.0.compress.subspaces").abs().min() > 0


def test_inputs_and_outputs_are_named() -> None:
    graph = step_graph(prefix.text_network("crate_gpt").graph)
    assert list(graph.inputs) == ["ids", "past", *(f"state_{k}" for k in range(1, 7))]
    assert list(graph.outputs) == ["logits", *(f"next_{k}" for k in range(1, 7))]
    assert str(graph.type_of(graph.outputs["next_1"])) == "float[past + n, 128]"
    assert graph.cache is not None
    assert (graph.cache.tokens, graph.cache.past, graph.cache.scores) == ("ids", "past", "logits")


@pytest.mark.parametrize(
    "body",
    [
        # One stage used twice: the weights are one, what is held is not.
        "encoder -> encoder",
        "position(sincos, length = 40) -> encoder",
        "residual { norm(rms) -> attend(2, mask = causal) } -> dropout(0.3) -> sparsify(iterations = 2) -> silu",
        "linear(6) -> scale(learn(0.3, shape = [6])) -> compress(3, 2, mask = causal) -> gelu",
        "sparsify(expand = 2, start = zero, decode = free, prox = soft) -> encoder",
    ],
)
def test_other_steps_are_told_one_after_another(body: str) -> None:
    head = """input z : float[n <= 12, 8]
    stage encoder = repeat(2) { compress(3, 5, mask = causal)  sparsify }"""
    net = built(body, head)
    z = torch.randn(2, 12, 8)
    with torch.no_grad():
        assert (told(net, [4, 1, 7], z) - net(z)).abs().max() < SINGLE


@pytest.mark.parametrize(
    "arguments", ["positions = rotary, scale = 0.4, step = 0.7", "out = tied, step = learn(0.3)"]
)
def test_lowered_steps(arguments: str) -> None:
    chain = f"position(sincos) -> compress(3, 4, mask = causal, {arguments}) -> sparsify -> norm"
    net = built(f"{chain} -> attend(2, mask = causal, positions = rotary) -> norm -> linear(5)")
    z, one = torch.randn(2, 12, 8), stepped(net)
    with torch.no_grad():
        for choice in CHOICES:
            assert (told(crate_dsl.lower(one, choice), [4, 1, 7], z) - net(z)).abs().max() < SINGLE, choice


@pytest.mark.parametrize("model", prefix.MODELS)
def test_lowered_networks(model: str) -> None:
    net = prefix.text_network(model)
    ids, one = prefix.tokens_of(net, 40), stepped(net)
    with torch.no_grad():
        whole = net(ids)
        for choice in ("parts", "all"):
            assert (told(crate_dsl.lower(one, choice), [29, 1, 10], ids) - whole).abs().max() < SINGLE


def test_tokens_of_known_number_may_come_in_portions() -> None:
    net = built(
        "position(learned) -> compress(2, 3, mask = key.place <= query.place and query.place - key.place < 3)"
        " -> compress(2, 3, gradient = statistics, mask = causal)",
        "input z : float[9, 8]",
    )
    z = torch.randn(2, 9, 8)
    with torch.no_grad():
        assert (told(net, [1, 3, 5], z) - net(z)).abs().max() < SINGLE


@pytest.mark.parametrize("gradient", ["", ", gradient = statistics, length = 12"])
def test_padding_is_not_asked_for(gradient: str, tmp_path: Path) -> None:
    """Of the next tokens all count."""
    head = "input z : float[n <= 12, 8]\n    input kept : bool[n]"
    net = built(f"compress(3, 5, mask = causal and kept{gradient}) -> norm", head)
    z = torch.randn(2, 12, 8)
    with torch.no_grad():
        whole = net(z, torch.ones(2, 12, dtype=torch.bool))
        assert (told(net, [5, 1, 6], z) - whole).abs().max() < SINGLE
    assert crate_dsl.export(net.graph, net, tmp_path / "kept.onnx", cache=True).passed


def test_a_length_that_is_called_past_stays_apart() -> None:
    net = built("compress(3, 5, mask = causal)", "input z : float[past <= 12, 8]")
    assert list(step_graph(net.graph).inputs) == ["z", "past", "state_1"]
    z = torch.randn(2, 7, 8)
    with torch.no_grad():
        assert (told(net, [4, 3], z) - net(z)).abs().max() < SINGLE


# ------------------------------------------------------------------ what has none


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("compress(2, 3)", "lets tokens attend to later ones"),
        ("attend(2)", "lets tokens attend to later ones"),
        (
            "attend(2, mask = key.place < query.place + 2)",
            "lets tokens attend to later ones",
        ),
        (
            "compress(2, 3, gradient = exact)",
            "takes all tokens together, later ones too: it is `gradient = exact`",
        ),
        (
            "compress(2, 3, gradient = statistics)",
            "takes all tokens together, later ones too: it is `gradient = statistics`",
        ),
        ("prepend(c) -> attend(2, mask = causal)", "says nothing of the next tokens alone"),
        ("compress(2, 3, mask = causal) -> pool", "says nothing of the next tokens alone"),
    ],
)
def test_what_needs_later_tokens_is_refused_at_its_line(body: str, message: str) -> None:
    net = built(body, "input z : float[n <= 12, 8]\n    learn c : float[8]")
    with pytest.raises(UserError) as caught:
        stepped(net)
    assert message in str(caught.value) and "test.crate:4" in str(caught.value)


def test_attributes_of_tokens_to_come_are_not_known() -> None:
    head = "input z : float[3, 8, 8]"
    net = built("patchify(4) -> linear(8) -> attend(2, mask = key.row <= query.row)", head)
    with pytest.raises(UserError, match="patchify"):
        stepped(net)


def test_other_inputs_are_refused() -> None:
    text = """model example {
        input z     : float[n <= 12, 8]
        input other : float[n, 8]
        y = (z -> compress(2, 3, mask = causal)) + other
        output y
    }"""
    net = crate_dsl.build(load_source(Source("test.crate", text), Target("test.crate")))
    with pytest.raises(UserError, match="it needs one input of tokens, and there are `z`, `other`"):
        stepped(net)


def test_tokens_that_know_nothing_of_each_other_need_no_cache() -> None:
    with pytest.raises(UserError, match="needs no cache"):
        stepped(built("norm -> linear(3)"))


@pytest.mark.parametrize(
    "body",
    ["position(learned, length = 12)", "compress(2, 3, gradient = statistics, mask = causal, length = 12)"],
)
def test_a_token_behind_the_last_place_is_refused(body: str) -> None:
    one = stepped(built(body))
    states = empty(one.graph, 1)
    with pytest.raises(UserError, match="token 13 is one too many: the network knows 12 places"):
        one(torch.zeros(1, 3, 8), torch.tensor([10]), **states)


# ------------------------------------------------------------------ exported


def test_a_proof_tells_the_tokens_in_portions(tmp_path: Path) -> None:
    net = prefix.text_network("tost_gpt")
    proof = crate_dsl.export(net.graph, net, tmp_path / "net.onnx", cache=True)
    assert proof.passed
    assert {row.case.portions for row in proof.rows} == {(64, 1, 1, 62), (40, 1, 1, 41), (1,)}
    assert "64 + 1 + 1" in str(proof)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 83, 128])
def test_portions_are_all_of_it(count: int) -> None:
    for batch in (1, 2, 5):
        found = portions(count, batch)
        assert sum(found) == count and min(found) > 0


def test_a_file_that_forgets_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proof goes from portion to portion: a state that is not handed on shows."""
    joined = onnx.joined
    monkeypatch.setattr(onnx, "joined", lambda b, *rows: joined(b, b("Mul", rows[0], b.number(0)), rows[1]))
    net = prefix.step_network(prefix.STEPS["attention"], LENGTH)
    with pytest.raises(ProofError, match="does not compute what torch computes"):
        crate_dsl.export(net.graph, net, tmp_path / "net.onnx", lower="none", cache=True)
    assert not (tmp_path / "net.onnx").exists()


def test_a_session_begins_with_nothing(tmp_path: Path) -> None:
    net = prefix.text_network("crate_gpt")
    crate_dsl.export(net.graph, net, tmp_path / "net.onnx", cache=True)
    session = crate_dsl.open_session(tmp_path / "net.onnx", provider="cpu")
    states = {name: np.zeros((1, 0, 128), np.float32) for name in session.inputs if name.startswith("state")}
    found = session(ids=np.array([[5, 7]]), past=np.zeros(1, np.int64), **states)
    assert found["next_6"].shape == (1, 2, 128)
    with torch.no_grad():
        assert np.abs(found["logits"] - net(torch.tensor([[5, 7]])).numpy()).max() < SINGLE


def test_what_is_made_for_the_next_tokens_is_not_exported_itself(tmp_path: Path) -> None:
    one = stepped(prefix.text_network("gpt"))
    with pytest.raises(UserError, match="export what it was made of"):
        crate_dsl.export(one.graph, one, tmp_path / "net.onnx")
