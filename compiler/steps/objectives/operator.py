"""Objectives: numbers that training makes small. They take tensors by name, own no weights and are never exported."""

from __future__ import annotations

from typing import ClassVar

from crate_dsl.compiler.operators import (
    Fraction01,
    Mistake,
    Operator,
    OperatorKind,
    Port,
    Typing,
)
from crate_dsl.compiler.types import TensorType, floats


class CrossEntropy(Operator):
    """How unlikely the labels are under the softmax of the logits: the mean over samples (and tokens), in nats.

    `smoothing` moves that share of each label's mass evenly to all classes.
    """

    word: ClassVar[str] = "cross_entropy"
    kind: ClassVar[OperatorKind] = "objective"
    formula: ClassVar[str] = (
        r"-\tfrac{1}{B} \sum_b \sum_c q_{bc} \log \operatorname{softmax}(x_b)_c,\quad "
        r"q_{bc} = (1 - \epsilon)\,[c = y_b] + \epsilon / C"
    )
    source: ClassVar[str] = (
        "label smoothing: Szegedy et al. 2016, Rethinking the Inception Architecture, arXiv 1512.00567, 7"
    )

    logits: Port
    label: Port
    smoothing: Fraction01 = 0.0

    def infer(self, *inputs: TensorType) -> Typing:
        logits, label = self.logits.type, self.label.type
        fits = logits.kind == "float" and label.kind == "index" and logits.rank in (1, 2)
        if not fits or logits.shape[:-1] != label.shape:
            raise Mistake(
                "E0442",
                "`cross_entropy` takes float[classes] and index(classes), or float[tokens, classes] and "
                f"index(classes)[tokens], but is given {logits} and {label}",
                at="label",
                label=str(label),
            )
        classes = logits.shape[-1].static
        if classes is None:
            raise Mistake(
                "E0402",
                f"`cross_entropy` needs a number of classes that is known, but is given {logits}",
                at="logits",
            )
        if classes != label.classes:
            raise Mistake(
                "E0440",
                f"there are logits of {classes} classes, but labels of {label.classes}",
                f"`linear({label.classes})` gives one logit for each class",
                at="label",
                label=str(label),
            )
        # Largest entry, difference, exponential, sum, logarithm: some five operations for each logit.
        return Typing((floats(),), flops=5 * logits.elements)


class Mse(Operator):
    """The mean squared difference between two tensors, over samples and entries."""

    word: ClassVar[str] = "mse"
    kind: ClassVar[OperatorKind] = "objective"
    formula: ClassVar[str] = r"\tfrac{1}{BM} \sum_b \lVert y_b - t_b \rVert_2^2"
    source: ClassVar[str] = "reconstruction of patches: He et al. 2022 (MAE), arXiv 2111.06377, section 3"

    output: Port
    target: Port

    def infer(self, *inputs: TensorType) -> Typing:
        output, target = self.output.type, self.target.type
        if output.kind != "float" or output != target:
            raise Mistake(
                "E0441",
                f"`mse` compares float tensors of one shape, but is given {output} and {target}",
                at="target",
                label=str(target),
            )
        return Typing((floats(),), flops=3 * output.elements)
