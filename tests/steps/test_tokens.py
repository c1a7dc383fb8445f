"""Steps on the token axis, against slices and concatenations, in torch and ONNX, at lengths never seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import crate_dsl
from crate_dsl.compiler.operators import (
    Inverse,
    LearnedInverse,
    Mistake,
    NoInverse,
    Operator,
    Port,
    Tokens,
    Weight,
)
from crate_dsl.compiler.steps.tokens.operator import Append, Drop, Keep, Pool, Prepend, Select
from crate_dsl.compiler.types import Dim, Grid, Layout, Segment, Symbol, TensorType, floats
from tests.compiler.specs import elaborated
from tests.steps.harness import Step, borrowed, step

#: Float32 sums of some ten numbers of size one, in two orders.
FLOAT32 = 1e-6
WIDTH = 5
N, OTHER = Dim.symbolic(Symbol("n", 32)), Dim.symbolic(Symbol("m", 9))
PATCHES = Segment("patches", Dim.of(6), Grid(2, 3, 4, 3))
CLASS = Weight("class_token", floats(WIDTH))
QUERIES = Weight("queries", floats(4, WIDTH))


def typed(*segments: Segment) -> TensorType:
    layout = Layout(segments)
    return floats(layout.length, WIDTH, layout=layout)


def sample(batch: int, tokens: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(
        batch, tokens, WIDTH, dtype=dtype, generator=torch.Generator().manual_seed(10 * batch + tokens)
    )


def learned(weight: Weight) -> Tensor:
    return torch.randn(*weight.type.sizes({}), generator=torch.Generator().manual_seed(7))


def both(item: Step, z: Tensor, **named: Tensor) -> Tensor:
    """The step in torch, after ONNX has given the same."""
    result: Tensor = item.module(z, **named)
    (onnx,) = item.onnx(z, **named)
    np.testing.assert_allclose(onnx, result.numpy(), atol=FLOAT32)
    assert result.shape[1:] == torch.Size(
        dim.at({"n": z.shape[1] - (item.inputs[0].shape[0].offset)}) for dim in item.typing.output.shape
    )
    return result


# ------------------------------------------------------------------ learned tokens


@pytest.mark.parametrize("weight", [CLASS, QUERIES])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("given", "counts"), [(typed(PATCHES), [6]), (floats(N, WIDTH), [1, 9])])
def test_learned_tokens_join_every_sample(
    weight: Weight, batch: int, given: TensorType, counts: list[int]
) -> None:
    first, last = step(Prepend(tokens=weight), given), step(Append(tokens=weight), given)
    assert borrowed(first) == borrowed(last) == {"tokens": weight}
    added = learned(weight)
    rows = added.reshape(-1, WIDTH)
    for count in counts:
        z = sample(batch, count)
        for item, wanted in (
            (first, [torch.cat([rows, z_nd]) for z_nd in z]),
            (last, [torch.cat([z_nd, rows]) for z_nd in z]),
        ):
            assert torch.equal(both(item, z, tokens=added), torch.stack(wanted))


def test_the_layout_gains_a_segment() -> None:
    tokens = Prepend(tokens=CLASS).infer(typed(PATCHES)).output
    assert str(tokens.layout) == "class_token:1 patches:6(2x3)"
    tokens = Append(tokens=QUERIES).infer(tokens).output
    assert str(tokens.layout) == "class_token:1 patches:6(2x3) queries:4"
    assert str(tokens) == "float[11, 5]"
    symbolic = Append(tokens=QUERIES).infer(floats(N, WIDTH)).output
    assert str(symbolic.layout) == "tokens:n queries:4"
    assert str(symbolic) == "float[n + 4, 5]"


def test_dropping_undoes_joining() -> None:
    for operator in (Prepend(tokens=QUERIES), Append(tokens=QUERIES)):
        joined = step(operator, typed(PATCHES))
        undo = joined.operator.inverse(LearnedInverse())
        assert undo == Inverse(Drop(tokens=Tokens("queries")))
        back = step(undo.operator, joined.typing.output)
        z = sample(2, 6)
        assert torch.equal(back.module(joined.module(z, tokens=learned(QUERIES))), z)
        assert back.typing.output.layout == typed(PATCHES).layout


def test_other_tokens_join_with_their_names() -> None:
    """Tokens of the network: each sample has its own, and they keep their segments."""
    asked = typed(segment("asked", 2), segment("extra", 1))
    for operator, order in ((Prepend, (1, 0)), (Append, (0, 1))):
        item = step(operator(tokens=Port(asked)), typed(PATCHES))
        z, others = sample(3, 6), sample(3, 3)
        wanted = torch.cat([(z, others)[i] for i in order], dim=1)
        assert torch.equal(both(item, z, tokens=others), wanted)
        names = [PATCHES.name, "asked extra"]
        assert " ".join(item.typing.output.layout.names) == " ".join(names[i] for i in order)
        assert isinstance(item.operator.inverse(LearnedInverse()), NoInverse)


def test_other_tokens_of_any_length_join() -> None:
    item = step(Append(tokens=Port(typed(segment("asked", 2)))), floats(N, WIDTH))
    for count in (1, 9):
        both(item, sample(2, count), tokens=sample(2, 2))


# ------------------------------------------------------------------ taken by name


def segment(name: str, length: int | Dim) -> Segment:
    return Segment(name, Dim.of(length))


LAYOUTS = [
    (segment("a", 1), PATCHES, segment("b", 4)),
    (segment("a", N), segment("b", 1), segment("c", 3)),
    (segment("a", 1), segment("b", N), segment("c", 3)),
    (segment("a", 2), segment("b", 1), segment("c", N)),
]


@pytest.mark.parametrize("segments", LAYOUTS)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("n", [1, 7])
def test_segments_are_taken_by_name(segments: tuple[Segment, ...], batch: int, n: int) -> None:
    given = typed(*segments)
    parts = {s.name: sample(batch, s.length.at({"n": n})) + i for i, s in enumerate(segments)}
    z = torch.cat(list(parts.values()), 1)
    for name, part in parts.items():
        keep, drop = step(Keep(tokens=Tokens(name)), given), step(Drop(tokens=Tokens(name)), given)
        assert torch.equal(both(keep, z), part)
        assert torch.equal(
            both(drop, z), torch.cat([other for key, other in parts.items() if key != name], 1)
        )
        assert keep.typing.output.layout == Layout(tuple(s for s in segments if s.name == name))
        assert drop.typing.output.layout == Layout(tuple(s for s in segments if s.name != name))
        if given.layout is not None and given.layout.segment(name).length.static == 1:
            assert torch.equal(both(step(Select(tokens=Tokens(name)), given), z), part[:, 0])


def test_tokens_without_names_are_tokens() -> None:
    z = sample(2, 6)
    assert torch.equal(both(step(Keep(tokens=Tokens("tokens")), floats(6, WIDTH)), z), z)


# ------------------------------------------------------------------ pooled


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("count", [1, 9])
def test_pooling(batch: int, count: int) -> None:
    z = sample(batch, count)
    mean, largest = step(Pool(), floats(N, WIDTH)), step(Pool(by="max"), floats(N, WIDTH))
    torch.testing.assert_close(both(mean, z), sum(z.unbind(1)) / count)
    wanted = np.max(z.numpy(), axis=1)
    assert np.array_equal(both(largest, z).numpy(), wanted)
    exact = step(Pool(), floats(N, WIDTH)).module.double()(z.double())
    torch.testing.assert_close(exact, sum(z.double().unbind(1)) / count, rtol=0, atol=1e-15)


# ------------------------------------------------------------------ export, mistakes


class Chain(torch.nn.Module):
    """Prepend, keep the rest, drop it from the middle, pool: everything that could freeze a length."""

    def __init__(self) -> None:
        super().__init__()
        joined = step(Prepend(tokens=CLASS), floats(N, WIDTH))
        longer = step(Append(tokens=QUERIES), joined.typing.output)
        self.steps = torch.nn.ModuleList([joined.module, longer.module])
        self.drop = step(Drop(tokens=Tokens("tokens")), longer.typing.output).module
        self.keep = step(Keep(tokens=Tokens("tokens")), longer.typing.output).module
        self.select = step(Select(tokens=Tokens("class_token")), longer.typing.output).module
        self.pool = step(Pool(), longer.typing.output).module
        self.class_token, self.queries = (torch.nn.Parameter(learned(w)) for w in (CLASS, QUERIES))

    def forward(self, z: Tensor) -> tuple[Tensor, ...]:
        z = self.steps[1](self.steps[0](z, tokens=self.class_token), tokens=self.queries)
        return self.drop(z), self.keep(z), self.select(z), self.pool(z)


def test_exports_with_dynamic_batch_and_length() -> None:
    net = Chain()
    dynamic = {0: torch.export.Dim("batch"), 1: torch.export.Dim("n", min=1, max=32)}
    program = torch.export.export(net, (sample(2, 8),), dynamic_shapes=(dynamic,))
    for z in (sample(1, 1), sample(5, 13)):
        for exported, eager in zip(program.module()(z), net(z), strict=True):
            torch.testing.assert_close(exported, eager)


@pytest.mark.parametrize(
    ("code", "operator", "given"),
    [
        ("E0401", Prepend(tokens=CLASS), floats(WIDTH)),
        ("E0431", Prepend(tokens=CLASS), typed(segment("class_token", 1), PATCHES)),
        ("E0431", Append(tokens=Port(typed(segment("b", 1), PATCHES))), typed(PATCHES)),
        ("E0436", Append(tokens=Port(floats(WIDTH))), typed(PATCHES)),
        ("E0436", Append(tokens=Port(floats(2, WIDTH + 1))), typed(PATCHES)),
        ("E0901", Append(tokens=Port(typed(segment("b", OTHER)))), floats(N, WIDTH)),
        ("E0431", Append(tokens=Weight("tokens", floats(WIDTH))), floats(6, WIDTH)),
        ("E0436", Append(tokens=Weight("wide", floats(WIDTH + 1))), floats(6, WIDTH)),
        ("E0436", Append(tokens=Weight("deep", floats(2, 2, WIDTH))), floats(6, WIDTH)),
        ("E0430", Select(tokens=Tokens("class")), floats(6, WIDTH)),
        ("E0437", Select(tokens=Tokens("patches")), typed(PATCHES)),
        ("E0437", Select(tokens=Tokens("tokens")), floats(N, WIDTH)),
        ("E0439", Drop(tokens=Tokens("patches")), typed(PATCHES)),
        ("E0401", Pool(), floats(3, 4, WIDTH)),
        ("E0901", Keep(tokens=Tokens("b")), typed(segment("a", N), segment("b", 1), segment("c", N))),
    ],
)
def test_mistakes(code: str, operator: Operator, given: TensorType) -> None:
    with pytest.raises(Mistake) as found:
        operator.infer(given)
    assert found.value.code == code


def test_an_unknown_segment_names_those_there_are() -> None:
    with pytest.raises(Mistake) as found:
        Select(tokens=Tokens("class_tokn")).infer(typed(segment("class_token", 1), PATCHES))
    assert (
        found.value.message == "there are no tokens called `class_tokn` here, only `class_token`, `patches`"
    )
    assert found.value.help == ("did you mean `class_token`?",)


def test_what_is_lost_has_no_inverse() -> None:
    name = Tokens("patches")
    for operator in (Drop(tokens=name), Keep(tokens=name), Select(tokens=name), Pool()):
        assert isinstance(operator.inverse(LearnedInverse()), NoInverse)


# ------------------------------------------------------------------ in a stage


def test_a_learned_token_of_a_stage_is_called_as_it_is_declared(tmp_path: Path) -> None:
    """Also in a copy of the stage, which owns another one, and in an inverse."""
    text = """model m(dim = 8) {
        input z : float[n <= 6, dim]
        stage reader = {
            input tokens
            learn told : float[dim] = normal(1)
            stage inner = prepend(told) -> sparsify
            stage outer = inverse(inner, mode = learned)
            seen = tokens -> inner
            output (seen -> outer) + (seen -> keep(told) -> pool)
        }
        stage other = copy(reader)
        y = z -> reader -> other
        output y
    }"""
    graph = elaborated(text)
    assert [path for path in graph.slots if path.endswith("told")] == ["reader.told", "other.told"]
    net = crate_dsl.build(graph, seed=0)
    assert net(torch.randn(2, 5, 8)).shape == (2, 5, 8)
    assert crate_dsl.export(graph, net, tmp_path / "m.onnx").passed
