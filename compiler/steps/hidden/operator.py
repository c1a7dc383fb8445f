"""`mask`, `gather` and `scatter`: what a network that completes pictures is not shown, and where it stands."""

from __future__ import annotations

from typing import ClassVar

from crate_dsl.compiler.operators import (
    Inverse,
    Mistake,
    Mode,
    NoInverse,
    Operator,
    Port,
    Scalar,
    Typing,
    check_scalar,
    learned_slots,
)
from crate_dsl.compiler.steps.norm.operator import width_of
from crate_dsl.compiler.steps.tokens.operator import layout_of
from crate_dsl.compiler.types import Dim, Layout, Segment, TensorType


class Mask(Operator):
    """Puts `fill` in the place of the tokens that `hidden`, bool[N], marks: float[N, dim] -> the same.

    `fill` is a number, a learned number or vector (`fill = mask_token`), or one number for each sample.
    """

    word: ClassVar[str] = "mask"
    formula: ClassVar[str] = r"(1 - h_i)\, z_i + h_i\, m"
    source: ClassVar[str] = "the learned mask token: Devlin et al. 2019 (BERT), arXiv 1810.04805, section 3.1"

    hidden: Port
    fill: Scalar = 0.0

    def infer(self, *inputs: TensorType) -> Typing:
        (tokens,) = inputs
        width = width_of(self.word, tokens)
        check_marks(self.word, "hidden", self.hidden.type, tokens)
        check_scalar(self, "fill", width)
        return Typing((tokens,), learned_slots(self))

    def inverse(self, mode: Mode, *inputs: TensorType) -> Inverse | NoInverse:
        return NoInverse("the tokens that it hides are gone")


class Gather(Operator):
    """Takes the tokens of these places, in this order: float[N, dim] -> float[k, dim].

    `visible` is index(N)[k], so it works on tokens of one segment, which the result remembers: `scatter` puts the
    tokens back into it. Positions are added before, while the places are known.
    """

    word: ClassVar[str] = "gather"
    formula: ClassVar[str] = r"z_{v_1}, \dots, z_{v_k}"
    source: ClassVar[str] = "the encoder's visible patches: He et al. 2022 (MAE), arXiv 2111.06377, section 3"

    visible: Port

    def infer(self, *inputs: TensorType) -> Typing:
        (tokens,) = inputs
        width = width_of(self.word, tokens)
        whole = _only_segment(self.word, tokens)
        check_indices(self.word, "visible", self.visible.type, tokens)
        (count,) = self.visible.type.shape
        taken = Layout((Segment(whole.name, count, whole=whole),))
        return Typing((tokens.with_shape(count, width, layout=taken),))

    def inverse(self, mode: Mode, *inputs: TensorType) -> Inverse | NoInverse:
        return NoInverse("the tokens that it does not take are gone")


class Scatter(Operator):
    """The way back from `gather`: puts token j in the place `visible[j]` of N, `fill` in all others.

    float[k, dim] -> float[N, dim], where `visible` is index(N)[k]. The segment that the tokens were taken from stands
    again, with its grid. A token that was taken comes back bit for bit; of a place that is given twice, it is not
    settled which token it gets. `fill` is a number, a learned number or vector (`fill = mask_token`), or one number for
    each sample.
    """

    word: ClassVar[str] = "scatter"
    formula: ClassVar[str] = r"y_{v_j} = z_j,\quad y_i = m \text{ for } i \notin v"
    source: ClassVar[str] = (
        "the decoder's full set of tokens: He et al. 2022 (MAE), arXiv 2111.06377, section 3"
    )

    visible: Port
    fill: Scalar = 0.0

    @property
    def places(self) -> int:
        """N: how many places there are."""
        places = self.visible.type.classes
        assert places is not None  # infer saw to it
        return places

    def infer(self, *inputs: TensorType) -> Typing:
        (tokens,) = inputs
        width = width_of(self.word, tokens)
        taken, visible = _only_segment(self.word, tokens), self.visible.type
        if visible.kind != "index" or visible.shape != tokens.shape[:1]:
            raise Mistake(
                "E0446",
                f"`scatter` needs a place for each of its {tokens.shape[0]} tokens, index(N)[{tokens.shape[0]}], "
                f"but is given {visible}",
                at="visible",
                label=str(visible),
            )
        if taken.whole is not None and taken.whole.length.static != self.places:
            raise Mistake(
                "E0446",
                f"these tokens were taken from {taken.whole.length} places, but are to be put into {self.places}",
                at="visible",
                label=str(visible),
            )
        check_scalar(self, "fill", width)
        whole = taken.whole or Segment(taken.name, Dim.of(self.places))
        filled = tokens.with_shape(self.places, width, layout=Layout((whole,)))
        # A stage may put tokens back into several pictures: how many places there are belongs to the use.
        return Typing((filled,), learned_slots(self), facts=self.places)

    def inverse(self, mode: Mode, *inputs: TensorType) -> Inverse | NoInverse:
        return NoInverse("where two tokens have one place, one of them is gone")


# ------------------------------------------------------------------ what marks and indices must be


def check_marks(step: str, argument: str, marks: TensorType, tokens: TensorType) -> None:
    """One boolean for each token. Raises `Mistake` where it is something else."""
    if marks.kind != "bool" or marks.shape != tokens.shape[:1]:
        raise Mistake(
            "E0443",
            f"`{argument}` of `{step}` marks these tokens by bool[{tokens.shape[0]}], but is given {marks}",
            at=argument,
            label=str(marks),
        )


def check_indices(step: str, argument: str, indices: TensorType, tokens: TensorType) -> None:
    """Indices of the tokens: below their number, which is known. Raises `Mistake` where they are not."""
    count = tokens.shape[0]
    if count.static is None:
        raise Mistake(
            "E0444", f"`{step}` takes indices of a number of tokens that is known, but there are {count}"
        )
    if indices.kind != "index" or indices.rank != 1 or indices.classes != count.static:
        raise Mistake(
            "E0444",
            f"indices of these {count} tokens are index({count})[k], but `{step}` is given {indices}",
            at=argument,
            label=str(indices),
        )


def _only_segment(step: str, tokens: TensorType) -> Segment:
    """The segment that the tokens are. Raises `Mistake` where there are several: an index would not say of which."""
    first, *others = layout_of(tokens)
    if others:
        raise Mistake(
            "E0445",
            f"`{step}` works on tokens of one segment, but these are {layout_of(tokens)}",
            "`keep` and `drop` leave one segment; `prepend` and `append` can stand behind `gather`",
        )
    return first
