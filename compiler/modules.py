"""What every step's torch module has in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from crate_dsl.compiler.operators import Learned, Operator, Port, Typing
from crate_dsl.compiler.types import Dim, Shapes, TensorType
from crate_dsl.language.diagnostics import UserError


@dataclass(frozen=True, slots=True)
class Bound:
    """How far a step is from the identity, read off its weights.

    `lipschitz` bounds the Lipschitz constant of F where the step is X + F(X), or its inverse: below 1, iterating
    X = Y - F(X) converges at least at that rate. None where there is no such number; `reason` says where it comes from,
    or why there is none.
    """

    lipschitz: float | None
    reason: str


def precise(values: Tensor) -> Tensor:
    """A tensor in its own precision, or in float32 where that is a half: too coarse to be solved with, or summed up."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def check_places(places_bn: Tensor, count: int) -> None:
    """Refuse tokens beyond the last of `count` places. A compiler cannot ask, and leaves it to whatever looks them up.

    Raises:
        UserError: some token is.
    """
    if not torch.compiler.is_compiling() and places_bn.numel() and (last := int(places_bn.max())) >= count:
        raise UserError(f"token {last + 1:,} is one too many: the network knows {count:,} places")


class StepModule(nn.Module):
    """A step in torch: owns the slots that its operator declares, under their names.

    `forward` takes the piped tensors by position, and by name the tensors handed over by argument (`mask =
    kept`) and the weights that the step borrows. Every tensor has a batch axis in front.
    """

    #: Whether its weights are another module's, which alone keeps them in its state.
    borrows = False

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

    def _save_to_state_dict(self, *given: Any, **named: Any) -> None:
        if not self.borrows:
            super()._save_to_state_dict(*given, **named)

    def _load_from_state_dict(self, *given: Any, **named: Any) -> None:
        if not self.borrows:
            super()._load_from_state_dict(*given, **named)


class ByShape(StepModule):
    """A step that is used on tokens of several layouts, with the same weights: a module for each shape.

    What a step knows of its tokens (their grid, the class token's place) belongs to the use, and uses that differ in it
    differ in shape.

    Args:
        uses: Modules of one step with the shapes that each is for. They share the weights of the first.
    """

    def __init__(self, uses: Sequence[tuple[Shapes, StepModule]]) -> None:
        nn.Module.__init__(self)
        first = uses[0][1]
        self.operator, self.facts = first.operator, first.facts
        self.shapes = tuple(shapes for shapes, _ in uses)
        self.uses = nn.ModuleList(module for _, module in uses)
        for name, weight in list(first.named_parameters(recurse=False)):
            self.register_parameter(name, weight)
            for _, module in uses:
                setattr(module, name, weight)
        for _, module in uses:
            module.borrows = True

    def use(self, sizes: Sequence[Sequence[int]]) -> Any:
        """The module for inputs of these sizes, without the batch axis.

        Raises:
            ValueError: the step is used on nothing of these sizes.
        """
        for shapes, module in zip(self.shapes, self.uses, strict=True):
            if len(shapes) == len(sizes) and all(map(_fits, shapes, sizes)):
                return module
        raise ValueError(
            f"`{self.operator.word}` is not used on {[tuple(size) for size in sizes]} in the spec"
        )

    def forward(self, *piped: Tensor, **named: Any) -> Any:
        return self.use([z.shape[1:] for z in piped])(*piped, **named)

    def explain(self, *piped: Any, **named: Any) -> dict[str, Tensor]:
        found: dict[str, Tensor] = self.use([z.shape[1:] for z in piped]).explain(*piped, **named)
        return found

    def bound(self, *inputs: TensorType, **given: Tensor) -> Bound:
        found: Bound = self.use([[dim.bound for dim in type_.shape] for type_ in inputs]).bound(
            *inputs, **given
        )
        return found


def _fits(shape: Sequence[Dim], size: Sequence[int]) -> bool:
    return len(shape) == len(size) and all(
        length == dim.offset if dim.symbol is None else length <= dim.bound
        for dim, length in zip(shape, size, strict=True)
    )
