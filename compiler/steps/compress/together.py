"""Which arguments of `compress` go together. What says what another one denies, or has no meaning beside it, is an
error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from crate_dsl.compiler.masks import Rule
from crate_dsl.compiler.operators import Mistake
from crate_dsl.compiler.steps.rotary.operator import check_rotary

if TYPE_CHECKING:
    from crate_dsl.compiler.steps.compress.operator import SubspaceStep


def check_arguments(op: SubspaceStep) -> None:
    """Refuse what does not go together. Raises `Mistake`."""
    _check_out(op)
    _check_mask(op)
    _check_numbers(op)
    _check_belonging(op)


def _check_out(op: SubspaceStep) -> None:
    if op.derived and op.out == "free":
        raise Mistake(
            "E0305",
            "the derived step leads back through its own bases: `out = free` needs `gradient = attention`",
            at="out",
        )
    if op.tied and op.bias:
        raise Mistake(
            "E0305", "a tied output map has no bias", "leave `bias` out, or write `out = free`", at="bias"
        )


def _check_mask(op: SubspaceStep) -> None:
    if op.mask != "none" and op.gradient not in ("attention", "statistics"):
        raise Mistake(
            "E0305",
            f"`gradient = {op.gradient}` has no published masked form",
            "`gradient = attention` and `gradient = statistics` take a mask",
            at="mask",
        )

    if op.gradient == "statistics" and isinstance(op.mask, Rule) and not op.mask.causal_and_kept:
        raise Mistake(
            "E0305",
            "`gradient = statistics` sums over tokens, and has no pairs of them that a rule could choose from",
            "`mask = causal`, a boolean for each token, or both: `mask = causal and kept`",
            at="mask",
        )


def _check_numbers(op: SubspaceStep) -> None:
    """Of the formula: the softmax scale, the step, ε."""
    if op.scale is not None and (op.spectral or op.gradient == "statistics"):
        own = "" if op.spectral else ": its own softmax, over subspaces, has a learned temperature for each"
        message = f"`scale` is that of a softmax over tokens, and `gradient = {op.gradient}` has none{own}"
        raise Mistake("E0305", message, at="scale")
    if op.gradient == "representatives" and not isinstance(op.scale, float | None):
        raise Mistake("E0305", "with `gradient = representatives`, `scale` is a number", at="scale")
    if not op.derived and op.step is not None and hasattr(op.step, "fraction"):
        layer = {"statistics": "ToST's layer", "representatives": "CBSA's layer"}.get(
            op.gradient, "published attention"
        )
        raise Mistake(
            "E0305",
            f"a relative step is a fraction of what the gradient's Lipschitz constant allows, and {layer} is not a "
            "gradient",
            "write a number, or `gradient = exact`",
            at="step",
        )
    if op.gradient in ("statistics", "representatives") and op.eps != type(op).model_fields["eps"].default:
        message = f"`eps` is that of α = rank / (N eps²), and `gradient = {op.gradient}` has no α"
        raise Mistake("E0305", message, at="eps")


def _check_belonging(op: SubspaceStep) -> None:
    """Arguments that one form alone has."""
    check_rotary(op.positions, op.rank, "rank")
    if op.positions != "none" and op.gradient != "attention":
        message = f"`positions` turn what attention compares, and `gradient = {op.gradient}` is another step"
        raise Mistake("E0305", message, "`position(…)` before it adds places to the tokens", at="positions")
    if op.length is not None and not op.running:
        message = "`length` is that of the table of biases of `gradient = statistics, mask = causal`"
        raise Mistake("E0305", f"{message}, and there is none here", "leave `length` out", at="length")
    if op.representatives is not None and op.gradient != "representatives":
        message = f"`gradient = {op.gradient}` has no representatives"
        raise Mistake("E0305", message, "`gradient = representatives` has them", at="representatives")
