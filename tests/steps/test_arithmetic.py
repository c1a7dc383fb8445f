"""Arithmetic: its types, its Python text and its ONNX nodes, against broadcasting written out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from crate_dsl.compiler.operators import Mistake, Operator, Port, Weight
from crate_dsl.compiler.steps.arithmetic.operator import (
    Add,
    Divide,
    Item,
    Multiply,
    Negative,
    Operand,
    Subtract,
)
from crate_dsl.compiler.types import Dim, Layout, Segment, Symbol, TensorType, floats
from tests.steps.harness import Step

#: One rounding in float32 against float64.
SINGLE = 1e-6

N, D = 4, 3
OPERATIONS = {Add: np.add, Subtract: np.subtract, Multiply: np.multiply, Divide: np.divide}

SCALAR, VECTOR, TOKENS = Port(floats()), Port(floats(D)), Port(floats(N, D))
GATE, NUMBER, TABLE = Weight("gate", floats(D)), Weight("rate", floats()), Weight("table", floats(N, D))

PAIRS: dict[str, tuple[Operand, Operand, str]] = {
    "equal": (TOKENS, TOKENS, "z ? y"),
    "number_right": (TOKENS, 0.1, "z ? 0.1"),
    "number_left": (-2.0, TOKENS, "(-2.0) ? y"),
    "end": (TOKENS, VECTOR, "z ? y[:, None]"),
    "end_left": (VECTOR, TOKENS, "z[:, None] ? y"),
    "scalar": (SCALAR, TOKENS, "z[:, None, None] ? y"),
    "scalar_vector": (VECTOR, SCALAR, "z ? y[:, None]"),
    "scalars": (SCALAR, SCALAR, "z ? y"),
    "gate": (GATE, TOKENS, "z ? y"),
    "learned_number": (TOKENS, NUMBER, "z ? y"),
    "learned_number_scalar": (NUMBER, SCALAR, "z ? y"),
    "table": (TABLE, VECTOR, "z ? y[:, None]"),
    "table_equal": (TOKENS, TABLE, "z ? y"),
    "table_scalar": (SCALAR, TABLE, "z[:, None, None] ? y"),
}


def tensor(operand: Operand, batch: int, seed: int) -> Tensor:
    """A value with its batch axis, or a learned tensor without; away from zero, so that it may divide."""
    assert not isinstance(operand, float)
    front = (batch,) if isinstance(operand, Port) else ()
    generator = torch.Generator().manual_seed(seed)
    return 1 + torch.rand((*front, *operand.type.sizes({})), generator=generator)


def sample(operand: Operand, value: Tensor | None, i: int) -> np.ndarray:
    """What one sample sees of an operand, in float64."""
    if isinstance(operand, float):
        return np.asarray(operand)
    assert value is not None
    return (value[i] if isinstance(operand, Port) else value).double().numpy()


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.word)
@pytest.mark.parametrize("pair", PAIRS)
def test_two_operands(pair: str, operation: type[Operator], batch: int) -> None:
    left, right, text = PAIRS[pair]
    operator = operation(left=left, right=right)
    typing = operator.infer()
    operands = {"left": left, "right": right}
    given = {
        name: tensor(operand, batch, seed)
        for seed, (name, operand) in enumerate(operands.items())
        if not isinstance(operand, float)
    }
    names = {"left": "z", "right": "y"}
    written = operator.python(**{name: names[name] for name in given})
    assert written == text.replace("?", operator.sign)
    result = eval(written, {}, {names[name]: value for name, value in given.items()})
    (exported,) = Step(operator, (), typing, nn.Module()).onnx(**given)
    # numpy lines shapes up from the last axis, which is the rule for one sample.
    wanted = np.stack(
        [
            OPERATIONS[operation](sample(left, given.get("left"), i), sample(right, given.get("right"), i))
            for i in range(batch)
        ]
    )
    assert wanted.shape[1:] == typing.output.sizes({}) and typing.flops == typing.output.elements
    for found in (result.numpy(), exported):
        assert found.shape == wanted.shape and np.abs(found - wanted).max() < SINGLE * 4
    borrowed = {name for name, operand in operands.items() if isinstance(operand, Weight)}
    assert set(typing.weights) == borrowed and not typing.slots


def test_lengths_known_at_run_time_combine_with_themselves() -> None:
    n, m = Dim.symbolic(Symbol("n", 9)), Dim.symbolic(Symbol("m", 9))
    typing = Add(left=Port(floats(n, D)), right=Port(floats(n, D))).infer()
    assert typing.output == floats(n, D) and typing.flops == 9 * D
    with pytest.raises(Mistake, match=r"`\+` cannot combine float\[n, 3\] with float\[m, 3\]"):
        Add(left=Port(floats(n, D)), right=Port(floats(m, D))).infer()


def test_the_layout_of_the_tokens_stays() -> None:
    layout = Layout((Segment("tokens", Dim(N)),))
    tokens = Port(floats(N, D, layout=layout))
    for left, right in ((tokens, 2.0), (VECTOR, tokens), (TABLE, tokens), (tokens, tokens), (tokens, TABLE)):
        assert Multiply(left=left, right=right).infer().output.layout == layout
    assert Multiply(left=TOKENS, right=Port(floats(D, layout=layout))).infer().output.layout is None


@pytest.mark.parametrize(
    ("operator", "code", "at"),
    [
        (Add(left=TOKENS, right=Port(floats(N + 1, D))), "E0407", "right"),
        (Add(left=TOKENS, right=Port(floats(N))), "E0407", "right"),
        (Add(left=Port(floats(1, D)), right=TOKENS), "E0407", "right"),
        (Add(left=GATE, right=Weight("other", floats(N))), "E0407", "right"),
        (Add(left=GATE, right=2.0), "E0901", None),
        (Negative(value=GATE), "E0901", None),
        (Item(value=GATE, index=0), "E0901", None),
        (Divide(left=TOKENS, right=0.0), "E0313", "right"),
        (Multiply(left=TOKENS, right=Port(TensorType("bool", (Dim(D),)))), "E0413", "right"),
        (Negative(value=Port(TensorType("index", (), classes=4))), "E0413", "value"),
        (Item(value=TOKENS, index=N), "E0414", "index"),
        (Item(value=TOKENS, index=-1), "E0414", "index"),
        (Item(value=SCALAR, index=0), "E0415", "value"),
        (Item(value=Port(floats(Dim.symbolic(Symbol("n", 9)), D)), index=0), "E0415", "value"),
    ],
)
def test_mistakes(operator: Operator, code: str, at: str | None) -> None:
    with pytest.raises(Mistake) as caught:
        operator.infer()
    assert (caught.value.code, caught.value.at) == (code, at)


@pytest.mark.parametrize("batch", [1, 3])
def test_negative(batch: int) -> None:
    operator = Negative(value=TOKENS)
    z = torch.randn(batch, N, D)
    assert operator.python(value="z") == "-z"
    (exported,) = Step(operator, (), operator.infer(), nn.Module()).onnx(value=z)
    assert np.array_equal(exported, -z.numpy())
    assert operator.infer().flops == N * D


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("shape", [(N,), (N, D)])
def test_item(shape: tuple[int, ...], batch: int) -> None:
    layout = Layout((Segment("tokens", Dim(N)),))
    operator = Item(value=Port(floats(*shape, layout=layout)), index=2)
    typing = operator.infer()
    assert typing.output == floats(*shape[1:]) and typing.output.layout is None and typing.flops == 0
    z = torch.randn(batch, *shape)
    assert operator.python(value="self.z") == "self.z[:, 2]"
    (exported,) = Step(operator, (), typing, nn.Module()).onnx(value=z)
    assert np.array_equal(exported, z[:, 2].numpy())


def test_items_of_whole_numbers_and_masks_are_of_their_kind() -> None:
    numbers = TensorType("index", (Dim(N),), classes=9)
    assert Item(value=Port(numbers), index=0).infer().output == TensorType("index", (), classes=9)
    assert Item(value=Port(TensorType("bool", (Dim(N),))), index=0).infer().output.kind == "bool"


@pytest.mark.parametrize("number", [0.1, 1e-5, 1 / 3, 2.0, -0.7, 1e30])
def test_numbers_are_written_exactly(number: float) -> None:
    written = Multiply(left=number, right=TOKENS).python(right="z")
    assert eval(written, {}, {"z": 1.0}) == number
