"""`flow` in ONNX: one step of the solver, repeated; or the closed form, with eigenvectors found by rotations.

Axes: B batch, N tokens, d width, K subspaces, p rank, m = K p.
"""

from __future__ import annotations

import numpy as np

from crate_dsl.compiler.functions import Body
from crate_dsl.compiler.operators import Typing
from crate_dsl.compiler.steps.compress.onnx import damped, gram, joined, split, token_alpha
from crate_dsl.compiler.steps.flow.operator import OMEGA_STEPS, POLISHING_STEPS, Flow


def flow(b: Body, op: Flow, typing: Typing, z_bnd: str, **given: str) -> str:
    subspaces_md, h = given["subspaces"], op.time / op.count
    transposed_dm = b("Transpose", subspaces_md, perm=[1, 0])
    alpha = token_alpha(b, op.rank, op.eps, z_bnd)

    if op.solver == "exact":
        w_bknp = split(b, b("MatMul", z_bnd, transposed_dm), op.subspaces, op.rank)
        y_bkpp = b("Mul", alpha, gram(b, w_bknp))
        factor_bkpp = decay(b, y_bkpp, b("Mul", b.number(2 * op.time), alpha), op.rank)
        change_bknp = b("Sub", b("MatMul", w_bknp, factor_bkpp), w_bknp)
        change_bnm = joined(b, change_bknp, op.subspaces * op.rank)
        return b("Add", z_bnd, b("MatMul", change_bnm, subspaces_md))

    def moved(b: Body, z_bnd: str, slope_bnd: str, h: float) -> str:
        return b("Add", z_bnd, b("Mul", b.number(h), slope_bnd))

    def descent(b: Body, z_bnd: str) -> str:
        """-∇Rᶜ(Z)."""
        w_bknp = split(b, b("MatMul", z_bnd, transposed_dm), op.subspaces, op.rank)
        g_bnm = joined(b, damped(b, w_bknp, alpha, op.rank), op.subspaces * op.rank)
        return b("Neg", b("Mul", alpha, b("MatMul", g_bnm, subspaces_md)))

    def turn(b: Body, z_bnd: str) -> str:
        first = descent(b, z_bnd)
        if op.solver == "euler":
            return moved(b, z_bnd, first, h)
        if op.solver == "heun":
            second = descent(b, moved(b, z_bnd, first, h))
            return moved(b, z_bnd, b("Add", first, second), h / 2)
        second = descent(b, moved(b, z_bnd, first, h / 2))
        third = descent(b, moved(b, z_bnd, second, h / 2))
        ends = b("Add", first, descent(b, moved(b, z_bnd, third, h)))
        middle = b("Mul", b.number(2.0), b("Add", second, third))
        return moved(b, z_bnd, b("Add", ends, middle), h / 6)

    return b.repeat(op.count, z_bnd, turn)


# ------------------------------------------------------------------ the closed form

#: Sweeps of rotations over all pairs. They converge quadratically: six to eight are the usual number in float32.
SWEEPS = 10
#: The smallest float32 that has all its digits.
TINY = 2.0**-126


def decay(b: Body, y_bkpp: str, span: str, rank: int) -> str:
    """f(Y) = (ω(Y) / Y)^(1/2) of symmetric matrices, by their eigenvalues and eigenvectors."""
    values_bkp, vectors_bkpq = eigen(b, y_bkpp, rank)
    half = b("Mul", b.number(0.5), log_decay(b, values_bkp, span))
    scaled_bkpq = b("Mul", vectors_bkpq, b("Unsqueeze", b("Exp", half), b.integers(-2)))
    return b("MatMul", scaled_bkpq, b("Transpose", vectors_bkpq, perm=[0, 1, 3, 2]))


def log_decay(b: Body, y: str, span: str) -> str:
    """The logarithm q of ω / y, where ω e^ω = y e^(y - span): ln ω + ω = ln y + y - span."""
    one = b.number(1.0)
    y = b("Max", y, b.number(TINY))
    log_y = b("Log", y)
    c = b("Sub", b("Add", y, log_y), span)
    omega = b("Min", c, b("Log", b("Max", c, one)))
    for _ in range(OMEGA_STEPS):
        grown = b("Exp", omega)
        off = b("Sub", b("Add", omega, grown), c)
        omega = b("Sub", omega, b("Div", off, b("Add", one, grown)))
    q = b("Sub", omega, log_y)
    for _ in range(POLISHING_STEPS):
        grown = b("Exp", q)
        off = b("Add", b("Add", q, b("Mul", y, b("Sub", grown, one))), span)
        q = b("Sub", q, b("Div", off, b("Add", one, b("Mul", y, grown))))
    return q


def eigen(b: Body, y_bkpp: str, rank: int) -> tuple[str, str]:
    """Eigenvalues (B, K, q) and eigenvectors (B, K, p, q) of symmetric matrices; q is p, made even by a zero.

    Jacobi's rotations, q/2 at once: of the pairs (0, 1), (2, 3), …, after which the indices move round as in a
    tournament, so that in q - 1 rounds every pair meets (Brent and Luk 1985).
    """
    even = rank + rank % 2
    wide = np.eye(rank, even, dtype=np.float32)
    identity = np.eye(even, dtype=np.float32)
    padded = b("MatMul", b("MatMul", b.constant(wide.T.copy()), y_bkpp), b.constant(wide))
    # Y above, the eigenvectors so far below: both are multiplied from the right, Y from the left as well.
    vectors = b("Add", b("Mul", padded, b.number(0.0)), b.constant(identity))
    start = b("Concat", padded, vectors, axis=-2)
    found = b.repeat(SWEEPS * (even - 1), start, lambda inner, state: rotated(inner, state, even))
    values, vectors = b.several("Split", 2, found, axis=-2, num_outputs=2)
    diagonal = b("ReduceSum", b("Mul", values, b.constant(identity)), b.integers(-1), keepdims=0)
    return diagonal, b("MatMul", b.constant(wide), vectors)


def rotated(b: Body, state: str, even: int) -> str:
    """One round: rotations that make zero of the entries (0, 1), (2, 3), …, and the indices moved on."""
    identity = np.eye(even, dtype=np.float32)
    swap = identity[np.arange(even) ^ 1]
    # The first stays, the others move round: top row to the right, bottom row to the left.
    top, bottom = list(range(0, even, 2)), list(range(1, even, 2))
    if even > 2:
        top, bottom = [top[0], bottom[0], *top[1:-1]], [*bottom[1:], top[-1]]
    moved = np.stack([top, bottom], 1).flatten()
    eye, swapped, order = b.constant(identity), b.constant(swap), b.constant(identity[:, moved].copy())
    firsts, seconds = b.constant(identity[:, 0::2].copy()), b.constant(identity[:, 1::2].copy())
    twice = b.constant((identity[:, 0::2] + identity[:, 1::2]).T.copy())
    signed = b.constant((identity[:, 0::2] - identity[:, 1::2]).T.copy())

    matrix, vectors = b.several("Split", 2, state, axis=-2, num_outputs=2)
    diagonal = b("ReduceSum", b("Mul", matrix, eye), b.integers(-1), keepdims=0)
    beside = b("MatMul", b("ReduceSum", b("Mul", matrix, swapped), b.integers(-1), keepdims=0), firsts)
    apart = b("Sub", b("MatMul", diagonal, seconds), b("MatMul", diagonal, firsts))
    # tan = 2 a sign(d) / (|d| + √(d² + 4 a²)), the smaller of two angles.
    double = b("Add", beside, beside)
    length = b("Sqrt", b("Add", b("Mul", apart, apart), b("Mul", double, double)))
    reach = b("Max", b("Add", b("Abs", apart), length), b.number(TINY))
    sign = b("Where", b("Less", apart, b.number(0.0)), b.number(-1.0), b.number(1.0))
    tangent = b("Div", b("Mul", double, sign), reach)
    cosine = b("Div", b.number(1.0), b("Sqrt", b("Add", b.number(1.0), b("Mul", tangent, tangent))))
    sine = b("Mul", tangent, cosine)
    last = b.integers(-1)
    along = b("Mul", b("Unsqueeze", b("MatMul", cosine, twice), last), eye)
    across = b("Mul", b("Unsqueeze", b("MatMul", sine, signed), last), swapped)
    turn = b("MatMul", b("Add", along, across), order)
    turned = b("MatMul", b("Transpose", turn, perm=[0, 1, 3, 2]), b("MatMul", matrix, turn))
    return b("Concat", turned, b("MatMul", vectors, turn), axis=-2)
