"""What statistics and representatives learn beside the bases."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crate_dsl.compiler.operators import Mistake, Normal, Ones, Slot, Zeros, linear_initial
from crate_dsl.compiler.types import TensorType

if TYPE_CHECKING:
    from crate_dsl.compiler.steps.compress.operator import SubspaceStep


def own_slots(op: SubspaceStep, tokens: TensorType, width: int) -> dict[str, Slot]:
    """Their weights, with the published initial values; none where tokens attend, or a step is derived.

    Raises:
        Mistake: E0351 and E0352, of the length of a table over the places.
    """
    heads = (op.subspaces,)
    if op.gradient == "representatives":
        drawn = Slot(heads, Normal(std=1.0))
        return {"representatives_step": drawn, "tokens_step": drawn}
    if op.gradient != "statistics":
        return {}
    shift = {"projection_bias": Slot((op.subspaces * op.rank,), linear_initial(width))} if op.biased else {}
    table = {"energy_bias": Slot((*heads, _places(op.length, tokens)), Zeros())} if op.running else {}
    return shift | {"temperature": Slot(heads, Ones())} | table


def _places(length: int | None, tokens: TensorType) -> int:
    """How many places there is a bias for."""
    count = tokens.shape[0]
    if length is None:
        if count.static is None:
            raise Mistake(
                "E0351",
                "causal statistics have a bias for each place and need a `length`: there are "
                f"{count} tokens, which is known only at run time",
                f"there are at most {count.bound} here: `length = {count.bound}`",
                at="mask",
            )
        return count.static
    if count.bound > length:
        many = f"{count}, at most {count.bound}, tokens" if count.static is None else f"{count} tokens"
        raise Mistake(
            "E0352",
            f"biases of {length} places are too few for {many}",
            f"`length = {count.bound}` is enough",
            at="length",
            label=str(length),
        )
    return length
