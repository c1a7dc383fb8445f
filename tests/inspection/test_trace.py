"""Traces: the same network, seen step by step."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import Tensor

import crate_dsl
from crate_dsl.compiler.network import Network
from crate_dsl.compiler.trace import paths, tapped
from crate_dsl.language.diagnostics import UserError
from tests.export.specs import IMAGES, TEXT, graph_of
from tests.specs.test_specs import SMALLEST, load, some

#: Rounding of float32 over a network, where `explain` sums in another order than `forward`; outputs are of size 1.
SINGLE = 1e-4

#: A stage used twice, the second time frozen; a layer's own `learn`; a draw; two outputs.
SHARED = """
model shared(dim = 6) {
    input z : float[5, dim]
    input noise : float[5, dim] = normal(0.5)
    stage student = compress(2, rank = 4) -> sparsify
    first = (z + noise) -> student
    second = z -> frozen(student)
    third = first - 2 * second
    output third, second
}
"""


def built(text: str) -> Network:
    return crate_dsl.build(graph_of(text), seed=3).eval()


def outputs(net: Network, found: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: found[value.node] for name, value in net.graph.outputs.items()}


def ran(net: Network, **inputs: Tensor) -> dict[str, Tensor]:
    result = net(**inputs)
    return result if isinstance(result, dict) else {next(iter(net.graph.outputs)): result}


@pytest.mark.parametrize("target", SMALLEST)
def test_a_trace_ends_in_the_outputs(target: str) -> None:
    net = crate_dsl.build(load(target), seed=1).eval()
    inputs = {name: some(entry, 3) for name, entry in net.graph.export_inputs.items()}
    found = crate_dsl.trace(net, **inputs)
    assert list(found) == paths(net.graph)
    for name, tensor in ran(net, **inputs).items():
        assert (outputs(net, found)[name] - tensor).abs().max() < SINGLE


@pytest.mark.parametrize("target", SMALLEST)
def test_every_step_is_explained_by_what_its_forward_computes(target: str) -> None:
    """The law of `explain`, for every step where it stands: perturbed weights, the values that reach it there."""
    net = crate_dsl.build(load(target), seed=1).eval()
    with torch.no_grad():
        for weight in net.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(2))
    inputs = {name: some(entry, 3) for name, entry in net.graph.export_inputs.items()}
    plain = crate_dsl.trace(
        net, *(node.name for node in net.graph.nodes if node.name in net.graph.exported), **inputs
    )
    explained = crate_dsl.trace(net, **inputs)
    for path, tensor in plain.items():
        assert (explained[path] - tensor).abs().max() < SINGLE * max(1, tensor.abs().max()), path


def test_arguments_weights_and_draws_reach_the_steps() -> None:
    net = built(TEXT)
    ids, kept = torch.randint(0, 17, (4, 7)), torch.rand(4, 7) < 0.7
    kept[:, 0] = True
    torch.manual_seed(5)
    wanted = net(ids=ids, kept=kept)
    torch.manual_seed(5)
    found = crate_dsl.trace(net, ids=ids, kept=kept)
    for name, tensor in outputs(net, found).items():
        assert (tensor - wanted[name]).abs().max() < SINGLE
    assert torch.equal(found["kept"], kept)
    again = crate_dsl.trace(net, ids=ids, kept=kept, noise=found["noise"])
    assert all(torch.equal(again[path], tensor) for path, tensor in found.items())


def test_a_second_use_has_a_name_of_its_own_and_frozen_weights_get_no_gradient() -> None:
    net = built(SHARED)
    z, noise = torch.randn(3, 5, 6), torch.randn(3, 5, 6)
    found = crate_dsl.trace(net, z=z, noise=noise)
    for name, tensor in net(z=z, noise=noise).items():
        assert (outputs(net, found)[name] - tensor).abs().max() < SINGLE
    assert {"student.compress", "student.compress@2"} <= set(found)
    assert not any(tensor.requires_grad for tensor in found.values())
    kept = dict(tapped(net, ["student.sparsify*"], {"z": z.requires_grad_(), "noise": noise}, gradient=True))
    kept["student.sparsify@2"].sum().backward()
    assert z.grad is not None and all(weight.grad is None for weight in net.parameters())
    kept["student.sparsify"].sum().backward()
    assert all(weight.grad is not None for weight in net.parameters())


def test_globs_choose_and_leave_the_rest_uncomputed(monkeypatch: pytest.MonkeyPatch) -> None:
    net = built(IMAGES)
    x = torch.randn(2, 3, 4, 6)
    everything = crate_dsl.trace(net, image=x)
    called: list[str] = []
    for name, module in net.named_modules():
        module.register_forward_pre_hook(lambda *_, name=name: called.append(name))
    found = crate_dsl.trace(net, "encoder.1.*", "tokens.linear", image=x)
    assert set(found) == {path for path in everything if path.startswith("encoder.1.")} | {"tokens.linear"}
    assert "encoder.2.compress" not in called and "logits.select" not in called
    for path, tensor in found.items():
        assert (tensor - everything[path]).abs().max() < SINGLE


def test_nothing_is_held_that_nobody_reads_any_more() -> None:
    """A consumer that keeps nothing: at each step of a chain, the results of the steps before it are gone."""
    net = built(IMAGES)
    alive: list[weakref.ref[Tensor]] = []
    for path, tensor in tapped(net, ["encoder.*"], {"image": torch.randn(2, 3, 4, 6)}):
        if path.count(".") == 2:
            alive.append(weakref.ref(tensor))
            assert sum(seen() is not None for seen in alive) <= 2, path
        del tensor


@pytest.mark.parametrize(
    ("globs", "inputs", "message"),
    [
        (
            ["encoder.0.compres"],
            {"image": torch.zeros(1, 3, 4, 6)},
            "nothing in `images` is called `encoder.0.compres`",
        ),
        (["*.code_x"], {"image": torch.zeros(1, 3, 4, 6)}, "nothing in `images`"),
        ([], {}, "`image` is missing"),
        ([], {"image": torch.zeros(1, 3, 6, 4)}, r"`image` is \[batch, 3, 4, 6\]"),
        ([], {"image": torch.zeros(1, 3, 4, 6), "label": torch.zeros(1)}, "without an input `label`"),
    ],
)
def test_mistakes(globs: list[str], inputs: dict[str, Tensor], message: str) -> None:
    with pytest.raises(UserError, match=message):
        tapped(built(IMAGES), globs, inputs)


def test_a_near_name_is_offered() -> None:
    with pytest.raises(UserError, match=r"help: near it: .*encoder\.0\.compress"):
        crate_dsl.trace(built(IMAGES), "encoder.0.compres", image=torch.zeros(1, 3, 4, 6))
