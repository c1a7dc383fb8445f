"""Slow copies: what `ema` makes in the graph, what it starts from, and how it follows."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import onnx
import pytest
import torch

import crate_dsl
from crate_dsl.compiler.constraints import deviation
from crate_dsl.compiler.network import Network
from crate_dsl.compiler.prove import perturb
from crate_dsl.compiler.write_torch import torch_source
from crate_dsl.language.diagnostics import SpecError
from tests.compiler.specs import codes, elaborated, graph_of, model

#: Rounding of float32 in one product and sum of numbers of size 1.
SINGLE = 1e-6

#: A student that uses another stage, and reads a `learn` and a stage's weights from outside of itself.
STUDENT = """
model m(dim = 8) {
    input ids : index(23)[n <= 6]
    learn first : float[dim] = normal(1)

    stage table   = embed(dim)
    stage inner   = linear(dim) -> gelu
    stage student = {
        input z
        learn gate : float[dim] = normal(1)
        stage own = linear(dim)
        h = z -> table -> prepend(first) -> inner -> own
        output gate * (h -> inner -> repeat(2) { compress(2, rank = 3) sparsify })
    }
    stage teacher = ema(student, momentum = 0.75)

    slow   = ids -> teacher
    quick  = ids -> student
    scores = quick -> transpose(table)

    output slow, scores
    objective mse(quick, slow)
}
"""


@pytest.fixture(scope="module")
def net() -> Network:
    return crate_dsl.build(elaborated(STUDENT), seed=5)


# ------------------------------------------------------------------ what it is


def test_a_copy_follows_every_weight_that_the_student_reads(net: Network) -> None:
    graph = net.graph
    read = {
        ref.slot
        for node in graph.nodes
        for ref in node.weights.values()
        if not node.path.startswith("teacher.") and node.name != "scores.transpose"
    }
    assert {average.source for average in graph.averages.values()} == read
    assert all(path.startswith("teacher.") for path in graph.averages)
    assert {average.momentum for average in graph.averages.values()} == {0.75}
    for path, average in graph.averages.items():
        assert graph.slots[path].shape == graph.slots[average.source].shape
    assert graph.averages["teacher.first"].source == "first"
    assert graph.averages["teacher.inner.linear.weight"].source == "inner.linear.weight"
    assert graph.averages["teacher.own.linear.bias"].source == "student.own.linear.bias"
    assert graph.averages["teacher.gate"].source == "student.gate"


def test_no_step_of_a_copy_reads_what_is_trained(net: Network) -> None:
    graph = net.graph
    for node in graph.nodes:
        if node.path.startswith("teacher."):
            assert {ref.slot for ref in node.weights.values()} <= set(graph.averages)
    assert set(graph.averages) == set(graph.frozen)
    assert graph.averaged_parameters == graph.frozen_parameters == graph.parameters


def test_copies_start_equal_and_change_no_draw(net: Network) -> None:
    weights = net.state_dict()
    for path, average in net.graph.averages.items():
        assert torch.equal(weights[path], weights[average.source])
    without = STUDENT.replace("    stage teacher = ema(student, momentum = 0.75)\n", "")
    alone = without.replace("teacher", "student")
    for name, value in crate_dsl.build(elaborated(alone), seed=5).state_dict().items():
        assert torch.equal(weights[name], value)


def test_equal_weights_compute_the_same(net: Network) -> None:
    ids = torch.arange(12).reshape(2, 6)
    assert net(ids)["slow"].shape == (2, 7, 8)
    assert crate_dsl.Objective(net)({"ids": ids}).item() == 0.0


# ------------------------------------------------------------------ how it follows


def test_a_step_is_the_formula(net: Network) -> None:
    net = copy.deepcopy(net)
    perturb(net, net.graph.slots)
    before = {name: value.double().clone() for name, value in net.state_dict().items()}
    net.average_()
    for name, value in net.state_dict().items():
        average = net.graph.averages.get(name)
        if average is None:
            assert torch.equal(value.double(), before[name])
        else:
            wanted = 0.75 * before[name] + 0.25 * before[average.source]
            assert (value.double() - wanted).abs().max() < SINGLE
            assert (value.double() - before[name]).abs().max() > 100 * SINGLE


def test_a_momentum_of_zero_is_the_student() -> None:
    net = crate_dsl.build(graph_of("stage s = linear(8)\n stage t = ema(s, momentum = 0)\n y = z -> s -> t"))
    perturb(net, net.graph.slots)
    net.average_()
    assert torch.equal(net.t.linear.weight, net.s.linear.weight)


def test_no_gradient_reaches_a_copy_and_none_leads_through_its_weights(net: Network) -> None:
    net = copy.deepcopy(net)
    perturb(net, net.graph.slots)
    crate_dsl.Objective(net)({"ids": torch.arange(12).reshape(2, 6)}).backward()
    for name, weight in net.named_parameters():
        assert (weight.grad is None) == (name in net.graph.averages), name
        assert weight.requires_grad == (name not in net.graph.averages)


def test_a_copy_keeps_its_constraint() -> None:
    text = (
        "stage s = compress(2, rank = 3, gradient = exact, constraint = orthonormal, norm = none)\n"
        " stage t = ema(s, momentum = 0.5)\n y = z -> s -> t"
    )
    net = crate_dsl.build(graph_of(text))
    perturb(net, net.graph.slots)
    net.constrain_()
    net.average_()
    assert deviation(net.t.compress.subspaces) < 1e-5
    assert not torch.equal(net.t.compress.subspaces, net.s.compress.subspaces)


def test_two_copies_each_have_a_pace() -> None:
    text = (
        "stage s = linear(8)\n stage a = ema(s, momentum = 0.5)\n"
        " y = z -> a -> s -> ema(s, momentum = 0.9) -> residual { ema(s) }"
    )
    graph = graph_of(text)
    paces = {path: average.momentum for path, average in graph.averages.items() if path.endswith("bias")}
    assert paces == {"a.linear.bias": 0.5, "y.s.linear.bias": 0.9, "y.s_2.linear.bias": 0.996}
    assert {average.source for average in graph.averages.values()} == {"s.linear.weight", "s.linear.bias"}


# ------------------------------------------------------------------ a network like others


def test_copies_are_saved_pickled_and_exported(net: Network, tmp_path: Path) -> None:
    net = copy.deepcopy(net)
    perturb(net, net.graph.slots)
    ids = torch.randint(0, 23, (3, 5))
    again = pickle.loads(pickle.dumps(net))
    fresh = crate_dsl.build(net.graph, seed=8)
    fresh.load_state_dict(net.state_dict())
    fast = crate_dsl.lower(net)
    assert fast.graph.averages == {}
    for name, wanted in net(ids).items():
        for other, allowed in ((again, 0.0), (fresh, 0.0), (fast, 1e-5)):
            assert (other(ids)[name] - wanted).abs().max() <= allowed
    assert crate_dsl.export(net.graph, net, tmp_path / "net.onnx").passed


def test_only_what_an_output_reaches_is_in_the_file(tmp_path: Path) -> None:
    text = "stage s = linear(8)\n stage t = ema(s)\n q = z -> {}\n y = z -> {}"
    for inside, outside in (("s", "t"), ("t", "s")):
        body = text.format(outside, inside) + "\n objective mse(y, q)"
        net = crate_dsl.build(graph_of(body))
        crate_dsl.export(net.graph, net, tmp_path / "net.onnx", lower="none")
        held = {
            tensor.name.partition(".")[0] for tensor in onnx.load(tmp_path / "net.onnx").graph.initializer
        }
        assert held == {inside}


def test_the_text_reads_like_the_spec(net: Network) -> None:
    text = torch_source(net.graph)
    assert "slow = self.teacher(ids)" in text
    assert "tokens=self.first" in text and "self.inner(" in text


# ------------------------------------------------------------------ what cannot be


@pytest.mark.parametrize(
    ("code", "body"),
    [
        ("E0306", "stage t = ema(s, momentum = 1)\n y = z -> s -> t"),
        ("E0306", "stage t = ema(s, momentum = -0.1)\n y = z -> s -> t"),
        ("E0301", "stage t = ema(s, speed = 0.1)\n y = z -> s -> t"),
        ("E0303", "stage t = ema(s, 0.9, 0.8)\n y = z -> s -> t"),
        ("E0507", "y = z -> s -> ema(linear)"),
        ("E0507", "y = z -> s -> ema(z)"),
        ("E0510", "y = z -> s -> ema(s) { relu }"),
        ("E0536", "stage t = ema(s)\n y = z -> t"),
        ("E0404", "stage t = ema(s)\n y = z -> s -> linear(4) -> t"),
        ("E0535", "stage t = ema(s)\n stage u = ema(t)\n y = z -> s -> t -> u"),
        ("E0535", "stage t = ema(s)\n stage u = t -> norm\n y = z -> s -> u -> ema(u)"),
        ("E0535", "stage d = inverse(s, mode = learned)\n y = z -> s -> d -> ema(d)"),
        ("E0530", "stage t = ema(s)\n y = z -> s -> t -> inverse(t, mode = learned)"),
        ("E0530", "stage t = ema(s)\n stage u = t -> gelu -> norm\n y = z -> s -> u -> inverse(u, mode = learned)"),
    ],
)  # fmt: skip
def test_a_mistake_is_told(code: str, body: str) -> None:
    assert codes(model(f"stage s = linear(8)\n {body}", "")) == [code]


def test_two_things_of_one_name_in_a_copy_are_told() -> None:
    block = "block b() { input a  inner = a -> linear(8)  output inner }"
    body = "stage inner = linear(8)\n stage s = b() -> inner\n stage t = ema(s)\n y = z -> s -> t"
    with pytest.raises(SpecError, match=r"`t\.inner\.linear`"):
        graph_of(body, more=block)
