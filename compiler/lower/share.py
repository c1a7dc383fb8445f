"""`share`: what is computed twice is computed once, such as a stage that two branches apply to the same tokens.

Precondition: equal operators, on the same values, with equal weights. Equal, since a step is a function of these.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence

from crate_dsl.compiler.draft import Draft, rebuild
from crate_dsl.compiler.graph import Node, Value


def share(draft: Draft) -> Draft:
    """Common sub-expressions, once."""
    seen: dict[Hashable, list[tuple[Node, Sequence[Value]]]] = defaultdict(list)

    def visit(new: Draft, node: Node) -> Sequence[Value]:
        key = (type(node.operator), node.inputs, tuple(node.ports.items()))
        for other, results in seen[key]:
            if other.operator == node.operator and _same_weights(new, other, node):
                return results
        results = new.keep(node)
        seen[key].append((node, results))
        return results

    return rebuild(draft, visit)


def _same_weights(draft: Draft, one: Node, two: Node) -> bool:
    if one.weights == two.weights:
        return True
    if one.weights.keys() != two.weights.keys():
        return False
    arrays = [(draft.array(one, name), draft.array(two, name)) for name in one.weights]
    return all(a.shape == b.shape and bool((a == b).all()) for a, b in arrays)
