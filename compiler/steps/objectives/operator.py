"""Objectives: numbers that training makes small. They take tensors by name, own no weights and are never exported."""

from __future__ import annotations

from typing import ClassVar, Literal

from crate_dsl.compiler.accepts import spelled
from crate_dsl.compiler.operators import Fraction01, Mistake, Operator, OperatorKind, Port, Typing
from crate_dsl.compiler.steps.hidden.operator import check_indices, check_marks
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
    """The mean squared difference between two tensors, over samples and entries.

    Of tokens, it may be that of some: those that `on`, bool[N], marks, or all but those of the indices `except`. The
    mean is over the marked tokens of the whole batch; over none, it is 0. `normalize = patch` compares with the
    target's tokens after each has lost its mean and been divided by its standard deviation.
    """

    word: ClassVar[str] = "mse"
    kind: ClassVar[OperatorKind] = "objective"
    formula: ClassVar[str] = (
        r"\frac{\sum_{b, i} h_{bi}\, \tfrac{1}{d} \lVert y_{bi} - t_{bi} \rVert_2^2}{\sum_{b, i} h_{bi}},\quad "
        r"\text{normalize: } \frac{t - \operatorname{mean} t}"
        r"{\sqrt{\tfrac{1}{d - 1} \sum_j (t_j - \operatorname{mean} t)^2 + 10^{-6}}}"
    )
    source: ClassVar[str] = "reconstruction of patches: He et al. 2022 (MAE), arXiv 2111.06377, section 3"

    output: Port
    target: Port
    on: Port | None = None
    except_: Port | None = None
    normalize: Literal["none", "patch"] = "none"

    def infer(self, *inputs: TensorType) -> Typing:
        output, target = self.output.type, self.target.type
        if output.kind != "float" or output != target:
            raise Mistake(
                "E0441",
                f"`mse` compares float tensors of one shape, but is given {output} and {target}",
                at="target",
                label=str(target),
            )
        self._check_tokens(target)
        if self.on is not None:
            check_marks(self.word, "on", self.on.type, target)
        if self.except_ is not None:
            self._check_exceptions(self.except_.type, target)
        if self.normalize == "patch":
            self._check_width(target)
        return Typing((floats(),), flops=(8 if self.normalize == "patch" else 3) * output.elements)

    def _check_tokens(self, target: TensorType) -> None:
        """Refuse what is about tokens where there are none, and two ways to say which of them count."""
        about_tokens = {
            "on": self.on is not None,
            "except_": self.except_ is not None,
            "normalize": self.normalize != "none",
        }
        for argument, given in about_tokens.items():
            if given and target.rank != 2:
                raise Mistake(
                    "E0305",
                    f"`{spelled(argument)}` is about tokens, float[tokens, dim], and {target} has none",
                    at=argument,
                )
        if self.on is not None and self.except_ is not None:
            raise Mistake(
                "E0305",
                "`on` and `except` both say which tokens count",
                "leave one of them out",
                at="except_",
            )

    def _check_exceptions(self, indices: TensorType, target: TensorType) -> None:
        check_indices(self.word, "except_", indices, target)
        if indices.shape[0].static == indices.classes:
            raise Mistake(
                "E0447",
                f"nothing is left to compare: {indices} can name all {indices.classes} tokens",
                at="except_",
                label=str(indices),
            )

    def _check_width(self, target: TensorType) -> None:
        width = target.shape[-1].static
        if width is None:
            raise Mistake(
                "E0402", f"`normalize` needs a width that is known, but is given {target}", at="normalize"
            )
        if width < 2:
            raise Mistake(
                "E0448",
                f"`normalize` divides each token by its spread, but tokens of {target} are single numbers",
                at="normalize",
            )
