"""`mode = fixed_point(m)`: whether its iterations converge is read off the weights, and said where it is not so."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

import crate_dsl
from crate_dsl.compiler.contractions import contractions
from crate_dsl.compiler.network import Network
from crate_dsl.language.diagnostics import NotCertified
from tests.compiler.specs import elaborated

#: float32's rounding, after forty iterations that each halve the error.
SINGLE = 1e-5


def spec(step: str, iterations: int = 40) -> str:
    return f"""
model m {{
    input z : float[6, 8]
    stage encoder = repeat(2) {{ {step} }}
    stage decoder = inverse(encoder, mode = fixed_point({iterations}))
    y = z -> encoder -> decoder
    output y
}}
"""


def quiet(text: str) -> Network:
    """The network, without its warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotCertified)
        return crate_dsl.build(elaborated(text))


EXACT = "compress(2, 4, gradient = exact, norm = none)"
ATTENTION = "compress(2, 4, step = 0.1)"
FIXED = "compress(2, 4, gradient = exact, norm = none, step = 0.02, eps = 0.5)"


def test_an_exact_gradient_with_a_relative_step_is_certified_and_inverts(tmp_path: Path) -> None:
    net = crate_dsl.build(elaborated(spec(EXACT)))
    assert [found.certified for found in contractions(net)] == [True, True]
    z = 3 * torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert (net(z) - z).abs().max() < SINGLE * z.abs().max()
    crate_dsl.export(net.graph, net, tmp_path / "net.onnx")


def test_attention_is_said_not_to_be_certified_when_built_and_when_exported(tmp_path: Path) -> None:
    with pytest.warns(
        NotCertified, match=r"`decoder` undoes `encoder` .* of `encoder\.1\.compress` \(and 1 more"
    ):
        net = crate_dsl.build(elaborated(spec(ATTENTION)))
    assert not any(found.certified for found in contractions(net))
    with pytest.warns(NotCertified):
        crate_dsl.export(net.graph, net, tmp_path / "net.onnx")


def test_weights_that_outgrow_a_fixed_step_are_found() -> None:
    """κα‖U‖₂² grows with the bases: what was certified when it was built need not be when it is exported."""
    net = crate_dsl.build(elaborated(spec(FIXED)))
    assert all(found.certified for found in contractions(net))
    with torch.no_grad():
        net.encoder[0].compress.subspaces.mul_(10)
    first, second = contractions(net)
    assert (first.pair.undoes, first.certified) == ("encoder.1.compress", True)
    assert (second.pair.undoes, second.certified) == ("encoder.0.compress", False)
    assert second.bound.lipschitz is not None and second.bound.lipschitz > 1


def test_exact_steps_need_no_contraction() -> None:
    net = quiet("""
model m {
    input image : float[1, 8, 8]
    stage encoder = patchify(2) -> position(sincos) -> scale(4) -> residual { scale(0.5) }
    y = image -> encoder -> inverse(encoder, mode = fixed_point(3))
    output y
}
""")
    found = {contraction.pair.undoes: contraction for contraction in contractions(net)}
    assert found["encoder.scale"].certified and found["encoder.patchify"].certified
    assert not found["encoder.residual"].certified
    assert "residual" in found["encoder.residual"].bound.reason


def test_other_modes_iterate_nothing() -> None:
    assert contractions(crate_dsl.build(elaborated(spec(EXACT).replace("fixed_point(40)", "tied")))) == ()
