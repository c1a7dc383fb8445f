"""Losses that are cross-entropies, in nats: of labels, next tokens, hidden tokens, and turns of a picture."""

from __future__ import annotations

from typing import ClassVar

from crate_dsl.compiler.operators import Fraction01, Mistake, Operator, OperatorKind, Port, Typing
from crate_dsl.compiler.types import TensorType, floats

#: Largest entry, difference, exponential, sum, logarithm: some five operations for each logit.
FLOPS_OF_A_LOGIT = 5


class CrossEntropy(Operator):
    """How unlikely the labels are under the softmax of the logits: the mean over samples (and tokens), in nats.

    `smoothing` moves that share of each label's mass evenly to all classes. `on`, a boolean for each label, says
    which of them count: the mean is over those of the whole batch; over none, it is 0.
    """

    word: ClassVar[str] = "cross_entropy"
    kind: ClassVar[OperatorKind] = "objective"
    formula: ClassVar[str] = (
        r"-\frac{\sum_i h_i \sum_c q_{ic} \log \operatorname{softmax}(x_i)_c}{\sum_i h_i},\quad "
        r"q_{ic} = (1 - \epsilon)\,[c = y_i] + \epsilon / C"
    )
    source: ClassVar[str] = (
        "label smoothing: Szegedy et al. 2016, Rethinking the Inception Architecture, arXiv 1512.00567, 7"
    )

    logits: Port
    label: Port
    smoothing: Fraction01 = 0.0
    on: Port | None = None

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
        _check_classes(self.word, logits, label, "label")
        if self.on is not None:
            _check_marks(self.word, self.on.type, label)
        return Typing((floats(),), flops=FLOPS_OF_A_LOGIT * logits.elements)


class NextToken(Operator):
    """How unlikely each token is, given those before it, in nats: the mean over tokens but the first of each text.

    Logits of token i are compared with token i + 1, so that the last ones are compared with nothing: a network that
    is to be trained so must be causal. `on`, bool[n], says which tokens count where they are what is to be told, such
    as the `kept : bool[n]` of padded texts; the mean is over those of the whole batch; over none, it is 0.
    `smoothing` is that of `cross_entropy`. Its exponential is the perplexity.
    """

    word: ClassVar[str] = "next_token"
    kind: ClassVar[OperatorKind] = "objective"
    formula: ClassVar[str] = (
        r"-\frac{\sum_{i < n} h_{i+1} \sum_c q_{i+1, c} \log \operatorname{softmax}(x_i)_c}{\sum_{i < n} h_{i+1}}"
        r",\quad q_{ic} = (1 - \epsilon)\,[c = y_i] + \epsilon / C"
    )
    source: ClassVar[str] = (
        "Radford et al. 2019 (GPT-2), section 2; for CRATE: Bai et al. 2024 (CRATE-LM), arXiv 2410.16443"
    )

    logits: Port
    ids: Port
    on: Port | None = None
    smoothing: Fraction01 = 0.0

    def infer(self, *inputs: TensorType) -> Typing:
        logits, ids = self.logits.type, self.ids.type
        _check_texts(self.word, logits, ids)
        if ids.shape[0].static == 1:
            raise Mistake(
                "E0479",
                "`next_token` compares each token with the logits of the one before it, but these texts have one token",
                "texts of two tokens or more: `input ids : index(vocab)[n <= context]`",
                at="ids",
                label=str(ids),
            )
        if self.on is not None:
            _check_marks(self.word, self.on.type, ids)
        return Typing((floats(),), flops=FLOPS_OF_A_LOGIT * logits.elements)


class MaskedToken(Operator):
    """How unlikely the tokens that `on`, bool[n], marks are under the logits in their places, in nats.

    `ids` are the texts as they are, the logits those of texts in which the marked tokens are hidden: `mask_tokens`
    gives such texts and the marks. The mean is over the marked tokens of the whole batch; over none, it is 0.
    `smoothing` is that of `cross_entropy`, of which this is the case in which something is hidden.
    """

    word: ClassVar[str] = "masked_token"
    kind: ClassVar[OperatorKind] = "objective"
    formula: ClassVar[str] = (
        r"-\frac{\sum_i h_i \sum_c q_{ic} \log \operatorname{softmax}(x_i)_c}{\sum_i h_i},\quad "
        r"q_{ic} = (1 - \epsilon)\,[c = y_i] + \epsilon / C"
    )
    source: ClassVar[str] = "Devlin et al. 2019 (BERT), arXiv 1810.04805, section 3.1, task 1"

    logits: Port
    ids: Port
    on: Port
    smoothing: Fraction01 = 0.0

    def infer(self, *inputs: TensorType) -> Typing:
        logits, ids = self.logits.type, self.ids.type
        _check_texts(self.word, logits, ids)
        _check_marks(self.word, self.on.type, ids)
        return Typing((floats(),), flops=FLOPS_OF_A_LOGIT * logits.elements)


class Rotation(Operator):
    """How unlikely it is that a picture was turned as it was: the mean over the four turns and the samples, in nats.

    `scores`, float[4, 4], are four scores for each of the four turns that `rotations` gives: row r those of the
    picture turned by r quarters, column c how much it looks turned by c quarters. Guessing gives log 4 = 1.386.
    """

    word: ClassVar[str] = "rotation"
    kind: ClassVar[OperatorKind] = "objective"
    formula: ClassVar[str] = r"-\tfrac{1}{4B} \sum_b \sum_{r=0}^{3} \log \operatorname{softmax}(x_{br})_r"
    source: ClassVar[str] = "Gidaris et al. 2018 (RotNet), arXiv 1803.07728, eq. 2"

    scores: Port

    def infer(self, *inputs: TensorType) -> Typing:
        scores = self.scores.type
        if scores != floats(4, 4):
            raise Mistake(
                "E0473",
                f"`rotation` takes four scores for each of four turns, float[4, 4], but is given {scores}",
                "image -> rotations -> each { encoder } -> linear(4)",
                at="scores",
                label=str(scores),
            )
        return Typing((floats(),), flops=FLOPS_OF_A_LOGIT * scores.elements)


# ------------------------------------------------------------------ what logits, tokens and marks must be


def _check_texts(step: str, logits: TensorType, ids: TensorType) -> None:
    """Logits for each token of a text, and the text. Raises `Mistake` where they are something else."""
    fits = logits.kind == "float" and ids.kind == "index" and logits.rank == 2
    if not fits or logits.shape[:-1] != ids.shape:
        raise Mistake(
            "E0442",
            f"`{step}` takes float[tokens, vocab] and index(vocab)[tokens], but is given {logits} and {ids}",
            at="ids",
            label=str(ids),
        )
    _check_classes(step, logits, ids, "ids")


def _check_classes(step: str, logits: TensorType, label: TensorType, argument: str) -> None:
    """As many logits as classes. Raises `Mistake` where there are not."""
    classes = logits.shape[-1].static
    if classes is None:
        raise Mistake(
            "E0402", f"`{step}` needs a number of classes that is known, but is given {logits}", at="logits"
        )
    if classes != label.classes:
        raise Mistake(
            "E0440",
            f"there are logits of {classes} classes, but labels of {label.classes}",
            f"`linear({label.classes})` gives one logit for each class",
            at=argument,
            label=str(label),
        )


def _check_marks(step: str, marks: TensorType, label: TensorType) -> None:
    """One boolean for each label. Raises `Mistake` where it is something else."""
    wanted = TensorType("bool", label.shape)
    if marks != wanted:
        raise Mistake(
            "E0443",
            f"`on` of `{step}` marks these labels by {wanted}, but is given {marks}",
            at="on",
            label=str(marks),
        )
