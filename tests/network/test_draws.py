"""Draws in torch follow the rules that `draws` states and sessions follow: same shapes, same counts, same bounds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import crate_dsl
from crate_dsl.compiler.draws import Choose, DrawForm, NormalDraw, Shuffle, UniformDraw
from crate_dsl.compiler.graph import Entry
from crate_dsl.compiler.network import draw
from crate_dsl.compiler.types import Dim, Symbol, TensorType, floats
from crate_dsl.language.diagnostics import UserError
from crate_dsl.language.source import Source, Span
from crate_dsl.workspace import Target, load_source

NOWHERE = Span(Source("test", ""), 0, 0)
LENGTH = Dim.symbolic(Symbol("n", 40))
DRAWS = {
    "normal": (NormalDraw(std=0.5), floats(LENGTH, 30)),
    "uniform": (UniformDraw(low=-1.0, high=3.0), floats(30, LENGTH)),
    "mask": (Choose(ratio=0.75), TensorType("bool", (LENGTH,))),
    "indices": (Choose(), TensorType("index", (Dim(7),), 50)),
    "shuffle": (Shuffle(), TensorType("index", (Dim(9),), 9)),
}


@pytest.mark.parametrize("name", DRAWS)
def test_torch_draws_what_sessions_draw(name: str) -> None:
    form, type_ = DRAWS[name]
    assert isinstance(form, DrawForm) and form.check(type_) is None
    torch.manual_seed(0)
    drawn = draw(Entry("x", type_, NOWHERE, form), [torch.zeros(5)], {"n": 21}).numpy()
    other = form.sample(type_, 5, {"n": 21}, np.random.default_rng(0))
    assert drawn.shape == other.shape and drawn.dtype == other.dtype
    if type_.kind == "bool":
        assert (drawn.sum(-1) == other.sum(-1)).all()
    elif type_.kind == "index":
        assert all(len(set(row)) == len(row) for row in drawn)
        assert drawn.min() >= 0 and drawn.max() < (type_.classes or 0)
    else:
        # 3,150 draws: the standard error of a mean or spread is below 2 % of the spread.
        assert abs(drawn.mean() - other.mean()) < 0.1 and abs(drawn.std() / other.std() - 1) < 0.1


def test_a_network_of_draws_alone_draws_one_sample() -> None:
    text = "model m { input z : float[3, 4] = normal  y = z -> relu  output y }"
    net = crate_dsl.build(load_source(Source("m.crate", text), Target("m.crate")))
    assert net().shape == (1, 3, 4) and net(torch.zeros(2, 3, 4)).shape == (2, 3, 4)


def test_a_length_that_nothing_tells_must_be_given() -> None:
    text = "model m { input z : float[n <= 3, 4] = normal  y = z -> relu  output y }"
    net = crate_dsl.build(load_source(Source("m.crate", text), Target("m.crate")))
    with pytest.raises(UserError, match="nothing else tells its length `n`"):
        net()
