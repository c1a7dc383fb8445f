"""`norm` against its formula in float64 and against ONNX."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import torch

from crate_dsl.compiler.operators import Mistake
from crate_dsl.compiler.steps.norm.operator import LayerNorm, Norm, RmsNorm
from crate_dsl.compiler.types import TensorType, floats
from tests.steps.harness import step

#: Rounding of float64, and of float32, over a dozen terms of size 1.
EXACT, SINGLE = 1e-12, 1e-5

VARIANTS = {
    "layer": Norm(),
    "eps": Norm(eps=0.1),
    "rms": Norm(by=RmsNorm()),
    "rms_eps": Norm(by=RmsNorm(), eps=0.1),
}


@pytest.mark.parametrize("shape", [(7, 11), (11,)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_module_and_onnx_are_the_formula(variant: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    operator = VARIANTS[variant]
    item = step(operator, floats(*shape))
    z = torch.randn(3, *shape, dtype=torch.float64) * 2 + 1
    w = {name: value.detach().double() for name, value in item.module.named_parameters()}
    if isinstance(operator.form, LayerNorm):
        centred = z - z.mean(-1, keepdim=True)
        wanted = (
            centred / (centred.square().mean(-1, keepdim=True) + operator.form.eps).sqrt() * w["weight"]
            + w["bias"]
        )
    else:
        wanted = z / (z.square().mean(-1, keepdim=True) + operator.form.eps).sqrt() * w["weight"]
    assert (deepcopy(item.module).double()(z) - wanted).abs().max() < EXACT
    (exported,) = item.onnx(z.float())
    assert np.abs(exported - wanted.numpy()).max() < SINGLE


def test_eps_beside_the_word_is_the_norms() -> None:
    assert Norm(eps=1e-6).form == LayerNorm(eps=1e-6)
    assert Norm(by=RmsNorm(), eps=1e-3).form == RmsNorm(eps=1e-3)


def test_whole_numbers_have_no_norm() -> None:
    with pytest.raises(Mistake) as caught:
        Norm().infer(TensorType("index", (), 5))
    assert caught.value.code == "E0401"
