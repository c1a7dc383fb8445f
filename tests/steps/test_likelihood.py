"""Cross-entropies against their formulas in float64: of labels, of next and of masked tokens, of turns."""

from __future__ import annotations

from math import log

import pytest
import torch
from torch import Tensor

from crate_dsl.compiler.operators import Mistake, Operator, Port, ports
from crate_dsl.compiler.steps.likelihood.operator import CrossEntropy, MaskedToken, NextToken, Rotation
from crate_dsl.compiler.types import Dim, Symbol, TensorType, floats
from tests.steps.harness import step

#: Float64 sums of some hundred numbers of size one, in two orders.
FLOAT64 = 1e-13
CLASSES, TOKENS = 7, 5
N = Dim.symbolic(Symbol("n", 64))


def labels(*shape: int | Dim, classes: int = CLASSES) -> TensorType:
    return TensorType("index", tuple(Dim.of(dim) for dim in shape), classes)


def marks(*shape: int | Dim) -> TensorType:
    return TensorType("bool", tuple(Dim.of(dim) for dim in shape))


def cross_entropy(
    logits: TensorType, label: TensorType, smoothing: float = 0.0, on: TensorType | None = None
) -> CrossEntropy:
    on_port = None if on is None else Port(on)
    return CrossEntropy(logits=Port(logits), label=Port(label), smoothing=smoothing, on=on_port)


def next_token(
    logits: TensorType, ids: TensorType, on: TensorType | None = None, smoothing: float = 0.0
) -> NextToken:
    on_port = None if on is None else Port(on)
    return NextToken(logits=Port(logits), ids=Port(ids), on=on_port, smoothing=smoothing)


def masked_token(logits: TensorType, ids: TensorType, on: TensorType, smoothing: float = 0.0) -> MaskedToken:
    return MaskedToken(logits=Port(logits), ids=Port(ids), on=Port(on), smoothing=smoothing)


def surprise(logits: Tensor, label: int, smoothing: float) -> Tensor:
    """-Σ_c q_c log softmax(x)_c for one vector of logits, from the formula."""
    log_p = logits - logits.exp().sum().log()
    mass = torch.full_like(logits, smoothing / len(logits))
    mass[label] += 1 - smoothing
    return -(mass * log_p).sum()


def mean(terms: list[Tensor]) -> float:
    return float(torch.stack(terms).mean()) if terms else 0.0


def texts(batch: int, tokens: int = TOKENS) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, tokens, and marks of which each sample has another number."""
    generator = torch.Generator().manual_seed(batch)
    logits = 3 * torch.randn(batch, tokens, CLASSES, dtype=torch.float64, generator=generator)
    ids = torch.randint(CLASSES, (batch, tokens), generator=generator)
    on = torch.rand(batch, tokens, generator=generator) < torch.linspace(0.4, 0.9, batch)[:, None]
    return logits, ids, on


# ------------------------------------------------------------------ cross_entropy


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("tokens", [(), (TOKENS,)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy(batch: int, tokens: tuple[int, ...], smoothing: float) -> None:
    dims = (N,) if tokens else ()
    item = step(cross_entropy(floats(*dims, CLASSES), labels(*dims), smoothing))
    generator = torch.Generator().manual_seed(batch)
    logits = 3 * torch.randn(batch, *tokens, CLASSES, dtype=torch.float64, generator=generator)
    label = torch.randint(CLASSES, (batch, *tokens), generator=generator)
    loss = item.module(logits=logits, label=label)
    assert loss.shape == () == item.typing.output.shape
    rows = zip(logits.flatten(0, -2), label.flatten().tolist(), strict=True)
    wanted = mean([surprise(row, number, smoothing) for row, number in rows])
    assert abs(float(loss) - wanted) < FLOAT64


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_of_marked_labels_it_is_the_mean_over_the_whole_batch(batch: int, smoothing: float) -> None:
    """And `masked_token` is the same."""
    logits, ids, on = texts(batch)
    wanted = mean([surprise(logits[b, i], int(ids[b, i]), smoothing) for b, i in on.nonzero().tolist()])
    item = step(cross_entropy(floats(N, CLASSES), labels(N), smoothing, on=marks(N)))
    assert abs(float(item.module(logits=logits, label=ids, on=on)) - wanted) < FLOAT64
    item = step(masked_token(floats(N, CLASSES), labels(N), marks(N), smoothing))
    assert abs(float(item.module(logits=logits, ids=ids, on=on)) - wanted) < FLOAT64


def test_samples_may_be_marked_too() -> None:
    logits, ids, on = (x[:, 0] for x in texts(6))
    assert on.any() and not on.all()
    item = step(cross_entropy(floats(CLASSES), labels(), on=marks()))
    wanted = mean([surprise(logits[b], int(ids[b]), 0) for b in on.nonzero().flatten().tolist()])
    assert abs(float(item.module(logits=logits, label=ids, on=on)) - wanted) < FLOAT64


def test_all_marked_is_not_marked() -> None:
    logits, ids, on = texts(3)
    all_on = step(cross_entropy(floats(N, CLASSES), labels(N), 0.1, on=marks(N)))
    plain = step(cross_entropy(floats(N, CLASSES), labels(N), 0.1))
    marked = all_on.module(logits=logits, label=ids, on=torch.ones_like(on))
    torch.testing.assert_close(marked, plain.module(logits=logits, label=ids), rtol=0, atol=FLOAT64)


@pytest.mark.parametrize("loss", ["cross_entropy", "masked_token", "next_token"])
def test_over_no_label_the_loss_is_zero_and_moves_nothing(loss: str) -> None:
    logits, ids, on = texts(3)
    logits.requires_grad_()
    given = {"logits": logits, "label" if loss == "cross_entropy" else "ids": ids, "on": on & False}
    types = floats(N, CLASSES), labels(N)
    operator = {
        "cross_entropy": cross_entropy(*types, on=marks(N)),
        "masked_token": masked_token(*types, marks(N)),
        "next_token": next_token(*types, on=marks(N)),
    }[loss]
    value = step(operator).module(**given)
    value.backward()
    assert float(value.detach()) == 0
    assert logits.grad is not None and not logits.grad.any()


# ------------------------------------------------------------------ next_token


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("tokens", [2, TOKENS])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_next_token(batch: int, tokens: int, smoothing: float) -> None:
    logits, ids, _ = texts(batch, tokens)
    item = step(next_token(floats(N, CLASSES), labels(N), smoothing=smoothing))
    pairs = [(b, i) for b in range(batch) for i in range(tokens - 1)]
    wanted = mean([surprise(logits[b, i], int(ids[b, i + 1]), smoothing) for b, i in pairs])
    loss = item.module(logits=logits, ids=ids)
    assert loss.shape == () == item.typing.output.shape
    assert abs(float(loss) - wanted) < FLOAT64


@pytest.mark.parametrize("side", ["right", "left"])
def test_of_ragged_texts_padding_is_not_told(side: str) -> None:
    """A batch of texts of 1, 2 and 5 tokens is the texts by themselves, each weighing as much as it is long."""
    logits, ids, _ = texts(3)
    lengths = torch.tensor([1, 2, TOKENS])
    kept = torch.arange(TOKENS) < lengths[:, None]
    if side == "left":
        kept = kept.flip(1)
    item = step(next_token(floats(N, CLASSES), labels(N), on=marks(N)))
    loss = float(item.module(logits=logits, ids=ids, on=kept))
    pairs = [(b, i) for b in range(3) for i in range(TOKENS - 1) if kept[b, i + 1]]
    assert len(pairs) == (5 if side == "right" else 7), "on the left, padding comes before a first token"
    assert abs(loss - mean([surprise(logits[b, i], int(ids[b, i + 1]), 0) for b, i in pairs])) < FLOAT64
    other = torch.where(kept, ids, (ids + 3) % CLASSES)
    assert float(item.module(logits=logits, ids=other, on=kept)) == loss


def test_texts_of_one_token_tell_nothing() -> None:
    logits, ids, _ = texts(3, 1)
    assert float(step(next_token(floats(N, CLASSES), labels(N))).module(logits=logits, ids=ids)) == 0


def test_the_last_logits_are_compared_with_nothing() -> None:
    logits, ids, _ = texts(3)
    logits.requires_grad_()
    step(next_token(floats(N, CLASSES), labels(N))).module(logits=logits, ids=ids).backward()
    assert logits.grad is not None
    assert not logits.grad[:, -1].any() and logits.grad[:, :-1].all()


# ------------------------------------------------------------------ rotation


def test_rotation() -> None:
    item = step(Rotation(scores=Port(floats(4, 4))))
    scores = torch.randn(3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    wanted = mean([surprise(scores[b, r], r, 0) for b in range(3) for r in range(4)])
    assert abs(float(item.module(scores=scores)) - wanted) < FLOAT64
    assert abs(float(item.module(scores=torch.zeros(3, 4, 4, dtype=torch.float64))) - log(4)) < FLOAT64


# ------------------------------------------------------------------ gradients and precision


def operators() -> dict[str, tuple[Operator, dict[str, Tensor]]]:
    logits, ids, on = texts(2)
    types = floats(N, CLASSES), labels(N)
    return {
        "cross_entropy": (cross_entropy(*types, 0.1, marks(N)), {"logits": logits, "label": ids, "on": on}),
        "next_token": (next_token(*types, marks(N), 0.1), {"logits": logits, "ids": ids, "on": on}),
        "masked_token": (masked_token(*types, marks(N)), {"logits": logits, "ids": ids, "on": on}),
        "rotation": (Rotation(scores=Port(floats(4, 4))), {"scores": logits[:, :4, :4].contiguous()}),
    }


@pytest.mark.parametrize("loss", operators())
def test_the_gradient_is_that_of_the_loss(loss: str) -> None:
    operator, (named) = operators()[loss][0], dict(operators()[loss][1])
    name = "scores" if loss == "rotation" else "logits"
    module, logits = step(operator).module, named.pop(name).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: module(**{name: x}, **named), (logits,))


@pytest.mark.parametrize("loss", operators())
def test_in_half_precision_it_is_the_loss_of_float32(loss: str) -> None:
    operator, named = operators()[loss]
    half = {name: x.bfloat16() if x.is_floating_point() else x for name, x in named.items()}
    single = {name: x.float() if x.is_floating_point() else x for name, x in half.items()}
    module = step(operator).module
    with torch.autocast("cpu", torch.bfloat16):
        value = module(**half)
    assert value.dtype == torch.float32
    assert torch.equal(value, module(**single))


# ------------------------------------------------------------------ types


def test_tensors_come_by_argument() -> None:
    assert list(ports(cross_entropy(floats(CLASSES), labels()))) == ["logits", "label"]
    assert list(ports(next_token(floats(N, CLASSES), labels(N), marks(N)))) == ["logits", "ids", "on"]


@pytest.mark.parametrize(
    ("code", "operator"),
    [
        ("E0440", cross_entropy(floats(10), labels(classes=12))),
        ("E0442", cross_entropy(floats(5, 10), labels(classes=10))),
        ("E0442", cross_entropy(floats(5, 10), labels(4, classes=10))),
        ("E0442", cross_entropy(floats(10), floats())),
        ("E0442", cross_entropy(labels(10), labels())),
        ("E0402", cross_entropy(floats(N), labels())),
        ("E0443", cross_entropy(floats(5, 10), labels(5, classes=10), on=marks(4))),
        ("E0443", cross_entropy(floats(5, 10), labels(5, classes=10), on=labels(5))),
        ("E0443", cross_entropy(floats(10), labels(classes=10), on=marks(5))),
        ("E0440", next_token(floats(N, 10), labels(N, classes=12))),
        ("E0442", next_token(floats(10), labels(classes=10))),
        ("E0442", next_token(floats(N, 10), labels(9, classes=10))),
        ("E0402", next_token(floats(9, N), labels(9))),
        ("E0443", next_token(floats(N, 10), labels(N, classes=10), marks(N + 1))),
        ("E0479", next_token(floats(1, 10), labels(1, classes=10))),
        ("E0440", masked_token(floats(N, 10), labels(N, classes=12), marks(N))),
        ("E0442", masked_token(floats(10), labels(classes=10), marks())),
        ("E0443", masked_token(floats(N, 10), labels(N, classes=10), marks(7))),
        ("E0473", Rotation(scores=Port(floats(4)))),
        ("E0473", Rotation(scores=Port(floats(4, 5)))),
        ("E0473", Rotation(scores=Port(marks(4, 4)))),
    ],
)
def test_mistakes(code: str, operator: Operator) -> None:
    with pytest.raises(Mistake) as found:
        operator.infer()
    assert found.value.code == code


def test_both_numbers_of_classes_are_named() -> None:
    with pytest.raises(Mistake, match="logits of 10 classes, but labels of 12"):
        cross_entropy(floats(10), labels(classes=12)).infer()
