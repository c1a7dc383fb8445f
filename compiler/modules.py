"""What every step's torch module has in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from crate_dsl.compiler.operators import Learned, Operator, Port, Typing
from crate_dsl.compiler.types import TensorType


@dataclass(frozen=True, slots=True)
class Bound:
    """How far a step is from the identity, read off its weights.

    `lipschitz` bounds the Lipschitz constant of F where the step is X + F(X), or its inverse: below 1, iterating
    X = Y - F(X) converges at least at that rate. None where there is no such number; `reason` says where it comes from,
    or why there is none.
    """

    lipschitz: float | None
    reason: str


class StepModule(nn.Module):
    """A step in torch: owns the slots that its operator declares, under their names.

    `forward` takes the piped tensors by position, and by name the tensors handed over by argument (`mask =
    kept`) and the weights that the step borrows. Every tensor has a batch axis in front.
    """

    def __init__(self, operator: Operator, typing: Typing) -> None:
        super().__init__()
        self.operator: Any = operator
        self.facts: Any = typing.facts
        for name, slot in typing.slots.items():
            self.register_parameter(name, nn.Parameter(torch.empty(slot.shape)))

    def explain(self, *piped: Any, **named: Any) -> dict[str, Tensor]:
        """Every tap that the operator declares and the result as `out`, in the plain formula.

        `forward` may be faster; that both give the same is a law, held by the tests for every step.
        """
        return {"out": self(*piped, **named)}

    def descent(self, taps: Mapping[str, Tensor], **given: Tensor) -> tuple[Tensor, Tensor] | None:
        """The objective that the step descends on, of each token, (B, N): where it starts and where it ends; None where
        it descends on none. `taps` are those of `explain`, `given` the weights that are another step's.
        """
        return None

    def bound(self, *inputs: TensorType, **given: Tensor) -> Bound:
        """How far the step is from the identity where it is applied to `inputs`; `given` are the weights that
        are another step's.
        """
        return Bound(None, f"`{self.operator.word}` says nothing of its Lipschitz constant")

    def weight_of(self, name: str, given: Mapping[str, Tensor]) -> Tensor | None:
        """A weight: handed over where it is another step's, else the step's own; None where there is none."""
        found: Tensor | None = given[name] if name in given else getattr(self, name, None)
        return found

    def scalar(self, name: str, given: Tensor | None = None) -> Tensor | float:
        """An argument that may be a number, a learned one (own or borrowed), or a tensor of shape (B,) handed over."""
        value = getattr(self.operator, name)
        if given is not None:
            return given.reshape(-1, 1, 1) if isinstance(value, Port) else given
        if isinstance(value, Learned):
            learned: Tensor = getattr(self, name)
            return learned
        return float(value)

    def extra_repr(self) -> str:
        return repr(self.operator)
