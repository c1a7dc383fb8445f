"""`flow` in ONNX: one step of the solver, repeated. Axes: B batch, N tokens, d width, K subspaces, p rank, m = K p."""

from __future__ import annotations

from crate_dsl.compiler.functions import Body
from crate_dsl.compiler.operators import Typing
from crate_dsl.compiler.steps.compress.onnx import damped, joined, split, token_alpha
from crate_dsl.compiler.steps.flow.operator import Flow


def flow(b: Body, op: Flow, typing: Typing, z_bnd: str, **given: str) -> str:
    subspaces_md, h = given["subspaces"], op.time / op.steps
    transposed_dm = b("Transpose", subspaces_md, perm=[1, 0])
    alpha = token_alpha(b, op.rank, op.eps, z_bnd)

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

    return b.repeat(op.steps, z_bnd, turn)
