"""`compress` and `decompress` in ONNX. Axes: B batch, N tokens, d width, K subspaces, p rank, m = K p.

Attention is the standard operator with q = k = v. The exact gradient needs the inverse of p x p matrices, for which
ONNX has no operator: it is iterated.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from crate_dsl.compiler.functions import Body
from crate_dsl.compiler.masks import Rule
from crate_dsl.compiler.operators import FLOAT32_SPACING, Typing
from crate_dsl.compiler.steps.attend.onnx_masks import of_keys, ruled
from crate_dsl.compiler.steps.compress.onnx_summaries import (
    biases_at,
    by_way_of,
    next_so_far,
    of_all,
    pooled,
    so_far,
)
from crate_dsl.compiler.steps.compress.operator import (
    LOST,
    Compress,
    Decompress,
    StatisticsStep,
    SubspaceStep,
)
from crate_dsl.compiler.steps.norm.onnx import normalise
from crate_dsl.compiler.steps.rotary.onnx import rotated
from crate_dsl.compiler.steps.rotary.operator import Rotary

#: Newton-Schulz steps towards an inverse. Eigenvalues lie in [f, f + s] with s ≤ f / (8 · 2⁻²³), see `inverted`: the
#: start is off by ρ = s / (2 f + s) ≤ 1 - 2⁻¹⁹, and each step, rescaled, leaves ρ² / (2 - ρ²): after 10 of them that
#: is 0.6, after 14 it is 2⁻³², below float32's rounding.
NEWTON_STEPS = 14

#: Squarings towards a spectral norm: the estimate from G^(2^k) is low by at most ln(n) / 2^k for n x n matrices, which
#: for n = 4096 and k = 26 is 1.2e-7, float32's rounding.
SQUARINGS = 26


def token_alpha(b: Body, rank: int, eps: float, z_bnd: str) -> str:
    """α = p / (N ε²)."""
    tokens = b("Cast", b("Shape", z_bnd, start=1, end=2), to=1)
    return b("Div", b.number(rank / eps**2), tokens)


def squared_norm(b: Body, subspaces_md: str, width_first: bool) -> str:
    """‖U‖₂², of the weight alone: G and G^(2^k), scaled to trace 1, have the trace of their product near ‖G‖₂."""
    transposed_dm = b("Transpose", subspaces_md, perm=[1, 0])
    pair = (transposed_dm, subspaces_md) if width_first else (subspaces_md, transposed_dm)
    product = b("MatMul", *pair)
    power = b("Div", product, b("Sqrt", b("ReduceSumSquare", product, keepdims=0)))
    for _ in range(SQUARINGS):
        # The trace of P² is the sum of the squares of P.
        power = b("Div", b("MatMul", power, power), b("ReduceSumSquare", power, keepdims=0))
    return b("ReduceSum", b("Mul", product, power), keepdims=0)


def inverted(b: Body, gram_bkpp: str, alpha: str, rank: int) -> tuple[str, str]:
    """A = f I + α WᵀW, and its inverse: X <- μ X (2 I - A X), each time rescaled so that A X is centred on I.

    f is 1, unless α‖W‖² is beyond what float32 holds beside 1: then it is what float32 does hold.
    """
    axes = b.integers(-2, -1)
    identity_pp = b.constant(np.eye(rank, dtype=np.float32))
    # The trace bounds the largest eigenvalue.
    size = b("ReduceSum", b("Mul", b("Mul", alpha, gram_bkpp), identity_pp), axes, keepdims=1)
    floor = b("Max", b.number(1.0), b("Mul", b.number(LOST * FLOAT32_SPACING), size))
    a_bkpp = b("Add", b("Mul", alpha, gram_bkpp), b("Mul", floor, identity_pp))
    extent = b("Add", b("Add", floor, floor), size)
    two = b.number(2.0)
    inverse_bkpp = b("Mul", b("Div", two, extent), identity_pp)
    rho = b("Div", size, extent)
    for _ in range(NEWTON_STEPS):
        square = b("Mul", rho, rho)
        rest = b("Sub", two, square)
        residue_bkpp = b("Sub", b("Mul", two, identity_pp), b("MatMul", a_bkpp, inverse_bkpp))
        inverse_bkpp = b("Mul", b("Div", two, rest), b("MatMul", inverse_bkpp, residue_bkpp))
        rho = b("Div", square, rest)
    return a_bkpp, inverse_bkpp


def split(b: Body, w_bnm: str, subspaces: int, rank: int) -> str:
    """(B, N, m) -> (B, K, N, p)."""
    return b("Transpose", b("Reshape", w_bnm, b.integers(0, 0, subspaces, rank)), perm=[0, 2, 1, 3])


def joined(b: Body, w_bknp: str, inner: int) -> str:
    """(B, K, N, p) -> (B, N, m)."""
    return b("Reshape", b("Transpose", w_bknp, perm=[0, 2, 1, 3]), b.integers(0, 0, inner))


def gram(b: Body, w_bknp: str) -> str:
    """W Wᵀ, where tokens are columns of W and rows here: (B, K, p, p)."""
    return b("MatMul", b("Transpose", w_bknp, perm=[0, 1, 3, 2]), w_bknp)


def damped(b: Body, w_bknp: str, alpha: str, rank: int) -> str:
    """(I + α W Wᵀ)⁻¹ W for every subspace."""
    a_bkpp, inverse_bkpp = inverted(b, gram(b, w_bknp), alpha, rank)
    g_bknp = b("MatMul", w_bknp, inverse_bkpp)
    # Once refined: what is left of W - G A is the rounding of A alone.
    rest_bknp = b("Sub", w_bknp, b("MatMul", g_bknp, a_bkpp))
    return b("Add", g_bknp, b("MatMul", rest_bknp, inverse_bkpp))


def spectral(b: Body, op: SubspaceStep, w_bnm: str, alpha: str, subspaces: str) -> str:
    """∇Rᶜ / α, exactly or to first order: eqs. 31 and 32."""
    w_bknp = split(b, w_bnm, op.subspaces, op.rank)
    if op.gradient == "exact":
        g_bknp = damped(b, w_bknp, alpha, op.rank)
    else:
        g_bknp = b("Sub", w_bknp, b("Mul", alpha, b("MatMul", w_bknp, gram(b, w_bknp))))
    return b("MatMul", joined(b, g_bknp, op.subspaces * op.rank), subspaces)


def factors(
    b: Body, op: SubspaceStep, typing: Typing, z_bnd: str, given: Mapping[str, str]
) -> tuple[str, str | None]:
    """α, which published layers do without; and what the branch is multiplied by: κ in those, κα in derived steps, None
    for 1.
    """
    if not op.derived:
        return "", None if op.step is None else b.scalar(op, "step", given.get("step"))
    alpha = token_alpha(b, op.rank, op.eps, z_bnd)
    if op.fraction is not None:
        # κα‖U‖² = c: α cancels, and orthonormal bases have ‖U‖ = 1.
        if op.constraint == "orthonormal":
            return alpha, b.number(op.fraction)
        width = typing.output.shape[-1].bound
        norm = squared_norm(b, given["subspaces"], width < op.subspaces * op.rank)
        return alpha, b("Div", b.number(op.fraction), norm)
    if op.step is None:
        return alpha, b.number(0.5)
    return alpha, b("Mul", b.scalar(op, "step", given.get("step")), alpha)


def branch(
    b: Body,
    op: SubspaceStep,
    typing: Typing,
    z_bnd: str,
    rate: str | None,
    alpha: str,
    given: Mapping[str, str],
) -> str:
    """F(Z): what `compress` adds."""
    x_bnd, w_bnm = projected(b, op, z_bnd, given)
    if op.spectral:
        assert rate is not None
        return b("Neg", b("Mul", rate, spectral(b, op, w_bnm, alpha, given["subspaces"])))
    if op.attends:
        heads_bnm = attended(b, op, typing, w_bnm, given)
    else:
        heads_bnm = joined(b, summarised(b, op, typing, w_bnm, given), op.subspaces * op.rank)
    return led_back(b, op, x_bnd, heads_bnm, rate, alpha, given)


def projected(b: Body, op: SubspaceStep, z_bnd: str, given: Mapping[str, str]) -> tuple[str, str]:
    """X = norm Z, and W."""
    x_bnd = normalise(b, op.norm, z_bnd, given.get("norm_weight"), given.get("norm_bias"))
    w_bnm = b("MatMul", x_bnd, b("Transpose", given["subspaces"], perm=[1, 0]))
    bias = given.get("projection_bias")
    return x_bnd, w_bnm if bias is None else b("Add", w_bnm, bias)


def attended(b: Body, op: SubspaceStep, typing: Typing, w_bnm: str, given: Mapping[str, str]) -> str:
    """Attention with q = k = v, but for a rotation of what is compared: (B, N, m)."""
    compared_bnm, mask = placed(b, op, w_bnm), None
    if isinstance(op.mask, Rule):
        mask = ruled(b, op.mask, typing.facts, w_bnm, given.get("mask"))
    elif "mask" in given:
        mask = of_keys(b, given["mask"])
    return attention(b, op, compared_bnm, compared_bnm, w_bnm, given, mask, causal=op.mask == "causal")


def placed(b: Body, op: SubspaceStep, w_bnm: str) -> str:
    """What is compared: W, rotated by its places where that is asked for."""
    if not isinstance(op.positions, Rotary):
        return w_bnm
    return rotated(b, w_bnm, op.subspaces, op.rank, op.positions.base)


def attention(
    b: Body,
    op: SubspaceStep,
    query_bnm: str,
    key_bmm: str,
    value_bmm: str,
    given: Mapping[str, str],
    mask: str | None,
    causal: bool = False,
) -> str:
    """Attention within the subspaces, with a scale that may be a tensor: (B, N, m)."""
    scale = given.get("scale")
    return b(
        "Attention",
        query_bnm if scale is None else b("Mul", query_bnm, b.scalar(op, "scale", scale)),
        key_bmm,
        value_bmm,
        *([] if mask is None else [mask]),
        q_num_heads=op.subspaces,
        kv_num_heads=op.subspaces,
        scale=op.softmax_scale if scale is None else 1.0,
        is_causal=int(causal),
    )


def summarised(b: Body, op: SubspaceStep, typing: Typing, w_bnm: str, given: Mapping[str, str]) -> str:
    """What statistics or representatives make of the projected tokens: (B, K, N, p)."""
    w_bknp = split(b, w_bnm, op.subspaces, op.rank)
    if op.gradient == "representatives":
        r_bkmp = w_bknp
        if op.pool is not None:
            pooled_bmm = pooled(b, w_bnm, op.pool, typing.facts, op.subspaces * op.rank)
            r_bkmp = split(b, pooled_bmm, op.subspaces, op.rank)
        steps = (given["representatives_step"], given["tokens_step"])
        return by_way_of(b, r_bkmp, w_bknp, op.softmax_scale, *steps)
    if not op.running:
        return of_all(b, w_bknp, given["temperature"], given.get("mask"))
    count = b("Shape", w_bnm, start=1, end=2)
    bias_kn = b("Slice", given["energy_bias"], b.integers(0), count, b.integers(1))
    return so_far(b, w_bknp, op.rank, given["temperature"], bias_kn, kept_bn=given.get("mask"))


def led_back(
    b: Body,
    op: SubspaceStep,
    x_bnd: str,
    heads_bnm: str,
    rate: str | None,
    alpha: str,
    given: Mapping[str, str],
) -> str:
    """What the heads amount to: (B, N, m) -> (B, N, d)."""
    subspaces = given["subspaces"]
    if op.gradient == "softmax":
        mssa_bnd = b("Mul", alpha, b("MatMul", heads_bnm, subspaces))
        out_bnd = b("Sub", mssa_bnd, x_bnd)
    elif op.tied:
        out_bnd = b("MatMul", heads_bnm, subspaces)
    else:
        out_bnd = b("MatMul", heads_bnm, b("Transpose", given["out_weight"], perm=[1, 0]))
        if op.biased:
            out_bnd = b("Add", out_bnd, given["out_bias"])
    return out_bnd if rate is None else b("Mul", rate, out_bnd)


def compress(b: Body, op: Compress, typing: Typing, z_bnd: str, **given: str) -> str:
    alpha, rate = factors(b, op, typing, z_bnd, given)
    return b("Add", z_bnd, branch(b, op, typing, z_bnd, rate, alpha, given))


def decompress(b: Body, op: Decompress, typing: Typing, y_bnd: str, **given: str) -> str:
    alpha, rate = factors(b, op, typing, y_bnd, given)

    def turn(inner: Body, x_bnd: str) -> str:
        return inner("Sub", y_bnd, branch(inner, op, typing, x_bnd, rate, alpha, given))

    return b.repeat(op.sweeps(FLOAT32_SPACING), y_bnd, turn)


def statistics_step(
    b: Body, op: StatisticsStep, typing: Typing, z_bnd: str, past_b: str, sums_b2kq: str, **given: str
) -> tuple[str, str]:
    x_bnd, w_bnm = projected(b, op, z_bnd, given)
    w_bknp = split(b, w_bnm, op.subspaces, op.rank)
    bias_bkn = biases_at(b, given["energy_bias"], past_b, w_bnm)
    heads_bknp, after_b2kq = next_so_far(b, w_bknp, op.rank, given["temperature"], bias_bkn, sums_b2kq)
    alpha, rate = factors(b, op, typing, z_bnd, given)
    heads_bnm = joined(b, heads_bknp, op.subspaces * op.rank)
    return b("Add", z_bnd, led_back(b, op, x_bnd, heads_bnm, rate, alpha, given)), after_b2kq
