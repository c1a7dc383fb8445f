"""`attend`: plain multi-head attention, for black-box baselines."""

from __future__ import annotations

from typing import ClassVar, Literal

from crate_dsl.compiler.masks import Columns, Rule
from crate_dsl.compiler.operators import (
    Fraction01,
    Inverse,
    Mistake,
    Mode,
    NoInverse,
    NotStepped,
    Operator,
    Port,
    Slot,
    Stepped,
    Typing,
    Whole,
    linear_initial,
)
from crate_dsl.compiler.steps.attend.rule import check_mask, columns_of
from crate_dsl.compiler.steps.norm.operator import width_of
from crate_dsl.compiler.steps.rotary.operator import Rotary, check_rotary
from crate_dsl.compiler.types import TensorType, held


class Attend(Operator):
    """Multi-head self-attention with separate queries, keys and values. It contains neither norm nor residual.

    `mask` is `causal`, a boolean for each token, or a rule over attributes of `query` and `key`, as
    `key.place <= query.place and query.place - key.place < 8`; `causal` and one boolean may stand in a rule, too:
    `causal and kept`. A token whose keys are all left out by the boolean finds nothing: zero. `dropout` acts on the
    result, `bias` stands for the biases of both linear maps. `positions = rotary` rotates queries and keys by their
    places.

    Taps: `query`, `key` and `value` are (B, heads, N, p); `attention` is (B, heads, N, N), a row for each token that
    attends.
    """

    word: ClassVar[str] = "attend"
    formula: ClassVar[str] = (
        r"W_O \operatorname{concat}_h\!\left(V_h \operatorname{softmax}(K_h^\top Q_h / \sqrt{p})\right) + b_O,\quad "
        r"[Q; K; V] = W Z + b,\ p = d / \mathrm{heads}"
    )
    source: ClassVar[str] = (
        "Vaswani et al. 2017, Attention Is All You Need, arXiv 1706.03762, eq. 1 and section 3.2.2"
    )

    heads: Whole
    mask: Literal["none", "causal"] | Port | Rule = "none"
    bias: bool = True
    dropout: Fraction01 = 0.0
    positions: Literal["none"] | Rotary = "none"

    @property
    def taps(self) -> tuple[str, ...]:
        return ("query", "key", "value", "attention")

    @property
    def narrows(self) -> bool:
        """A causal mask is aligned to the first query."""
        return self.mask != "causal"

    def infer(self, *inputs: TensorType) -> Typing:
        (tokens,) = inputs
        width = width_of(self.word, tokens)
        check_heads(self.heads, width)
        check_rotary(self.positions, width // self.heads, "heads")
        if isinstance(self.mask, Port):
            check_mask(self.mask.type, tokens)
        facts: Columns | None = columns_of(self.mask, tokens) if isinstance(self.mask, Rule) else None
        weights = {"qkv_weight": Slot((3 * width, width), linear_initial(width))}
        if self.bias:
            weights["qkv_bias"] = Slot((3 * width,), linear_initial(width))
        weights["out_weight"] = Slot((width, width), linear_initial(width))
        if self.bias:
            weights["out_bias"] = Slot((width,), linear_initial(width))
        count = tokens.shape[0].bound
        maps = 2 * 4 * count * width * width
        attention = 2 * 2 * count * count * width
        return Typing((tokens,), weights, facts, flops=maps + attention)

    def inverse(self, mode: Mode, *inputs: TensorType) -> Inverse | NoInverse:
        return NoInverse("an average over tokens cannot be undone")

    def stepped(self, *inputs: TensorType) -> Stepped | NotStepped:
        from crate_dsl.compiler.steps.cached.operator import AttendStep, stepped_mask

        (tokens,) = inputs
        mask = stepped_mask(self.mask, tokens)
        if isinstance(mask, NotStepped):
            return mask
        arguments = {name: getattr(self, name) for name in Attend.model_fields} | {"mask": mask}
        rows = held(tokens, tokens.shape[1].bound)
        return Stepped(AttendStep(**arguments), (rows, rows))


def check_heads(heads: int, width: int) -> None:
    """Heads share the width evenly. Raises `Mistake` where they cannot."""
    if width % heads:
        divisors = ", ".join(str(count) for count in range(1, width + 1) if width % count == 0)
        raise Mistake(
            "E0312",
            f"{heads} heads do not divide a width of {width}: {width} / {heads} is not whole",
            f"heads that divide {width}: {divisors}",
            at="heads",
        )
