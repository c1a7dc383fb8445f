"""What the objective alone reaches: it is drawn while training, it trains what it reads, and no file holds it."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor

import crate_dsl
from crate_dsl.compiler.graph import ModelGraph
from tests.compiler.specs import elaborated

LANGUAGE = """
model reader(dim = 8, vocab = 30) {
    input ids  : index(vocab)[n <= 16]
    input kept : bool[n]

    stage embedding = embed(dim)
    stage inside = {
        input text : index(vocab)[m <= 16]
        input kept : bool[m]
        output text -> embedding -> position(learned, length = 16) -> compress(2, rank = 4, mask = kept) -> norm
                    -> transpose(embedding)
    }

    logits = ids -> inside(kept = kept)
    masked, chosen = ids -> mask_tokens(0.5, fill = 29, kept = kept)
    guess = masked -> inside(kept = kept)

    output logits
    objective LOSS
}
"""
PICTURES = """
model encoder(dim = 8) {
    input image : float[3, 8, 8]
    learn tau : float = 0.2

    stage student = patchify(4) -> linear(dim) -> compress(2, rank = 4) -> pool

    features = image -> student
    views = image -> crops(2, size = 8, scale = [0.3, 1])
    a = views[0] -> augment -> student
    b = views[1] -> augment(brightness = 0.5) -> student

    output features
    objective LOSS
}
"""


def texts() -> dict[str, Tensor]:
    ids = torch.randint(29, (5, 12), generator=torch.Generator().manual_seed(0))
    return {"ids": ids, "kept": torch.arange(12) < torch.tensor([[12], [3], [7], [1], [9]])}


def pictures() -> dict[str, Tensor]:
    return {"image": torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))}


CASES = {
    "next_token": (LANGUAGE, "next_token(guess, ids, on = kept, smoothing = 0.1)", texts),
    "masked_token": (LANGUAGE, "masked_token(guess, ids, on = chosen)", texts),
    "cross_entropy": (LANGUAGE, "cross_entropy(guess, ids, on = chosen)", texts),
    "info_nce": (PICTURES, "info_nce(a, b)", pictures),
    "a learned temperature": (PICTURES, "info_nce(a, b, temperature = tau)", pictures),
    "a Gaussian": (PICTURES, "info_nce(a, b, kernel = gaussian(0.5))", pictures),
    "match": (PICTURES, "match(a, b) - 0.05 * rate(a, eps = 0.5)", pictures),
    "dino": (PICTURES, "match(a, b, by = dino(teacher = 0.1))", pictures),
    "steps of its own": (PICTURES, "mse(image -> augment -> student -> relu, features)", pictures),
    "inside a stage too": (
        PICTURES,
        "info_nce(image -> augment -> student, b) + 0.01 * sparse_rate(student)",
        pictures,
    ),
}


def graph_of(case: str) -> ModelGraph:
    text, loss, _ = CASES[case]
    return elaborated(text.replace("LOSS", loss))


def seeded(objective: torch.nn.Module, batch: dict[str, Tensor], seed: int) -> Tensor:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return objective(batch)


@pytest.mark.parametrize("case", CASES)
def test_it_is_drawn_anew_and_trains_what_it_reads(case: str) -> None:
    net = crate_dsl.build(graph_of(case))
    objective, batch = crate_dsl.Objective(net), CASES[case][2]()
    loss = seeded(objective, batch, 1)
    assert loss.shape == () and loss.isfinite()
    assert torch.equal(loss, seeded(objective, batch, 1))
    if case != "next_token":  # where only some tokens are hidden, all may be told
        assert not torch.equal(loss, seeded(objective, batch, 2))
    loss.backward()
    unread = {"tau"} - ({"tau"} if case == "a learned temperature" else set())
    for name, weight in net.named_parameters():
        if name.partition(".")[0] not in unread:
            assert weight.grad is not None and weight.grad.isfinite().all(), name
    assert any(weight.grad is not None and weight.grad.any() for weight in net.parameters())
    assert all(name.startswith("net.") for name, _ in objective.named_parameters()), "it owns none"


@pytest.mark.parametrize("case", ["masked_token", "info_nce", "match", "steps of its own"])
def test_it_is_one_program(case: str) -> None:
    """`train --compile` takes it whole."""
    objective, batch = crate_dsl.Objective(crate_dsl.build(graph_of(case))), CASES[case][2]()
    compiled = torch.compile(objective, fullgraph=True, backend="eager")
    torch.testing.assert_close(seeded(compiled, batch, 1), seeded(objective, batch, 1))


@pytest.mark.parametrize("case", ["masked_token", "info_nce", "steps of its own"])
def test_no_file_holds_it(case: str, tmp_path: Path) -> None:
    graph = graph_of(case)
    file = tmp_path / "net.onnx"
    assert crate_dsl.export(graph, crate_dsl.build(graph), file).passed
    model = onnx.load(file)
    nodes = [node for owner in (model.graph, *model.functions) for node in owner.node]
    steps = {node.op_type for node in nodes} | {function.name for function in model.functions}
    assert not steps & {"crops", "augment", "mask_tokens", "relu", "Relu", "GridSample", "RandomUniform"}
    assert [value.name for value in model.graph.input] == list(graph.export_inputs)


def test_padding_is_neither_hidden_nor_told() -> None:
    """Other tokens in the places of padding change nothing, whatever is drawn."""
    net = crate_dsl.build(graph_of("masked_token"))
    objective, batch = crate_dsl.Objective(net), texts()
    other = batch | {"ids": torch.where(batch["kept"], batch["ids"], 7)}
    for seed in range(5):
        torch.testing.assert_close(seeded(objective, batch, seed), seeded(objective, other, seed))
