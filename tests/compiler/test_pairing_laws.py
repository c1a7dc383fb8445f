"""What the modes of `inverse` promise, held on whole specs; the operators' own laws are in tests/steps."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

import crate_dsl
from crate_dsl.compiler.network import Network
from tests.compiler.specs import codes, elaborated, found

#: Halving all steps must bring the error down by four, to first order: what is left of higher orders at steps of an
#: eighth and below moves that by less than this share.
HIGHER_ORDERS = 0.2

SPEC = """
model m(h = 1) {
    input z : float[9, 12]
    stage encoder = repeat(2) { LAYER }
    stage decoder = inverse(encoder, mode = MODE)
    code = z -> encoder
    y = code -> decoder
    output code, y
}
"""
COMPRESS = "compress(3, rank = 4, out = tied, norm = none, step = h)"
EXACT = "compress(3, rank = 4, gradient = exact, norm = none, step = h)"
SPARSIFY = "sparsify(step = h, penalty = 0.1, norm = none)"


def build(layer: str, mode: str, h: float) -> Network:
    text = SPEC.replace("LAYER", layer).replace("MODE", mode)
    net = crate_dsl.build(elaborated(text, h=h), seed=1).double().eval()
    with torch.no_grad():
        for weight in net.parameters():
            weight.mul_(0.5)
    return net


def tokens() -> Tensor:
    """Well inside of the active set: every code stays positive, so that the proximal map only shifts."""
    generator = torch.Generator().manual_seed(0)
    return 3 + 0.3 * torch.randn(5, 9, 12, generator=generator, dtype=torch.float64)


def error(net: Network) -> float:
    with torch.no_grad():
        found = net(tokens())
    assert bool((found["code"] > 0).all()), "outside of the active set the law says nothing"
    return float((found["y"] - tokens()).norm() / tokens().norm())


@pytest.mark.parametrize(
    "layer", [COMPRESS, EXACT, SPARSIFY, f"{COMPRESS} {SPARSIFY}", f"{EXACT} {SPARSIFY}"]
)
def test_a_tied_decoder_is_right_to_first_order(layer: str) -> None:
    errors = [error(build(layer, "tied", h)) for h in (1 / 16, 1 / 32, 1 / 64, 1 / 128)]
    for larger, smaller in pairwise(errors):
        assert abs(larger / smaller / 4 - 1) < HIGHER_ORDERS, errors


@pytest.mark.filterwarnings("ignore::crate_dsl.language.diagnostics.NotCertified")
@pytest.mark.parametrize("layer", [COMPRESS, EXACT, SPARSIFY, f"{COMPRESS} {SPARSIFY}"])
def test_one_iteration_is_the_tied_decoder_and_more_come_nearer(layer: str) -> None:
    tied, once = error(build(layer, "tied", 1 / 16)), error(build(layer, "fixed_point(1)", 1 / 16))
    assert tied == pytest.approx(once, rel=1e-9)
    errors = [once, *(error(build(layer, f"fixed_point({m})", 1 / 16)) for m in (2, 4, 30))]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-12


CERTIFIED = """compress(3, rank = 4, gradient = exact, norm = none, constraint = orthonormal, step = relative(0.5))
        sparsify(step = 0.1, penalty = 0.01, prox = leaky(0.9), norm = none, constraint = orthonormal)"""


@pytest.mark.parametrize(
    ("was", "becomes", "words"),
    [
        ("gradient = exact", "gradient = softmax", "compress"),
        ("norm = none, constraint = orthonormal, step", "constraint = orthonormal, step", "compress"),
        ("relative(0.5)", "relative(1)", "compress"),
        ("relative(0.5)", "relative(0.9999)", "compress"),
        ("step = relative(0.5)", "step = 0.5", "compress"),
        ("leaky(0.9)", "nonnegative", "sparsify"),
        ("leaky(0.9)", "soft", "sparsify"),
        ("step = 0.1,", "step = 0.5,", "sparsify"),
        (", norm = none, constraint = orthonormal)\n", ", norm = none)\n", "sparsify"),
        ("norm = none, constraint = orthonormal)\n", "constraint = orthonormal)\n", "sparsify"),
        ("sparsify(", "norm\n sparsify(", "norm"),
        ("sparsify(", "linear(12)\n sparsify(", "linear"),
        ("sparsify(", "relu\n sparsify(", "relu"),
    ],
)
def test_what_breaks_a_certificate_is_an_error_that_names_the_step(
    was: str, becomes: str, words: str
) -> None:
    text = SPEC.replace("MODE", "certified").replace("LAYER", CERTIFIED + "\n   ").replace("(h = 1)", "")
    assert codes(text) == []
    assert was in text
    broken = text.replace(was, becomes)
    problems = [problem for problem in found(broken) if not problem.code.startswith("W")]
    assert [problem.code for problem in problems] == ["E0530"]
    assert f"because of its `{words}`" in problems[0].message
