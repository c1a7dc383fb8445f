"""`pool`: tokens are averaged before affine maps, not behind them.

Precondition: `pool(mean)` alone reads what an affine step gives. Equal, since a mean of affine images is the image of
the mean: mean(z M + b) = (mean z) M + b.
"""

from __future__ import annotations

from collections.abc import Sequence

from crate_dsl.compiler.draft import Draft, rebuild
from crate_dsl.compiler.graph import Node, Value
from crate_dsl.compiler.lower.fold import operands
from crate_dsl.compiler.steps.tokens.operator import Pool


def pool(draft: Draft) -> Draft:
    """Means of as few tokens' results as can be."""

    def pooled(new: Draft, by: Node, reader: Node, value: Value) -> Value:
        """The mean over the tokens of a value of the old draft, which `reader` reads."""
        node = draft.node(value)
        given = None if node is None or draft.only_user(value) is not reader else operands(node)
        if node is None or given is None:
            return new.add(by, "mean", Pool(by="mean"), new.moved_to(value))
        means = [pooled(new, by, node, operand) for operand in given]
        if node.ports:
            return new.keep(node, inputs=(), ports=dict(zip(node.ports, means, strict=True)))[0]
        return new.keep(node, inputs=tuple(means))[0]

    def visit(new: Draft, node: Node) -> Sequence[Value]:
        if isinstance(node.operator, Pool) and node.operator.by == "mean":
            return (pooled(new, node, draft.step(node.name), draft.step(node.name).inputs[0]),)
        return new.keep(node)

    return rebuild(draft, visit)
