"""Token statistics and representatives in ONNX. Axes: B batch, K subspaces, N tokens, M representatives, p rank."""

from __future__ import annotations

import numpy as np
import onnx

from crate_dsl.compiler.functions import Body
from crate_dsl.compiler.steps.compress.operator import ALL_SQUARES, MEMBERSHIPS, SQUARES_SO_FAR
from crate_dsl.compiler.steps.compress.pooling import Pool, span
from crate_dsl.compiler.steps.position.operator import Patches


def of_all(b: Body, w_bknp: str, temperature_k: str, kept_bn: str | None) -> str:
    """The vision form of token statistics: -(Π W) / (1 + m)."""
    w_bknp = _where(b, kept_bn, w_bknp, 1, 3)
    squares_bknp = b("Mul", w_bknp, w_bknp)
    all_bk1p = b("Max", b("ReduceSum", squares_bknp, b.integers(2), keepdims=1), b.number(ALL_SQUARES))
    energies_bkn = b("ReduceSum", b("Div", squares_bknp, all_bk1p), b.integers(3), keepdims=0)
    membership_bkn = _where(b, kept_bn, _membership(b, energies_bkn, temperature_k), 1)
    total_bk1 = b("ReduceSum", membership_bkn, b.integers(2), keepdims=1)
    shares_bkn = b("Div", membership_bkn, b("Add", total_bk1, b.number(MEMBERSHIPS)))
    moments_bk1p = b("MatMul", b("Unsqueeze", shares_bkn, b.integers(2)), squares_bknp)
    return _damped(b, w_bknp, b("Unsqueeze", membership_bkn, b.integers(3)), moments_bk1p)


def so_far(
    b: Body, w_bknp: str, rank: int, temperature_k: str, bias_kn: str, kept_bn: str | None = None
) -> str:
    """The language form: -(Π W) / (1 + m)."""
    w_bknp = _where(b, kept_bn, w_bknp, 1, 3)
    squares_bknp = b("Mul", w_bknp, w_bknp)
    membership_bkn = _membership_so_far(
        b, rank, squares_bknp, _running(b, squares_bknp), temperature_k, bias_kn
    )
    membership_bkn = _where(b, kept_bn, membership_bkn, 1)
    membership_bkn1 = b("Unsqueeze", membership_bkn, b.integers(3))
    weighted_bknp = _running(b, b("Mul", membership_bkn1, squares_bknp))
    memberships_bkn1 = b("Unsqueeze", _running(b, membership_bkn, precise=True), b.integers(3))
    return _damped_by_means(b, w_bknp, membership_bkn1, weighted_bknp, memberships_bkn1)


def next_so_far(
    b: Body, w_bknp: str, rank: int, temperature_k: str, bias_bkn: str, sums_b2kq: str
) -> tuple[str, str]:
    """The language form of the next tokens, given the sums over those before: -(Π W) / (1 + m), and the sums with them.

    The two are a number as float32 has it, and the rest; q = 2 p + 1 are Σ w², Σ π w² and Σ π.
    """
    sizes = b.integers(rank, rank, 1)
    before_bk1q = b("Unsqueeze", b("Gather", sums_b2kq, b.constant(np.asarray(0)), axis=1), b.integers(2))
    squares_bk1p, weighted_bk1p, memberships_bk11 = b.several("Split", 3, before_bk1q, sizes, axis=3)
    squares_bknp = b("Mul", w_bknp, w_bknp)
    all_bknp = b("Add", _running(b, squares_bknp), squares_bk1p)
    membership_bkn = _membership_so_far(b, rank, squares_bknp, all_bknp, temperature_k, bias_bkn)
    membership_bkn1 = b("Unsqueeze", membership_bkn, b.integers(3))
    # Π w² and Π, side by side.
    parts_bknq = b("Concat", b("Mul", membership_bkn1, squares_bknp), membership_bkn1, axis=3)
    before_bk1q = b("Concat", weighted_bk1p, memberships_bk11, axis=3)
    running_bknq = b("Add", _running(b, parts_bknq, precise=True), before_bk1q)
    weighted_bknp, memberships_bkn1 = b.several("Split", 2, running_bknq, b.integers(rank, 1), axis=3)
    heads_bknp = _damped_by_means(b, w_bknp, membership_bkn1, weighted_bknp, memberships_bkn1)
    added_bkq = b("ReduceSum", b("Concat", squares_bknp, parts_bknq, axis=3), b.integers(2), keepdims=0)
    before_bkq = b("ReduceSum", _double(b, sums_b2kq), b.integers(1), keepdims=0)
    after_bkq = b("Add", before_bkq, _double(b, added_bkq))
    first_bkq = b("Cast", after_bkq, to=onnx.TensorProto.FLOAT)
    rest_bkq = b("Cast", b("Sub", after_bkq, _double(b, first_bkq)), to=onnx.TensorProto.FLOAT)
    both = (b("Unsqueeze", half_bkq, b.integers(1)) for half_bkq in (first_bkq, rest_bkq))
    return heads_bknp, b("Concat", *both, axis=1)


def _double(b: Body, values: str) -> str:
    return b("Cast", values, to=onnx.TensorProto.DOUBLE)


def _membership_so_far(
    b: Body, rank: int, squares_bknp: str, all_bknp: str, temperature_k: str, bias: str
) -> str:
    """Π of each token's share of the squares so far."""
    shares_bknp = b("Div", squares_bknp, b("Max", all_bknp, b.number(SQUARES_SO_FAR)))
    # A channel's bias is added to each of p shares.
    shares_bkn = b("ReduceSum", shares_bknp, b.integers(3), keepdims=0)
    energies_bkn = b("Add", shares_bkn, b("Mul", b.number(rank), bias))
    return _membership(b, energies_bkn, temperature_k)


def _damped_by_means(
    b: Body, w_bknp: str, membership_bkn1: str, weighted_bknp: str, memberships_bkn1: str
) -> str:
    """-(Π W) / (1 + m), where m is a weighted mean."""
    moments_bknp = b("Div", weighted_bknp, b("Add", memberships_bkn1, b.number(MEMBERSHIPS)))
    return _damped(b, w_bknp, membership_bkn1, moments_bknp)


def biases_at(b: Body, energy_bias_kl: str, past_b: str, tokens: str) -> str:
    """The biases of tokens that have so many before them: (B, K, N)."""
    zero, one = (b.constant(np.asarray(value, np.int64)) for value in (0, 1))
    count = b("Squeeze", b("Shape", tokens, start=1, end=2))
    places_bn = b("Add", b("Unsqueeze", past_b, b.integers(1)), b("Range", zero, count, one))
    return b("Transpose", b("Gather", energy_bias_kl, places_bn, axis=1), perm=[1, 0, 2])


def _running(b: Body, values: str, precise: bool = False) -> str:
    """Sums over the tokens so far, (B, K, N, …).

    onnxruntime adds token after token, and where all add the same, all sums are rounded the same way: in float32
    that is 3e-5 after 16,384 memberships. So these are added in float64, which is cheap for one number a token.
    """
    sums = b("CumSum", _double(b, values) if precise else values, b.constant(np.asarray(2, np.int64)))
    return b("Cast", sums, to=onnx.TensorProto.FLOAT) if precise else sums


def _where(b: Body, kept_bn: str | None, values: str, *axes: int) -> str:
    """Zero for tokens that do not count; `axes` are those that the boolean lacks."""
    if kept_bn is None:
        return values
    return b("Where", b("Unsqueeze", kept_bn, b.integers(*axes)), values, b.number(0.0))


def _membership(b: Body, energies_bkn: str, temperature_k: str) -> str:
    """A softmax over subspaces, with a temperature for each."""
    return b("Softmax", b("Mul", energies_bkn, b("Unsqueeze", temperature_k, b.integers(1))), axis=1)


def _damped(b: Body, w_bknp: str, membership_bkn1: str, moments: str) -> str:
    return b("Div", b("Mul", w_bknp, membership_bkn1), b("Sub", b.number(-1.0), moments))


def pooled(b: Body, w_bnm: str, pool: Pool, patches: Patches, inner: int) -> str:
    """Means of the patches over cells of their grid, rows first: (B, N, m) -> (B, M, m), where m is K p."""
    stop = patches.start + patches.count
    grid_bnm = b("Slice", w_bnm, b.integers(patches.start), b.integers(stop), b.integers(1))
    lines = b("Reshape", grid_bnm, b.integers(0, patches.rows, patches.columns * inner))
    rows = b("MatMul", b.constant(_means(pool.rows, patches.rows)), lines)
    cells = b("Reshape", rows, b.integers(0, pool.rows, patches.columns, inner))
    columns = b("MatMul", b.constant(_means(pool.columns, patches.columns)), cells)
    return b("Reshape", columns, b.integers(0, pool.count, inner))


def _means(cells: int, size: int) -> np.ndarray:
    """The mean over each cell, of the rows or the columns of a grid: (cells, size)."""
    means = np.zeros((cells, size), np.float32)
    for cell in range(cells):
        covered = span(cell, cells, size)
        means[cell, covered.start : covered.stop] = 1 / len(covered)
    return means


def by_way_of(
    b: Body, r_bkmp: str, w_bknp: str, scale: float, representatives_step_k: str, tokens_step_k: str
) -> str:
    """What representatives make of the tokens: (B, K, N, p)."""
    assignment_bkmn = b("Softmax", _scores(b, r_bkmp, w_bknp, scale), axis=-1)
    moved = b("Mul", _for_each(b, representatives_step_k), b("MatMul", assignment_bkmn, w_bknp))
    moved_bkmp = b("Add", r_bkmp, moved)
    among_bkmm = b("Softmax", _scores(b, moved_bkmp, moved_bkmp, scale), axis=-1)
    contracted_bkmp = b("Mul", _for_each(b, tokens_step_k), b("MatMul", among_bkmm, moved_bkmp))
    return b("MatMul", b("Transpose", assignment_bkmn, perm=[0, 1, 3, 2]), contracted_bkmp)


def _scores(b: Body, query_bkmp: str, key_bknp: str, scale: float) -> str:
    scaled = b("Mul", b.number(scale), query_bkmp)
    return b("MatMul", scaled, b("Transpose", key_bknp, perm=[0, 1, 3, 2]))


def _for_each(b: Body, steps_k: str) -> str:
    """One number for each subspace: (K, 1, 1)."""
    return b("Unsqueeze", steps_k, b.integers(1, 2))
