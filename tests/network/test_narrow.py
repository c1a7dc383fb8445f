"""An objective computes the tokens that it reads: the same loss, the same gradients, less work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import crate_dsl
from crate_dsl.compiler import write_torch
from crate_dsl.compiler.graph import ModelGraph
from crate_dsl.compiler.prove import perturb
from tests.compiler.specs import elaborated
from tests.lower.corners import CORNERS, TOKENS

#: Rounding of float64 in sums of some dozen numbers, a few layers of them.
EXACT = 1e-12


def read(steps: str, more: str = "", lines: str = "", taking: str = "append(c)") -> str:
    """Tokens, 7 of 12 numbers, and one more that is classified."""
    return (
        "model m {\n input z : float[7, 12]\n target label : index(5)\n learn c : float[12] = normal(1)\n"
        f" {lines}\n y = z -> {taking} -> {steps} -> select(c) -> linear(5)\n output y\n"
        f" objective cross_entropy(y, label){more}\n}}"
    )


#: What computes one token of its last layer, or a few.
NARROWED = {
    "the first token": read("compress(2, rank = 4) -> sparsify", taking="prepend(c)"),
    "the last token": read("compress(2, rank = 4) -> sparsify"),
    "a token in between": read(
        "compress(2, rank = 4) -> sparsify -> norm",
        lines="learn d : float[2, 12] = normal(1)",
        taking="append(c) -> append(d)",
    ),
    "a scale of its own": read(
        "compress(3, rank = 4, scale = learn(0.4), step = learn(0.6, shape = [12]), out = tied, norm = rms)"
    ),
    "a step for each sample": read("compress(2, rank = 4, step = s)", lines="input s : float"),
    "a mask": read("compress(2, rank = 4, mask = kept)", lines="input kept : bool[8]"),
    "a mask in a black box": read("attend(3, mask = kept)", lines="input kept : bool[8]"),
    "a rule": read("compress(2, rank = 4, mask = key.place <= query.place and query.place - key.place < 3)"),
    "a rule with a boolean": read(
        "compress(2, rank = 4, mask = kept and key.place <= query.place)", lines="input kept : bool[8]"
    ),
    "a rule in a black box": read("attend(3, mask = key.place != query.place)"),
    "rotated": read("compress(2, rank = 4, positions = rotary)"),
    "rotated in a black box": read("attend(2, positions = rotary)"),
    "statistics": read("compress(2, rank = 4, gradient = statistics) -> sparsify"),
    "representatives": read(
        "compress(2, rank = 4, gradient = representatives, representatives = tokens) -> sparsify"
    ),
    "codes": read(
        "compress(2, rank = 4) -> sparsify(iterations = 2, start = zero, expand = 3, decode = free, "
        "residual = true, prox = soft)"
    ),
    "layers": read("repeat(3) { compress(2, rank = 4) sparsify } -> norm"),
    "a black-box layer": read(
        "repeat(2) { residual { norm -> attend(3) } residual { norm -> linear(48) -> gelu -> linear(12) } }"
    ),
    "a stage in a stage": read(
        "outer",
        lines="stage inner = repeat(2) { compress(2, rank = 4) sparsify }\n"
        " stage outer = inner -> norm -> linear(12)",
    ),
    "a stage that was used before": read(
        "s -> s", lines="stage s = compress(2, rank = 4) -> compress(3, rank = 2) -> sparsify"
    ).replace("s -> s", "s -> s -> attend(3) -> norm"),
    "a head that is used twice": read(
        "compress(2, rank = 4) -> head",
        " + mse(y, w)",
        "stage head = norm -> select(c) -> linear(5)\n w = z -> append(c) -> attend(3) -> head",
    ).replace("-> head -> select(c) -> linear(5)", "-> head"),
    "a stage that is used twice on the same": read(
        "s",
        " + mse(y, w)",
        "stage s = compress(2, rank = 4)\n h = z -> append(c)\n w = h -> s -> select(c) -> linear(5)",
    ).replace("y = z -> append(c)", "y = h"),
    "frozen": read("sparsify -> frozen(s)", lines="stage s = compress(2, rank = 4) -> sparsify"),
    "an inverse": read(
        "s -> t",
        lines="stage s = repeat(2) { compress(2, rank = 4) sparsify }\n"
        " stage t = inverse(s, mode = learned) -> compress(2, rank = 4)",
    )
    .replace(" -> compress(2, rank = 4)\n y", "\n y")
    .replace("s -> t ->", "s -> t -> attend(3) ->"),
    "a slow copy": read(
        "s",
        " + mse(y, w)",
        "stage s = compress(2, rank = 4) -> sparsify\n stage slow = ema(s)\n"
        " w = z -> append(c) -> slow -> select(c) -> linear(5)",
    ),
    "held fixed by its first use": read(
        "frozen(s)", " + mse(y, w)", "stage s = compress(2, rank = 4) -> sparsify -> norm"
    ).replace("output", "w = z -> s -> pool -> linear(5)\n output"),
    "tokens that an output reads": (
        read("compress(2, rank = 4)")
        .replace("-> select(c)", "\n v = y -> select(c)")
        .replace("output y", "output y, v")
        .replace("entropy(y", "entropy(v")
    ),
    "a few of them": read("compress(2, rank = 4) -> sparsify")
    .replace("select(c)", "keep(d) -> attend(2) -> pool")
    .replace("append(c)", "append(c) -> append(d)")
    .replace("learn c", "learn d : float[3, 12]\n learn c"),
    "an open length": CORNERS["select from texts"],
    "what stands in the objective": read(
        "norm",
        " + mse(z -> append(c) -> s -> select(c), w)",
        "w = z -> pool\n stage s = attend(3)",
    ),
}
#: What computes all that it did.
WHOLE = {
    "a mean of all": read("compress(2, rank = 4) -> sparsify").replace("select(c)", "pool"),
    "causal": read("compress(2, rank = 4, mask = causal) -> attend(3, mask = causal)"),
    "of all tokens at once": read("compress(2, rank = 4, gradient = exact)"),
    "most tokens": read("compress(2, rank = 4) -> sparsify").replace("select(c)", "drop(c) -> pool"),
    "a loss that looks inside": read("s", " + sparse_rate(s)", "stage s = compress(2, rank = 4) -> sparsify"),
    "a loss that reads the tokens": (
        read("compress(2, rank = 4)", " + mse(y, 0.5 * y)")
        .replace("-> select(c)", "\n v = y -> select(c)")
        .replace("entropy(y", "entropy(v")
    ),
    "the ends": CORNERS["drop from texts"],
    "tokens from here and there": CORNERS["several read"],
}


def graph_of(text: str) -> ModelGraph:
    """With an objective of all outputs, where it has none."""
    if "objective" not in text:
        outputs = list(elaborated(text).outputs)
        loss = " + ".join(f"mse({name}, 0.5 * {name})" for name in outputs)
        text = f"{text.rstrip().removesuffix('}')}\n objective {loss}\n}}"
    return elaborated(text)


def both(graph: ModelGraph, monkeypatch: pytest.MonkeyPatch) -> list[crate_dsl.Objective]:
    """The objective, and one that computes all tokens; of one network, at weights that are all moved."""
    net = crate_dsl.build(graph, seed=1)
    perturb(net, graph.slots)
    net.double()
    first = crate_dsl.Objective(net)
    with monkeypatch.context() as patch:
        patch.setattr(write_torch, "narrowed", lambda *_: {})
        return [first, crate_dsl.Objective(net)]


def batch_of(graph: ModelGraph, count: int = 2) -> dict[str, Tensor]:
    """Inputs and targets in float64; open lengths as they come shortest but one."""
    generator = torch.Generator().manual_seed(0)
    batch: dict[str, Tensor] = {}
    for name, entry in (*graph.inputs.items(), *graph.targets.items()):
        shape = (count, *entry.type.sizes({"n": 2}))
        if entry.type.kind == "index":
            assert entry.type.classes is not None
            batch[name] = torch.randint(entry.type.classes, shape, generator=generator)
        elif entry.type.kind == "bool":
            batch[name] = torch.rand(shape, generator=generator) < 0.7
        else:
            batch[name] = torch.randn(shape, generator=generator, dtype=torch.float64)
    return batch


def trained(
    objective: crate_dsl.Objective, batch: Mapping[str, Tensor]
) -> tuple[Tensor, dict[str, Any], int]:
    """The loss, the gradients by name, and the operations of the products, forwards."""
    objective.zero_grad()
    with torch.random.fork_rng([]), FlopCounterMode(display=False) as counter:
        torch.manual_seed(0)
        loss = objective(dict(batch))
    loss.backward()
    return (
        loss.detach(),
        {name: w.grad for name, w in objective.named_parameters()},
        counter.get_total_flops(),
    )


def hold(text: str, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """Loss and gradients are those of all tokens. The operations of both, forwards."""
    graph = graph_of(text)
    first, plain = both(graph, monkeypatch)
    batch = batch_of(graph)
    (loss, gradients, work), (wanted, exact, all_of_it) = trained(first, batch), trained(plain, batch)
    assert abs(loss - wanted) <= EXACT * abs(wanted)
    assert gradients.keys() == exact.keys()
    for name, gradient in exact.items():
        assert (gradients[name] is None) == (gradient is None), name
        if gradient is not None:
            assert (gradients[name] - gradient).abs().max() <= EXACT * max(1, gradient.abs().max()), name
    return work, all_of_it


@pytest.mark.parametrize("case", NARROWED)
def test_what_is_read_of_tokens_is_computed_alone(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    work, all_of_it = hold(NARROWED[case], monkeypatch)
    assert work < all_of_it


@pytest.mark.parametrize("case", WHOLE)
def test_all_tokens_are_computed_where_they_are_read(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = graph_of(WHOLE[case])
    first, plain = both(graph, monkeypatch)
    assert first.source == plain.source


@pytest.mark.parametrize("case", [*TOKENS, "used and selected"])
def test_whoever_takes_tokens_is_trained_the_same(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    work, all_of_it = hold(CORNERS[case], monkeypatch)
    assert work <= all_of_it


def test_one_token_costs_what_one_token_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the last layer, all tokens are projected; one attends, is led back and is sparsified.

    The counter does not see attention's own products, which are a kernel of the CPU.
    """
    batch, others, width, inner = 2, 7, 12, 8
    work, all_of_it = hold(NARROWED["layers"], monkeypatch)
    assert all_of_it - work == 2 * batch * others * (inner * width + 2 * width**2)


def test_the_text_says_which_tokens_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    first, plain = both(graph_of(NARROWED["layers"]), monkeypatch)
    lines = [line.strip() for line in first.source.splitlines()]
    assert lines[7:13] == [
        "for layer in [*self.net.y.layers][:2]:  # 2 layers",
        "y = layer(y)  # float[8, 12]",
        "y = self.net.y[2].compress(y, read=slice(7, 8))  # float[1, 12]",
        "y = self.net.y[2].sparsify(y)  # float[1, 12]",
        "y = self.net.y.norm(y)  # float[1, 12]",
        "y = y[:, 0]  # float[12]",
    ]
    assert first.net.source == plain.net.source and "read=" not in plain.source


def test_the_network_is_what_it_was() -> None:
    """Its text, its outputs and its weights' names say nothing of what is trained with it."""
    text = NARROWED["layers"]
    trained, alone = (elaborated(t) for t in (text, text.replace("objective cross_entropy(y, label)", "")))
    net = crate_dsl.build(trained)
    assert net.source == crate_dsl.build(alone).source
    names = {name.removeprefix("net.") for name in crate_dsl.Objective(net).state_dict()}
    assert names == set(net.state_dict())


@pytest.mark.parametrize("case", ["layers", "a rule", "held fixed by its first use"])
def test_it_is_one_program(case: str) -> None:
    """`train --compile` takes it whole."""
    graph = graph_of(NARROWED[case])
    objective, batch = crate_dsl.Objective(crate_dsl.build(graph).double()), batch_of(graph)
    compiled = torch.compile(objective, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(batch), objective(batch))
