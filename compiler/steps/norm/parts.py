"""The norm inside of other steps, as a step of its own."""

from __future__ import annotations

from crate_dsl.compiler.draft import Draft
from crate_dsl.compiler.graph import Node, Value
from crate_dsl.compiler.steps.norm.operator import NoNorm, Norm, NormForm


def normalised(d: Draft, node: Node, form: NormForm, value: Value) -> Value:
    """A value behind the norm of a step, whose weights are called `norm_weight` and `norm_bias` there."""
    if isinstance(form, NoNorm):
        return value
    weights = {
        name: d.array(node, f"norm_{name}") for name in ("weight", "bias") if f"norm_{name}" in node.weights
    }
    return d.add(node, "norm", Norm(by=form), value, weights=weights)
