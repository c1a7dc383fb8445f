"""`compress` against its formula in float64, the derivation that it comes from, and ONNX."""

from __future__ import annotations

from copy import deepcopy
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from crate_dsl.compiler.operators import (
    Certificate,
    CertifiedInverse,
    FixedPoint,
    Inverse,
    Learned,
    LearnedInverse,
    Mistake,
    Mode,
    NoInverse,
    Port,
    TiedInverse,
    Weight,
)
from crate_dsl.compiler.steps.compress.operator import Compress, Decompress, Relative
from crate_dsl.compiler.steps.norm.operator import LayerNorm, NoNorm, RmsNorm
from crate_dsl.compiler.types import Dim, Symbol, TensorType, floats
from crate_dsl.workspace import check_text
from tests.steps.harness import Step, step

#: Rounding of float64 over sums of a few dozen terms.
EXACT = 1e-12
#: Rounding of float32 over sums of a few dozen terms of size 1 to 10.
SINGLE = 3e-5

N, D, K, P = 7, 11, 3, 5
TOKENS = floats(N, D)
KEPT = Port(TensorType("bool", (Dim(N),)))
PER_SAMPLE = Port(floats())
#: Arguments whose inverse is certain.
CERTIFIED = {"subspaces": 2, "rank": P, "gradient": "exact", "norm": NoNorm(), "constraint": "orthonormal"}
VARIANTS = {
    "published": Compress(subspaces=K, rank=P),
    "one_subspace": Compress(subspaces=1, rank=P),
    "tied": Compress(subspaces=K, rank=P, out="tied"),
    "no_bias": Compress(subspaces=K, rank=P, bias=False, norm=LayerNorm(eps=1e-6)),
    "rms": Compress(subspaces=K, rank=P, norm=RmsNorm()),
    "raw": Compress(subspaces=K, rank=P, norm=NoNorm()),
    "step": Compress(subspaces=K, rank=P, step=0.3, scale=0.7),
    "learned": Compress(subspaces=K, rank=P, step=Learned(0.3, (D,)), scale=Learned(0.7)),
    "handed": Compress(subspaces=K, rank=P, step=PER_SAMPLE, scale=PER_SAMPLE),
    "borrowed": Compress(subspaces=K, rank=P, step=Weight("rate", floats())),
    "causal": Compress(subspaces=K, rank=P, mask="causal"),
    "kept": Compress(subspaces=K, rank=P, mask=KEPT),
    "softmax": Compress(subspaces=K, rank=P, gradient="softmax"),
    "softmax_step": Compress(subspaces=K, rank=P, gradient="softmax", step=0.2, eps=0.7, norm=NoNorm()),
    "softmax_relative": Compress(subspaces=K, rank=P, gradient="softmax", step=Relative(fraction=0.7)),
    "exact": Compress(subspaces=K, rank=P, gradient="exact"),
    "exact_narrow": Compress(subspaces=2, rank=P, gradient="exact", eps=0.2),
    "exact_raw": Compress(subspaces=K, rank=P, gradient="exact", norm=NoNorm(), step=Relative(fraction=0.9)),
    "exact_orthonormal": Compress(subspaces=2, rank=P, gradient="exact", constraint="orthonormal"),
    "exact_step": Compress(subspaces=K, rank=P, gradient="exact", step=0.1, norm=RmsNorm()),
    "exact_learned": Compress(subspaces=K, rank=P, gradient="exact", step=Learned(0.1, (D,))),
    "exact_handed": Compress(subspaces=K, rank=P, gradient="exact", step=PER_SAMPLE),
    "exact_bases": Compress(subspaces=2, rank=P, gradient="exact", bases=Weight("axes", floats(2 * P, D))),
    "neumann": Compress(subspaces=K, rank=P, gradient="neumann", eps=5.0),
    "neumann_orthonormal": Compress(subspaces=2, rank=P, gradient="neumann", eps=9, constraint="orthonormal"),
    "undone": Decompress(subspaces=K, rank=P),
    "undone_causal": Decompress(subspaces=K, rank=P, mask="causal", step=0.3, iterations=3),
    "undone_softmax": Decompress(subspaces=K, rank=P, gradient="softmax", step=0.05, iterations=2),
    "undone_exact": Decompress(subspaces=K, rank=P, gradient="exact", iterations=4),
    "undone_neumann": Decompress(subspaces=K, rank=P, gradient="neumann", eps=5.0),
    "undone_certified": Decompress(**CERTIFIED, iterations="certified"),
    "undone_certified_free": Decompress(**(CERTIFIED | {"constraint": "none"}), iterations="certified"),
}


def normalised(item: Step, z: Tensor, w: dict[str, Tensor]) -> Tensor:
    form = item.operator.norm
    if isinstance(form, LayerNorm):
        centred = z - z.mean(-1, keepdim=True)
        return (
            centred / (centred.square().mean(-1, keepdim=True) + form.eps).sqrt() * w["norm_weight"]
            + w["norm_bias"]
        )
    if isinstance(form, RmsNorm):
        return z / (z.square().mean(-1, keepdim=True) + form.eps).sqrt() * w["norm_weight"]
    return z


def branch(item: Step, z: Tensor, **given: Tensor) -> Tensor:
    """F(Z) by its formula, subspace by subspace: tokens are columns there and rows here."""
    op, w = item.operator, {name: value.detach().double() for name, value in item.module.named_parameters()}
    w |= {name: value.double() for name, value in given.items() if value.is_floating_point()}
    x, alpha = normalised(item, z.double(), w), op.rank / (z.shape[1] * op.eps**2)
    u = w["subspaces"]

    def number(name: str, published: float) -> Tensor | float:
        value = getattr(op, name)
        if isinstance(value, Port):
            return w[name].reshape(-1, 1, 1)
        return w.get(name, published if value is None else value)

    lipschitz = (
        alpha if op.constraint == "orthonormal" else alpha * float(torch.linalg.matrix_norm(u, 2)) ** 2
    )
    relative = op.step.fraction if isinstance(op.step, Relative) else 0.5
    derived = {"attention": 1.0, "softmax": 0.5 / alpha}.get(op.gradient, 0.5 / lipschitz)
    kappa = relative / lipschitz if isinstance(op.step, Relative) else number("step", derived)
    heads = []
    for k in range(op.subspaces):
        projected = x @ u[k * op.rank : (k + 1) * op.rank].T
        scores = projected @ projected.transpose(1, 2)
        eye = torch.eye(z.shape[1], dtype=torch.double)
        if op.gradient == "exact":
            heads.append(torch.linalg.solve(eye + alpha * scores, projected))
        elif op.gradient == "neumann":
            heads.append((eye - alpha * scores) @ projected)
        else:
            scores = number("scale", op.rank**-0.5 if op.gradient == "attention" else 1.0) * scores
            allowed = torch.ones_like(scores, dtype=torch.bool)
            if op.mask == "causal":
                allowed = allowed.tril()
            if "mask" in given:
                allowed = allowed & given["mask"][:, None, :]
            heads.append(scores.masked_fill(~allowed, -torch.inf).softmax(-1) @ projected)
    joined = torch.cat(heads, -1)
    if op.gradient == "softmax":
        return -kappa * alpha * x + kappa * alpha * (alpha * joined @ u)
    if op.gradient != "attention":
        return -kappa * alpha * (joined @ u)
    return kappa * (joined @ u if op.tied else joined @ w["out_weight"].T + w.get("out_bias", 0.0))


def reference(item: Step, z: Tensor, **given: Tensor) -> Tensor:
    """Z + F(Z), or Y - F(Y - F(…)) from Y."""
    if isinstance(item.operator, Compress):
        return z.double() + branch(item, z, **given)
    x = z.double()
    for _ in range(item.operator.sweeps(torch.finfo(torch.double).eps)):
        x = z.double() - branch(item, x, **given)
    return x


def arguments(item: Step, batch: int) -> dict[str, Tensor]:
    """What is handed over and what is borrowed."""
    op, given = item.operator, {}
    if isinstance(op.mask, Port):
        given["mask"] = torch.rand(batch, N) < 0.6
        given["mask"][:, 0] = True
    for name in ("step", "scale"):
        if isinstance(getattr(op, name), Port | Weight):
            given[name] = torch.rand(batch) if isinstance(getattr(op, name), Port) else torch.tensor(0.4)
    if op.bases is not None:
        given["subspaces"] = 0.3 * torch.randn(op.subspaces * op.rank, D)
    return given


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("variant", VARIANTS)
def test_module_and_onnx_are_the_formula(variant: str, batch: int) -> None:
    torch.manual_seed(batch)
    item = step(VARIANTS[variant], TOKENS)
    z, given = torch.randn(batch, N, D), arguments(item, batch)
    wanted = reference(item, z, **given)
    doubled = {name: value.double() if value.is_floating_point() else value for name, value in given.items()}
    double = deepcopy(item.module).double()
    assert (double(z.double(), **doubled) - wanted).abs().max() < EXACT
    assert (item.module(z, **given) - wanted).abs().max() < SINGLE
    (exported,) = item.onnx(z, **given)
    assert np.abs(exported - wanted.numpy()).max() < SINGLE
    taps = double.explain(z.double(), **doubled)
    assert set(taps) == {*item.operator.taps, "out"}
    assert (taps["out"] - wanted).abs().max() < EXACT


def test_no_subspace_is_special() -> None:
    """Permuting subspaces, with the columns of the output map, changes nothing."""
    item = step(VARIANTS["published"], TOKENS)
    z, order = torch.randn(2, N, D), torch.tensor([2, 0, 1])
    before = item.module(z)
    rows = (order[:, None] * P + torch.arange(P)).flatten()
    with torch.no_grad():
        item.module.subspaces.copy_(item.module.subspaces[rows])
        item.module.out_weight.copy_(item.module.out_weight[:, rows])
    assert (item.module(z) - before).abs().max() < SINGLE


def test_tokens_have_no_order() -> None:
    item = step(VARIANTS["published"], TOKENS)
    z, order = torch.randn(2, N, D), torch.randperm(N)
    assert (item.module(z[:, order]) - item.module(z)[:, order]).abs().max() < SINGLE


def test_rotating_tied_bases_changes_nothing() -> None:
    """The rate against a subspace knows the subspace, not its basis (CATALOGUE's T17, DEPICT's `ortho`)."""
    item = step(VARIANTS["tied"], TOKENS)
    z = torch.randn(2, N, D)
    before = item.module(z)
    with torch.no_grad():
        for k in range(K):
            rotation, _ = torch.linalg.qr(torch.randn(P, P))
            rows = slice(k * P, (k + 1) * P)
            item.module.subspaces[rows] = rotation @ item.module.subspaces[rows]
    assert (item.module(z) - before).abs().max() < SINGLE


def test_a_causal_prefix_is_the_prefix() -> None:
    item = step(VARIANTS["causal"], TOKENS)
    z = torch.randn(2, N, D)
    assert (item.module(z[:, :4]) - item.module(z)[:, :4]).abs().max() < SINGLE


def test_one_token_attends_to_itself() -> None:
    item = step(VARIANTS["published"], floats(1, D))
    z = torch.randn(3, 1, D)
    x = normalised(
        item, z.double(), {n: v.detach().double() for n, v in item.module.named_parameters()}
    ).float()
    wanted = z + (x @ item.module.subspaces.T) @ item.module.out_weight.T + item.module.out_bias
    assert (item.module(z) - wanted).abs().max() < SINGLE


def test_weights_and_operations_are_counted() -> None:
    typing = VARIANTS["published"].infer(TOKENS)
    counts = {name: slot.shape for name, slot in typing.slots.items()}
    assert counts == {
        "norm_weight": (D,), "norm_bias": (D,), "subspaces": (K * P, D), "out_weight": (D, K * P), "out_bias": (D,)
    }  # fmt: skip
    assert typing.flops == 5 * N * D + 2 * (2 * N * D * K * P) + 2 * (2 * N * N * K * P)
    assert set(VARIANTS["tied"].infer(TOKENS).slots) == {"norm_weight", "norm_bias", "subspaces"}


def test_lengths_may_be_symbolic() -> None:
    item = step(VARIANTS["causal"], floats(Dim.symbolic(Symbol("n", 9)), D))
    for n in (1, 4, 9):
        z = torch.randn(2, n, D)
        (exported,) = item.onnx(z)
        assert np.abs(exported - item.module(z).detach().numpy()).max() < SINGLE


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ({"gradient": "softmax", "out": "free"}, "E0305"),
        ({"gradient": "softmax", "mask": "causal"}, "E0305"),
        ({"out": "tied", "bias": True}, "E0305"),
        ({"constraint": "orthonormal"}, "E0340"),
        ({"mask": Port(TensorType("bool", (Dim(N + 1),)))}, "E0406"),
        ({"mask": Port(floats(N))}, "E0406"),
    ],
)
def test_arguments_that_do_not_go_together(arguments: dict[str, object], code: str) -> None:
    with pytest.raises(Mistake) as caught:
        Compress(subspaces=K, rank=P, **arguments).infer(TOKENS)
    assert caught.value.code == code


def test_images_are_not_tokens() -> None:
    with pytest.raises(Mistake) as caught:
        Compress(subspaces=K, rank=P).infer(floats(3, 8, 8))
    assert caught.value.code == "E0401"


# ---------------------------------------------------------------------- the gradient, and what follows from it


def rate(z: Tensor, u: Tensor, rank: int, eps: float) -> Tensor:
    """Rᶜ(Z | U) = Σ_k ½ log det(I + α W_kᵀ W_k), of every sample."""
    alpha = rank / (z.shape[1] * eps**2)
    total = torch.zeros(len(z), dtype=z.dtype)
    for basis in u.split(rank):
        w = z @ basis.T
        total = total + 0.5 * torch.logdet(torch.eye(z.shape[1], dtype=z.dtype) + alpha * w @ w.mT)
    return total


def orthonormal_rows(rows: int, width: int) -> Tensor:
    return torch.linalg.qr(torch.randn(width, rows, dtype=torch.double)).Q.T


def raw(width: int, subspaces: int, rank: int, tokens: int, u: Tensor, **arguments: object) -> Step:
    """A step on tokens as they are, in float64, with these bases."""
    operator = Compress(subspaces=subspaces, rank=rank, norm=NoNorm(), **arguments)
    item = step(operator, floats(tokens, width))
    item.module.double()
    with torch.no_grad():
        item.module.subspaces.copy_(u)
    return item


SIZES = [(6, 2, 3, 9), (11, 3, 5, 7), (8, 1, 2, 3), (5, 2, 4, 1)]


@pytest.mark.parametrize(("width", "subspaces", "rank", "tokens"), SIZES)
@pytest.mark.parametrize("size", [0.01, 1.0, 3.0])
def test_the_exact_step_is_the_gradient_of_the_rate(
    width: int, subspaces: int, rank: int, tokens: int, size: float
) -> None:
    torch.manual_seed(tokens)
    u = torch.randn(subspaces * rank, width, dtype=torch.double)
    item = raw(width, subspaces, rank, tokens, u, gradient="exact", step=0.3, eps=0.6)
    z = (size * torch.randn(2, tokens, width, dtype=torch.double)).requires_grad_()
    (wanted,) = torch.autograd.grad(rate(z, u, rank, 0.6).sum(), z)
    assert ((z - item.module(z)) / 0.3 - wanted).abs().max() < 10 * EXACT
    assert (item.module.explain(z)["gradient"] - wanted).abs().max() < 10 * EXACT


@pytest.mark.parametrize(("width", "subspaces", "rank", "tokens"), SIZES)
@pytest.mark.parametrize("fraction", [0.5, 1.0, 1.9])
@pytest.mark.parametrize("size", [0.01, 1.0, 30.0])
def test_the_exact_step_decreases_the_rate_of_every_input(
    width: int, subspaces: int, rank: int, tokens: int, fraction: float, size: float
) -> None:
    torch.manual_seed(tokens)
    u = torch.randn(subspaces * rank, width, dtype=torch.double)
    item = raw(width, subspaces, rank, tokens, u, gradient="exact", step=Relative(fraction=fraction))
    z = size * torch.randn(20, tokens, width, dtype=torch.double)
    assert (rate(item.module(z), u, rank, 0.5) < rate(z, u, rank, 0.5)).all()


def test_a_step_of_twice_the_bound_increases_the_rate_of_small_tokens() -> None:
    """What W0811 warns of."""
    torch.manual_seed(0)
    u = orthonormal_rows(6, 6)
    item = raw(6, 2, 3, 9, u, gradient="exact", step=Relative(fraction=2.1))
    z = 0.01 * torch.randn(20, 9, 6, dtype=torch.double)
    assert (rate(item.module(z), u, 3, 0.5) > rate(z, u, 3, 0.5)).all()


def test_a_step_above_the_bound_takes_two_inputs_to_one_result() -> None:
    """What W0810 warns of: in one dimension s -> s (1 - κα / (1 + α s²)) is zero at s = 0 and at s = √((κα - 1)/α)."""
    u = torch.ones(1, 1, dtype=torch.double)
    item = raw(1, 1, 1, 1, u, gradient="exact", step=Relative(fraction=1.5))
    same = ((1.5 - 1) / item.operator.alpha(1)) ** 0.5
    assert item.module(torch.full((1, 1, 1), same, dtype=torch.double)).abs().max() < EXACT


def test_neumann_is_the_exact_gradient_to_first_order() -> None:
    """The series leaves out (α s²)² and more: its relative error falls with the fourth power of the size."""
    torch.manual_seed(3)
    u = orthonormal_rows(10, D)
    exact, series = (raw(D, 2, P, N, u, gradient=gradient, step=0.3) for gradient in ("exact", "neumann"))
    unit = torch.nn.functional.normalize(torch.randn(2, N, D, dtype=torch.double), dim=-1)
    errors = []
    for size in (0.04, 0.02, 0.01):
        z = size * unit
        wanted = exact.module.explain(z)["gradient"].detach()
        found = series.module.explain(z)["gradient"].detach()
        errors.append(float((found - wanted).norm() / wanted.norm()))
    for before, after in pairwise(errors):
        assert 15 < before / after < 17
    assert errors[0] < 1e-4


def test_neumann_fails_outside_of_its_radius() -> None:
    """Unit tokens at the sizes that the warning's numbers were first found with: the step increases the rate."""
    torch.manual_seed(0)
    tokens, width, rank = 24, 32, 8
    u = orthonormal_rows(width, width)
    z = torch.nn.functional.normalize(torch.randn(20, tokens, width, dtype=torch.double), dim=-1)
    exact, series = (
        raw(width, 4, rank, tokens, u, gradient=gradient, step=Relative(fraction=0.5))
        for gradient in ("exact", "neumann")
    )
    alpha = exact.operator.alpha(tokens)
    assert all(alpha * torch.linalg.matrix_norm(z @ basis.T, 2).min() ** 2 > 1 for basis in u.split(rank))
    before = rate(z, u, rank, 0.5)
    assert (rate(exact.module(z), u, rank, 0.5) < before).all()
    wanted = exact.module.explain(z)["gradient"]
    assert (series.module.explain(z)["gradient"] - wanted).norm() > wanted.norm()
    # The published sizes of layer-normalised tokens are √d times these.
    normalised_tokens = width**0.5 * z
    assert (
        rate(series.module(normalised_tokens), u, rank, 0.5) > rate(normalised_tokens, u, rank, 0.5)
    ).all()


def test_gradients_are_those_of_finite_differences() -> None:
    item = step(Compress(subspaces=2, rank=3, gradient="exact"), floats(4, 5))
    module = item.module.double()
    z = torch.randn(2, 4, 5, dtype=torch.double, requires_grad=True)
    # The step follows ‖U‖ and is not learned through it: only the tokens are checked here.
    assert torch.autograd.gradcheck(module, (z,))
    fixed = step(Compress(subspaces=2, rank=3, gradient="exact", step=0.1), floats(4, 5)).module.double()
    weights = {name: value.detach().clone().requires_grad_() for name, value in fixed.named_parameters()}

    def run(z: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(fixed, dict(zip(weights, values, strict=True)), (z,))

    assert torch.autograd.gradcheck(run, (z, *weights.values()))


def test_the_relative_step_follows_the_weights_and_is_not_learned_through() -> None:
    item = step(VARIANTS["exact_raw"], TOKENS)
    z = torch.randn(2, N, D)
    with torch.no_grad():
        before = branch(item, z)
        item.module.subspaces.mul_(3)
        assert (item.module(z) - z - branch(item, z)).abs().max() < SINGLE
        assert (branch(item, z) - before).abs().max() > SINGLE
    assert not item.module._rate(z, {}).requires_grad


@pytest.mark.parametrize("shape", [(12, 5), (5, 12), (8, 8)])
@pytest.mark.parametrize("kind", ["random", "orthonormal", "one direction", "nearly equal"])
def test_the_spectral_norm_is_exact_in_both_faces(shape: tuple[int, int], kind: str) -> None:
    """In ONNX it is found by squaring: also where the largest singular values agree, or all but."""
    torch.manual_seed(1)
    rows, width = shape
    left, values, right = torch.linalg.svd(torch.randn(rows, width), full_matrices=False)
    if kind == "orthonormal":
        values = torch.ones_like(values)
    if kind == "one direction":
        values = torch.zeros_like(values).index_fill(0, torch.tensor([0]), 7.0)
    if kind == "nearly equal":
        values = 1 - 1e-5 * torch.arange(len(values))
    operator = Compress(subspaces=rows, rank=1, gradient="exact", norm=NoNorm(), step=Relative(fraction=1.0))
    item = step(operator, floats(N, width))
    with torch.no_grad():
        item.module.subspaces.copy_(left @ torch.diag(values) @ right)
    # Near zero the step is Z - UᵀU Z / ‖U‖².
    z = 1e-4 * torch.randn(2, N, width)
    u = item.module.subspaces.detach().double()
    wanted = z.double() - z.double() @ (u.T @ u) / values[0].double() ** 2
    (exported,) = item.onnx(z)
    for found in (exported, item.module(z).detach().numpy()):
        assert np.abs(found - wanted.numpy()).max() < 2e-6 * float(z.abs().max())


# ---------------------------------------------------------------------- arithmetic


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


# ---------------------------------------------------------------------- what it says of itself


def test_derived_steps_are_counted() -> None:
    exact = Compress(subspaces=2, rank=P, gradient="exact", constraint="orthonormal").infer(TOKENS)
    assert set(exact.slots) == {"norm_weight", "norm_bias", "subspaces"}
    assert exact.slots["subspaces"].constraint == "orthonormal"
    m = 2 * P
    maps, gram_and_solve, factors = 2 * (2 * N * D * m), 2 * (2 * N * P * m), 2 * P**3 // 3
    assert exact.flops == 5 * N * D + maps + gram_and_solve + factors
    undone = Decompress(**CERTIFIED, iterations="certified").infer(TOKENS)
    assert undone.flops == 23 * (maps + gram_and_solve + factors)
    borrowed = VARIANTS["exact_bases"].infer(TOKENS)
    assert borrowed.weights["subspaces"] == Weight("axes", floats(2 * P, D))


def guards(**arguments: object) -> list[str]:
    return [guard.code for guard in Compress(**arguments).infer(floats(16, 8)).guards]


def test_guards_say_what_the_derivation_does_not_hold_for() -> None:
    orthonormal: dict[str, object] = {"subspaces": 2, "rank": 4, "constraint": "orthonormal"}
    assert guards(**orthonormal, gradient="exact") == []
    # α = 4 / (16 · 0.25) = 1.
    assert guards(**orthonormal, gradient="exact", step=0.99) == []
    assert guards(**orthonormal, gradient="exact", step=1.0) == ["W0810"]
    assert guards(**orthonormal, gradient="exact", step=Relative(fraction=1.2)) == ["W0810"]
    assert guards(**orthonormal, gradient="exact", step=2.0) == ["W0811"]
    assert guards(subspaces=2, rank=4, gradient="exact", step=2.0) == []
    # Some subspace has α‖W_k‖² ≥ p/ε²; all have at most p d/ε².
    assert guards(**orthonormal, gradient="neumann") == ["W0812"]
    assert guards(**orthonormal, gradient="neumann", eps=1.99) == ["W0812"]
    assert guards(**orthonormal, gradient="neumann", eps=2.01) == []
    assert guards(subspaces=2, rank=4, gradient="neumann") == []
    assert guards(subspaces=2, rank=4, gradient="neumann", norm=NoNorm()) == ["W0813"]
    assert guards(**orthonormal) == []


def test_a_guard_is_told_once_for_a_repeat() -> None:
    text = """model example {
        input z : float[16, 8]
        y = z -> repeat(3) { compress(2, 4, gradient = exact, constraint = orthonormal, step = 3) }
        output y
    }"""
    (found,) = check_text("example.crate", text)
    assert found.code == "W0811" and found.where is not None and found.where.span.text == "3"


def test_the_radius_of_the_guard_is_that_of_every_normalised_input() -> None:
    torch.manual_seed(4)
    u = orthonormal_rows(8, 8)
    for spread in (0.0, 0.1, 1.0):
        tokens = torch.randn(50, 1, 8, dtype=torch.double) + spread * torch.randn(
            50, 16, 8, dtype=torch.double
        )
        x = torch.nn.functional.layer_norm(tokens, (8,))
        sizes = torch.stack([torch.linalg.matrix_norm(x @ basis.T, 2) for basis in u.split(4)]) ** 2
        alpha = 4 / (16 * 0.5**2)
        # LayerNorm's own ε takes away a little.
        assert (alpha * sizes.amax(0) > 16 * (1 - 1e-3)).all()
        assert (alpha * sizes < 4 * 8 / 0.5**2).all()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"gradient": "attention"}, "attention has no Lipschitz constant"),
        ({"gradient": "softmax", "step": 1.0}, "attention has no Lipschitz constant"),
        ({"gradient": "neumann"}, "cube"),
        ({"norm": LayerNorm()}, "norm"),
        ({"dropout": 0.1}, "`dropout`"),
        ({"step": 0.1}, "its step is a number of its own"),
        ({"step": Learned(0.1)}, "its step is a number of its own"),
        ({"step": Relative(fraction=1.0)}, "κα‖U‖₂² = 1,"),
    ],
)
def test_what_breaks_the_certificate_is_said(arguments: dict[str, object], words: str) -> None:
    operator = Compress(**(CERTIFIED | arguments))
    for found in (operator.certificate(TOKENS), operator.inverse(CertifiedInverse(), TOKENS)):
        assert isinstance(found, NoInverse) and words in found.reason and found.help


def test_the_certificate_has_its_number() -> None:
    found = Compress(**CERTIFIED, step=Relative(fraction=0.75)).certificate(TOKENS)
    assert isinstance(found, Certificate) and found.stretch == pytest.approx(4)
    back = Decompress(**CERTIFIED, step=Relative(fraction=0.75), iterations="certified").certificate(TOKENS)
    assert isinstance(back, Certificate) and back.stretch == pytest.approx(1.75)


@pytest.mark.parametrize(
    "mode", [LearnedInverse(), TiedInverse(), FixedPoint(iterations=3), CertifiedInverse()]
)
@pytest.mark.parametrize("handed", [{"mask": KEPT}, {"step": PER_SAMPLE}, {"scale": PER_SAMPLE}])
def test_what_is_handed_over_cannot_be_undone(mode: Mode, handed: dict[str, object]) -> None:
    found = Compress(subspaces=K, rank=P, **handed).inverse(mode, TOKENS)
    assert isinstance(found, NoInverse) and f"`{min(handed)}` is handed over" in found.reason


@pytest.mark.parametrize(
    "mode", [LearnedInverse(), TiedInverse(), FixedPoint(iterations=3), CertifiedInverse()]
)
def test_the_inverse_of_the_inverse_is_the_step(mode: Mode) -> None:
    operator = Compress(**CERTIFIED)
    there = operator.inverse(mode, TOKENS)
    assert isinstance(there, Inverse)
    back = there.operator.inverse(mode, TOKENS)
    if isinstance(mode, FixedPoint):
        assert isinstance(back, NoInverse)
    else:
        assert isinstance(back, Inverse) and back.operator == operator


def test_a_learned_inverse_has_bases_of_its_own() -> None:
    found = VARIANTS["exact_bases"].inverse(LearnedInverse(), TOKENS)
    assert isinstance(found, Inverse) and set(found.operator.infer(TOKENS).slots) >= {"subspaces"}
    tied = VARIANTS["exact_bases"].inverse(TiedInverse(), TOKENS)
    assert isinstance(tied, Inverse) and "subspaces" not in tied.operator.infer(TOKENS).slots


def test_the_bound_is_that_of_the_branch() -> None:
    """Sampled slopes come near it where tokens are small, and do not exceed it."""
    torch.manual_seed(5)
    for item in (
        step(Compress(subspaces=K, rank=P, gradient="exact", norm=NoNorm(), step=0.1), TOKENS),
        step(Compress(**(CERTIFIED | {"constraint": "none"})), TOKENS),
    ):
        bound = item.module.bound(TOKENS)
        assert bound.lipschitz is not None
        worst = 0.0
        for size in (1e-3, 0.1, 1.0, 10.0):
            a = size * torch.randn(64, N, D, dtype=torch.double)
            b = a + size * 1e-2 * torch.randn(64, N, D, dtype=torch.double)
            moved = (branch(item, a) - branch(item, b)).flatten(1).norm(dim=1)
            worst = max(worst, float((moved / (a - b).flatten(1).norm(dim=1)).max()))
        assert 0.2 * bound.lipschitz < worst <= bound.lipschitz * (1 + 1e-9)
    for variant in ("published", "softmax", "neumann", "exact", "exact_handed"):
        found = step(VARIANTS[variant], TOKENS).module.bound(TOKENS)
        assert found.lipschitz is None and found.reason


@pytest.mark.parametrize(
    ("operator", "code", "at"),
    [
        (Compress(subspaces=K, rank=P, step=Relative()), "E0305", "step"),
        (Compress(subspaces=K, rank=P, gradient="exact", scale=0.5), "E0305", "scale"),
        (Compress(subspaces=K, rank=P, gradient="exact", mask="causal"), "E0305", "mask"),
        (Compress(subspaces=K, rank=P, gradient="neumann", mask=KEPT), "E0305", "mask"),
        (Compress(subspaces=K, rank=P, gradient="exact", bases=Weight("u", floats(3, D))), "E0343", "bases"),
        (Decompress(subspaces=K, rank=P, iterations="certified"), "E0342", "iterations"),
        (Decompress(**(CERTIFIED | {"norm": LayerNorm()}), iterations="certified"), "E0342", "iterations"),
    ],
)
def test_mistakes(operator: Compress, code: str, at: str) -> None:
    with pytest.raises(Mistake) as caught:
        operator.infer(TOKENS)
    assert (caught.value.code, caught.value.at) == (code, at)
