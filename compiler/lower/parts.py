"""`parts`: steps are written out as what they consist of, and what does nothing once trained is left out.

Precondition: the step's family says how (`steps/*/parts.py`). Equal, since the parts are the formula. By itself this
saves nothing: the other rewrites work on parts.
"""

from __future__ import annotations

from collections.abc import Sequence

from crate_dsl.compiler.draft import Draft, rebuild
from crate_dsl.compiler.graph import Node, Value
from crate_dsl.compiler.steps import parts_face


def parts(draft: Draft) -> Draft:
    """Every step that has parts, as its parts."""

    def visit(new: Draft, node: Node) -> Sequence[Value]:
        if node.operator.identity_at_inference:
            return node.inputs
        face = parts_face(type(node.operator))
        written: Value | tuple[Value, ...] | None = face(new, node) if face is not None else None
        if written is None:
            return new.keep(node)
        return written if isinstance(written, tuple) else (written,)

    return rebuild(draft, visit)
