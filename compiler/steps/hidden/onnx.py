"""Completion in ONNX. Axes: B batch, N tokens, k tokens taken, d width."""

from __future__ import annotations

from crate_dsl.compiler.functions import Body
from crate_dsl.compiler.operators import Typing
from crate_dsl.compiler.steps.hidden.operator import Gather, Mask, Scatter


def mask(b: Body, op: Mask, typing: Typing, z_bnd: str, *, hidden: str, fill: str | None = None) -> str:
    return b("Where", b("Unsqueeze", hidden, b.integers(-1)), b.scalar(op, "fill", fill), z_bnd)


def gather(b: Body, op: Gather, typing: Typing, z_bnd: str, *, visible: str) -> str:
    return b("GatherND", z_bnd, b("Unsqueeze", visible, b.integers(-1)), batch_dims=1)


def scatter(
    b: Body, op: Scatter, typing: Typing, z_bkd: str, *, visible: str, fill: str | None = None
) -> str:
    batch, width = b("Shape", z_bkd, start=0, end=1), b("Shape", z_bkd, start=2, end=3)
    sizes = b("Concat", batch, b.integers(op.places), width, axis=0)
    empty_bnd = b("Expand", b.scalar(op, "fill", fill), sizes)
    places_bkd = b("Expand", b("Unsqueeze", visible, b.integers(-1)), b("Shape", z_bkd))
    return b("ScatterElements", empty_bnd, places_bkd, z_bkd, axis=1)
