"""`compress` in every precision and size, compiled and exported, rotated, dropped from."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import torch

from crate_dsl.compiler.steps.compress.operator import Compress, Decompress
from crate_dsl.compiler.steps.norm.operator import NoNorm
from crate_dsl.compiler.types import floats
from tests.steps.compress_formulas import (
    CERTIFIED,
    SINGLE,
    TOKENS,
    VARIANTS,
    D,
    K,
    N,
    P,
    orthonormal_rows,
)
from tests.steps.harness import step


@pytest.mark.parametrize("size", [0.01, 1.0, 10.0, 1e3, 1e6])
@pytest.mark.parametrize("kind", ["random", "nearly equal", "equal"])
@pytest.mark.parametrize("operator", [Compress(**CERTIFIED), Decompress(**CERTIFIED, iterations="certified")])
def test_tokens_of_every_size_are_solved_for_in_float32(operator: Compress, kind: str, size: float) -> None:
    """Tokens that agree make the p x p matrices singular but for their identity, which float32 loses at last."""
    torch.manual_seed(2)
    item = step(operator, floats(24, 16))
    with torch.no_grad():
        item.module.subspaces.copy_(orthonormal_rows(10, 16))
    spread = {"random": 1.0, "nearly equal": 0.01, "equal": 0.0}[kind]
    z = size * (torch.randn(3, 1, 16) + spread * torch.randn(3, 24, 16))
    wanted = deepcopy(item.module).double()(z.double()).detach()
    found = item.module(z).detach()
    (exported,) = item.onnx(z)
    scale = float(wanted.abs().max())
    # Half a per mille at the worst, where one direction is a thousand times the others.
    assert (found - wanted).abs().max() < 5e-4 * scale
    assert np.abs(exported - found.numpy()).max() < 1e-4 * scale


def test_half_precision_is_solved_in_single() -> None:
    item = step(VARIANTS["exact"], TOKENS)
    z = torch.randn(3, N, D)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = item.module(z)
    assert (rounded - item.module(z)).abs().max() < 0.05


@pytest.mark.parametrize("variant", ["exact", "neumann", "undone_certified", "exact_orthonormal"])
def test_it_compiles_whole_and_exports_with_any_batch(variant: str) -> None:
    item = step(VARIANTS[variant], TOKENS)
    z = torch.randn(3, N, D)
    compiled = torch.compile(item.module, fullgraph=True, backend="eager")
    assert (compiled(z) - item.module(z)).abs().max() < SINGLE
    program = torch.export.export(item.module, (z,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC}, None)[:1])
    for batch in (1, 7):
        z = torch.randn(batch, N, D)
        assert (program.module()(z) - item.module(z)).abs().max() < SINGLE


@pytest.mark.parametrize("variant", ["tied", "exact", "neumann", "softmax", "undone_exact"])
def test_rotating_bases_within_a_subspace_changes_nothing(variant: str) -> None:
    """The rate knows subspaces, not their bases."""
    operator = VARIANTS[variant].model_copy(update={"out": "tied"})
    item = step(operator, TOKENS)
    z = torch.randn(2, N, D)
    before = item.module(z)
    with torch.no_grad():
        for rows in item.module.subspaces.split(P):
            rows.copy_(torch.linalg.qr(torch.randn(P, P)).Q @ rows)
    assert (item.module(z) - before).abs().max() < SINGLE


@pytest.mark.parametrize("variant", ["exact", "neumann"])
def test_rotating_the_space_rotates_the_step(variant: str) -> None:
    item = step(VARIANTS[variant].model_copy(update={"norm": NoNorm()}), TOKENS)
    z, rotation = torch.randn(2, N, D), torch.linalg.qr(torch.randn(D, D)).Q
    before = item.module(z)
    with torch.no_grad():
        item.module.subspaces.copy_(item.module.subspaces @ rotation)
    assert (item.module(z @ rotation) - before @ rotation).abs().max() < SINGLE


@pytest.mark.parametrize("gradient", ["attention", "softmax", "neumann", "exact"])
def test_dropout_drops_from_the_branch_while_training(gradient: str) -> None:
    item = step(Compress(subspaces=K, rank=P, gradient=gradient, dropout=0.4), TOKENS)
    z = torch.randn(40, N, D)
    added = item.module(z) - z
    trained = item.module.train()(z) - z
    kept = trained.abs() > 1e-6
    assert 0.35 < 1 - float(kept.double().mean()) < 0.45
    assert (trained[kept] * 0.6 - added[kept]).abs().max() < SINGLE
