"""`compress` and `decompress` as their formulas say, in float64, and the variants that tests hold to them."""

from __future__ import annotations

import torch
from torch import Tensor

from crate_dsl.compiler.operators import (
    Learned,
    Port,
    Weight,
)
from crate_dsl.compiler.steps.compress.operator import Compress, Decompress, Relative
from crate_dsl.compiler.steps.compress.pooling import Pool
from crate_dsl.compiler.steps.norm.operator import LayerNorm, NoNorm, RmsNorm
from crate_dsl.compiler.types import Dim, Grid, Layout, Segment, TensorType, floats
from tests.steps.harness import Step, step

#: Rounding of float64 over sums of a few dozen terms.
EXACT = 1e-12
#: Rounding of float32 over sums of a few dozen terms of size 1 to 10.
SINGLE = 3e-5

N, D, K, P = 7, 11, 3, 5
#: A class token, patches of a picture, a register: steps that need no grid do not look.
GRID = Grid(rows=1, columns=5, patch=2, channels=3)
TOKENS = floats(
    N,
    D,
    layout=Layout((Segment("first", Dim(1)), Segment("patches", Dim(5), grid=GRID), Segment("last", Dim(1)))),
)
KEPT = Port(TensorType("bool", (Dim(N),)))
PER_SAMPLE = Port(floats())
#: Arguments whose inverse is certain.
CERTIFIED = {"subspaces": 2, "rank": P, "gradient": "exact", "norm": NoNorm(), "constraint": "orthonormal"}
STATISTICS = {"subspaces": K, "rank": P, "gradient": "statistics"}
CAUSAL = STATISTICS | {"mask": "causal"}
POOLED = {
    "subspaces": K,
    "rank": P,
    "gradient": "representatives",
    "representatives": Pool(rows=1, columns=3),
}
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
    "statistics": Compress(**STATISTICS),
    "statistics_one": Compress(**(STATISTICS | {"subspaces": 1})),
    "statistics_tied": Compress(**STATISTICS, out="tied", norm=RmsNorm()),
    "statistics_step": Compress(**STATISTICS, step=Learned(0.3, (D,)), norm=NoNorm(), bias=False),
    "statistics_kept": Compress(**STATISTICS, mask=KEPT, step=PER_SAMPLE),
    "statistics_causal": Compress(**CAUSAL),
    "statistics_length": Compress(**CAUSAL, length=N + 2, step=Learned(0.3, (D,))),
    "statistics_causal_tied": Compress(**CAUSAL, out="tied", step=0.4),
    "statistics_no_bias": Compress(**CAUSAL, bias=False, bases=Weight("axes", floats(K * P, D))),
    "representatives": Compress(**POOLED),
    "representatives_published": Compress(subspaces=K, rank=P, gradient="representatives"),
    "representatives_tied": Compress(**POOLED, out="tied", step=0.4, scale=0.7),
    "representatives_tokens": Compress(**(POOLED | {"representatives": "tokens"}), step=Learned(0.3, (D,))),
    "undone": Decompress(subspaces=K, rank=P),
    "undone_causal": Decompress(subspaces=K, rank=P, mask="causal", step=0.3, iterations=3),
    "undone_softmax": Decompress(subspaces=K, rank=P, gradient="softmax", step=0.05, iterations=2),
    "undone_exact": Decompress(subspaces=K, rank=P, gradient="exact", iterations=4),
    "undone_statistics": Decompress(**CAUSAL, step=0.1, iterations=2),
    "undone_representatives": Decompress(**POOLED, step=0.1),
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
    derived = {"softmax": 0.5 / alpha, "neumann": 0.5 / lipschitz, "exact": 0.5 / lipschitz}.get(
        op.gradient, 1.0
    )
    kappa = relative / lipschitz if isinstance(op.step, Relative) else number("step", derived)
    if op.gradient in ("statistics", "representatives"):
        of = statistics if op.gradient == "statistics" else representatives
        heads = of(item, [x @ basis.T + shift for basis, shift in zip(*bases(op, w), strict=True)], w, given)
        joined = torch.cat(heads, -1)
        return kappa * (joined @ u if op.tied else joined @ w["out_weight"].T + w.get("out_bias", 0.0))
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


def bases(op: Compress, w: dict[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """The bases of each subspace, and what is added to what is projected onto them."""
    shift = w.get("projection_bias", torch.zeros(op.subspaces * op.rank, dtype=torch.double))
    return list(w["subspaces"].split(op.rank)), list(shift.split(op.rank))


def statistics(
    item: Step, projected: list[Tensor], w: dict[str, Tensor], given: dict[str, Tensor]
) -> list[Tensor]:
    """TSSA, token by token: sums are over the tokens that `t` may know of and that count."""
    batch, count, rank = projected[0].shape
    causal = item.operator.mask == "causal"
    kept = given.get("mask", torch.ones(batch, count, dtype=torch.bool))
    shares = torch.zeros(len(projected), batch, count, dtype=torch.double)

    def known(t: int) -> range:
        return range(t + 1) if causal else range(count)

    squares = [(w_k * kept[:, :, None]) ** 2 for w_k in projected]
    for k, square in enumerate(squares):
        for t in range(count):
            total = sum(square[:, i] for i in known(t))
            terms = square[:, t] / total.clamp_min(1e-12 if causal else 1e-24)
            if causal:
                terms = terms + w["energy_bias"][k, t]
            shares[k, :, t] = w["temperature"][k] * terms.sum(-1)
    membership = shares.exp() / shares.exp().sum(0)
    heads = []
    for k, square in enumerate(squares):
        out = torch.zeros(batch, count, rank, dtype=torch.double)
        for t in range(count):
            mass = sum(membership[k, :, i] * kept[:, i] for i in known(t))
            moment = sum(membership[k, :, i, None] * square[:, i] for i in known(t)) / (mass[:, None] + 1e-8)
            mine = projected[k][:, t] * (membership[k, :, t] * kept[:, t])[:, None]
            out[:, t] = -mine / (1 + moment)
        heads.append(out)
    return heads


def representatives(
    item: Step, projected: list[Tensor], w: dict[str, Tensor], given: dict[str, Tensor]
) -> list[Tensor]:
    """CBSA, subspace by subspace; cells of the grid are averaged one by one."""
    op, heads = item.operator, []
    for k, w_k in enumerate(projected):
        r = w_k
        if op.representatives != "tokens":
            pool, grid = op.representatives or Pool(rows=8, columns=8), GRID
            patches = w_k[:, 1 : 1 + grid.rows * grid.columns].reshape(len(w_k), grid.rows, grid.columns, -1)
            means = []
            for i in range(pool.rows):
                for j in range(pool.columns):
                    top, bottom = i * grid.rows // pool.rows, -(-(i + 1) * grid.rows // pool.rows)
                    left, right = j * grid.columns // pool.columns, -(-(j + 1) * grid.columns // pool.columns)
                    means.append(patches[:, top:bottom, left:right].mean((1, 2)))
            r = torch.stack(means, 1)
        s = op.rank**-0.5 if op.scale is None else op.scale
        assignment = (s * r @ w_k.mT).softmax(-1)
        moved = r + w["representatives_step"][k] * assignment @ w_k
        contracted = (s * moved @ moved.mT).softmax(-1) @ moved
        heads.append(w["tokens_step"][k] * assignment.mT @ contracted)
    return heads


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
