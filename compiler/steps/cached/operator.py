"""What causal steps are for the next tokens alone: the compiler makes them, `Operator.stepped` says when."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import InstanceOf

from crate_dsl.compiler.masks import CAUSAL, Alternatives, Columns, Rule, allowed
from crate_dsl.compiler.operators import NotStepped, Operator, OperatorKind, Port, Typing
from crate_dsl.compiler.steps.attend.operator import Attend
from crate_dsl.compiler.steps.compress.operator import SubspaceStep
from crate_dsl.compiler.steps.position.operator import Position
from crate_dsl.compiler.types import TensorType, floats, grown


class CompressStep(SubspaceStep):
    """Causal attention within the subspaces for the next tokens: the compiler makes it of `compress(mask = causal)`.

    float[m, dim], how many tokens were before, and their projections W, float[past, K p] -> float[m, dim] and W of all
    tokens. Queries, keys and values are one, and so is what is held of them; it is held as it is before a rotation.
    """

    word: ClassVar[str] = "compress_step"
    kind: ClassVar[OperatorKind] = "lowered"
    formula: ClassVar[str] = (
        r"z_i + \kappa \sum_k O_k W_k \operatorname{softmax}(s\,W_k^\top U_k^\top \operatorname{norm} z_i),\quad "
        r"W_k = [W_k^{\mathrm{past}},\; U_k^\top \operatorname{norm} Z]"
    )

    @property
    def taps(self) -> tuple[str, ...]:
        return ()

    def infer(self, *inputs: TensorType) -> Typing:
        tokens, _, rows = inputs
        typing = super().infer(tokens)
        return replace(typing, outputs=(*typing.outputs, grown(rows, tokens)))


class AttendStep(Attend):
    """Causal attention for the next tokens: the compiler makes it of `attend(mask = causal)`.

    float[m, dim], how many tokens were before, and their keys and values, float[past, dim] each -> float[m, dim] and
    the keys and values of all tokens. Keys are held as they are before a rotation.
    """

    word: ClassVar[str] = "attend_step"
    kind: ClassVar[OperatorKind] = "lowered"
    formula: ClassVar[str] = (
        r"W_O \operatorname{concat}_h\!\left(V_h \operatorname{softmax}(K_h^\top Q_h / \sqrt{p})\right) + b_O,\quad "
        r"K = [K^{\mathrm{past}},\, W_K Z],\; V = [V^{\mathrm{past}},\, W_V Z]"
    )

    @property
    def taps(self) -> tuple[str, ...]:
        return ()

    def infer(self, *inputs: TensorType) -> Typing:
        tokens, _, keys, values = inputs
        typing = super().infer(tokens)
        return replace(typing, outputs=(*typing.outputs, grown(keys, tokens), grown(values, tokens)))


class PositionStep(Operator):
    """Positions of the next tokens, counted from `past`: the compiler makes it of `position(…)`.

    float[m, dim] and how many tokens were before -> float[m, dim].
    """

    word: ClassVar[str] = "position_step"
    kind: ClassVar[OperatorKind] = "lowered"
    formula: ClassVar[str] = r"z_i + E_{\mathrm{past} + i}"

    of: InstanceOf[Position]

    def infer(self, *inputs: TensorType) -> Typing:
        tokens, _ = inputs
        return self.of.infer(tokens)


#: What a mask may be.
Mask = Literal["none", "causal"] | Port | Rule


def alternatives_of(mask: Mask) -> Alternatives:
    """A mask of a step for the next tokens, as a rule of places."""
    return mask.alternatives if isinstance(mask, Rule) else ((CAUSAL,),)


def stepped_mask(mask: Mask, tokens: TensorType) -> Literal["causal"] | Rule | NotStepped:
    """The mask of a step for the next tokens: all of them count. Or why there is none."""
    if mask == "causal":
        return "causal"
    if not isinstance(mask, Rule):
        return NotStepped("lets tokens attend to later ones", "mask = causal")
    rule = Rule((*mask.alternatives, *mask.where_kept), mask.text)
    if set(rule.attributes) - {"place"}:
        others = ", ".join(f"`{name}`" for name in rule.attributes if name != "place")
        return NotStepped(f"has a mask that reads {others}, and of tokens to come `place` alone is known")
    count = tokens.shape[0].bound
    columns = Columns.of(rule, floats(count, 1), floats(count, 1))
    if any(
        row >> place + 1 for place, row in enumerate(allowed(rule.alternatives, columns, count, count).rows)
    ):
        return NotStepped("lets tokens attend to later ones", "… and key.place <= query.place")
    return rule
