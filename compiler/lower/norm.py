"""`norm`: the scale γ and shift β of a norm go into the affine maps behind it.

Precondition: every reader of the norm is an affine map, which has a bias where the norm has a shift: to give it one
would cost more than the norm's own. Equal, since (x̂ γ + β) M + b = x̂ (γ M) + (β M + b).
"""

from __future__ import annotations

from collections.abc import Sequence

from crate_dsl.compiler.draft import Draft, rebuild
from crate_dsl.compiler.graph import Node, Value
from crate_dsl.compiler.steps.norm.operator import Norm
from crate_dsl.compiler.steps.parts.operator import Affine, Standardise
from crate_dsl.compiler.steps.parts.write import affine


def norm(draft: Draft) -> Draft:
    """Norms without scale and shift."""
    read = set(draft.outputs.values())
    bare = {
        node.name: node
        for node in draft.nodes
        if isinstance(node.operator, Norm)
        and Value(node.name) not in read
        and all(
            isinstance(user.operator, Affine) and (user.operator.bias or "bias" not in node.weights)
            for user in draft.users[Value(node.name)]
        )
    }

    def visit(new: Draft, node: Node) -> Sequence[Value]:
        op = node.operator
        if node.name in bare and isinstance(op, Norm):
            return (new.add(node, "", Standardise(by=op.form), *node.inputs),)
        before = bare.get(draft.step(node.name).inputs[0].node) if isinstance(op, Affine) else None
        if before is None:
            return new.keep(node)
        matrix = new.array(node, "matrix")
        bias = new.array(node, "bias") if "bias" in node.weights else None
        if "bias" in before.weights:
            shift = draft.array(before, "bias") @ matrix
            bias = shift if bias is None else bias + shift
        scaled = draft.array(before, "weight")[:, None] * matrix
        return (affine(new, node, "", node.inputs[0], scaled, bias),)

    return rebuild(draft, visit)
