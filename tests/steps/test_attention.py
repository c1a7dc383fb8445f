"""Attention by torch's kernel and written out: the same numbers and gradients, and which of them is chosen."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from crate_dsl.compiler.steps.attend import module as attend
from crate_dsl.compiler.steps.attend.operator import Attend
from crate_dsl.compiler.steps.compress.operator import Compress
from crate_dsl.compiler.types import floats
from tests.steps.compress_formulas import VARIANTS
from tests.steps.harness import Step, step

#: Rounding of float64 over sums of a few dozen terms.
EXACT = 1e-12
#: bfloat16 has eight bits: 4e-3 of each number, twice over.
HALF = 2e-2
#: Batch, heads, tokens, width of a head.
B, H, N, P = 3, 2, 7, 5
SOFTMAXES = [
    name
    for name, op in VARIANTS.items()
    if op.attends and name not in ("handed", "kept", "borrowed")  # what takes more than tokens
]


def written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attend, "_kernel_is_slow", lambda key: True)


def gradients(run: Callable[[], Tensor], *of: Tensor) -> list[Tensor]:
    out = run()
    cotangent = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    return [out.detach(), *torch.autograd.grad(out, of, cotangent)]


@pytest.mark.parametrize("scale", [None, 0.7])
@pytest.mark.parametrize("causal", [False, True])
def test_written_out_it_is_the_formula_with_its_gradients(
    causal: bool, scale: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    tokens = [torch.randn(B, N, H, P, dtype=torch.double, requires_grad=True) for _ in range(3)]
    query, key, value = (w.transpose(1, 2) for w in tokens)

    def formula() -> Tensor:
        allowed = torch.ones(N, N, dtype=torch.bool).tril() if causal else torch.ones(N, N, dtype=torch.bool)
        weights = ((scale or P**-0.5) * query @ key.mT).exp() * allowed
        return weights / weights.sum(-1, keepdim=True) @ value

    wanted = gradients(formula, *tokens)
    written_out(monkeypatch)
    found = gradients(lambda: attend.attention(query, key, value, causal=causal, scale=scale), *tokens)
    for a, b in zip(found, wanted, strict=True):
        assert (a - b).abs().max() < EXACT * max(1.0, float(b.abs().max()))


@pytest.mark.parametrize("name", SOFTMAXES)
def test_both_ways_of_a_step_have_the_same_gradients(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One tensor is queries, keys and values: gradients of tokens, bases, step and scale, in float64."""
    item = step(VARIANTS[name], floats(7, 11))
    module = item.module.double()
    z = torch.randn(3, 7, 11, dtype=torch.double, requires_grad=True)
    of = [z, *module.parameters()]
    wanted = gradients(lambda: module(z), *of)
    written_out(monkeypatch)
    for a, b in zip(gradients(lambda: module(z), *of), wanted, strict=True):
        assert (a - b).abs().max() < EXACT * max(1.0, float(b.abs().max()))


@pytest.fixture(params=[Attend(heads=3), Compress(subspaces=3, rank=4)], ids=lambda op: op.word)
def item(request: pytest.FixtureRequest) -> Step:
    return step(request.param, floats(7, 12))


def kernels(item: Step, z: Tensor, monkeypatch: pytest.MonkeyPatch) -> tuple[int, Tensor]:
    """How often torch's kernel was called, and what came out."""
    calls = []
    kernel = F.scaled_dot_product_attention
    with monkeypatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: calls.append(0) or kernel(*a, **k))
        out = item.module(z)
    return len(calls), out


def test_it_is_written_out_where_half_precision_trains_on_a_cpu(
    item: Step, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    z = torch.randn(3, 7, 12)
    called, wanted = kernels(item, z, monkeypatch)
    assert called == 1  # in float32
    with torch.autocast("cpu", torch.bfloat16):
        called, trained = kernels(item, z, monkeypatch)
        assert called == 0
        with torch.no_grad():
            called, out = kernels(item, z, monkeypatch)
            assert called == 1
    for found in (trained.detach(), out):
        assert (found - wanted).abs().max() < HALF * wanted.detach().abs().max()
    parameters = list(item.module.parameters())
    exact, rounded = (torch.autograd.grad(out.sum(), parameters) for out in (wanted, trained))
    for a, b in zip(exact, rounded, strict=True):
        assert (a - b).norm() < HALF * max(1.0, float(a.norm()))


def test_an_exported_program_has_the_kernel(item: Step) -> None:
    program = torch.export.export(
        item.module.bfloat16(), (torch.randn(3, 7, 12, dtype=torch.bfloat16),), strict=False
    )
    assert any("scaled_dot_product_attention" in str(node.target) for node in program.graph.nodes)
