"""Losses of features without labels: `info_nce`, `match` of two readings of one sample, and the `rate` of a batch."""

from __future__ import annotations

from typing import ClassVar, Literal

from crate_dsl.compiler.operators import Form, Mistake, Operator, OperatorKind, Port, Positive, Typing, Weight
from crate_dsl.compiler.types import TensorType, floats

#: What a cosine is divided by where nothing else is said.
USUAL_TEMPERATURE = 0.1


class Cosine(Form):
    """How alike two features are by their angle: ⟨a, b⟩ of unit features, divided by the temperature."""

    word: ClassVar[str] = "cosine"


class Gaussian(Form):
    """How alike two features are by their distance: the logarithm of a Gaussian of width `sigma`, -‖a - b‖²/(2σ²)."""

    word: ClassVar[str] = "gaussian"
    sigma: Positive


class InfoNce(Operator):
    """How unlikely it is that each sample's two features find each other in the batch, in nats.

    `a` and `b`, float[dim] each, are two readings of one sample, such as two crops of a picture. Each `a` has to tell
    its `b` from those of the batch's other samples, and each `b` its `a`; the loss is the mean of both ways. A batch
    of B samples gives log B by guessing, and one sample alone 0: there is nothing to tell it from, so that batches
    must be large.

    `kernel` is what compares two features. `cosine` compares their angles at a `temperature`, 0.1 where nothing is
    said: a number, or a `learn`, which should start above 0 and is not held there. `gaussian(sigma)` compares their
    distances, and needs no temperature. At the optimum the kernel is, up to a constant, the pointwise mutual
    information of what `a` and `b` were read from, log p(a, b) / (p(a) p(b)).
    """

    word: ClassVar[str] = "info_nce"
    kind: ClassVar[OperatorKind] = "objective"
    formula: ClassVar[str] = (
        r"-\tfrac{1}{2B} \sum_i \Bigl( \log \frac{e^{k(a_i, b_i)}}{\sum_j e^{k(a_i, b_j)}} "
        r"+ \log \frac{e^{k(a_i, b_i)}}{\sum_j e^{k(a_j, b_i)}} \Bigr),\quad "
        r"k(a, b) = \frac{\langle a, b \rangle}{\tau \lVert a \rVert \lVert b \rVert} \text{ or } "
        r"-\frac{\lVert a - b \rVert_2^2}{2 \sigma^2}"
    )
    source: ClassVar[str] = (
        "van den Oord et al. 2018 (CPC), arXiv 1807.03748, eq. 4; both ways: Radford et al. 2021 (CLIP), arXiv "
        "2103.00020, section 2.3; the optimum: Huh et al. 2024, arXiv 2405.07987, section 4"
    )

    a: Port
    b: Port
    temperature: Positive | Weight | None = None
    kernel: Cosine | Gaussian = Cosine()

    def infer(self, *inputs: TensorType) -> Typing:
        a, b = self.a.type, self.b.type
        if a.kind != "float" or a.rank != 1 or a != b:
            raise Mistake(
                "E0474",
                f"`info_nce` compares two features of each sample, float[dim] of one width, but is given {a} and {b}",
                *_as_features(a, b),
                at="b",
                label=str(b),
            )
        if isinstance(self.kernel, Gaussian) and self.temperature is not None:
            raise Mistake(
                "E0305",
                "`temperature` divides cosines, and distances are divided by `sigma`",
                "kernel = cosine, or a `sigma` alone: a temperature τ would make it σ√τ",
                at="temperature",
            )
        weights: dict[str, Weight] = {}
        if isinstance(self.temperature, Weight):
            if self.temperature.type.shape:
                raise Mistake(
                    "E0314",
                    f"a learned `temperature` is one number, float, but `{self.temperature.name}` is "
                    f"{self.temperature.type}",
                    at="temperature",
                    label=str(self.temperature.type),
                )
            weights["temperature"] = self.temperature
        return Typing((floats(),), weights, flops=6 * a.elements)


class Distance(Form):
    """Half the squared distance of unit features, ½ ‖t - s‖²: 1 - their cosine."""

    word: ClassVar[str] = "distance"


class Dino(Form):
    """The cross-entropy of two softmaxes over the width: of the student's features divided by the temperature
    `student`, as the teacher's tell it, less their mean over the batch and its views, divided by the temperature
    `teacher`.
    """

    word: ClassVar[str] = "dino"
    student: Positive = 0.1
    teacher: Positive = 0.04


class Match(Operator):
    """How far a student's views of a sample are from a teacher's: the mean over pairs of views, and over samples.

    `student` is float[V, dim], `teacher` float[W, dim], or float[dim] for one view. Every view of the one is compared
    with every view of the other; `except = same` leaves out pairs of one index, which are the same view where both
    have seen the same crops. The teacher gets no gradient: it is a slow copy, `ema(student)`, or a network that is
    frozen.

    `by = distance` is SimDINO's ½ ‖t - s‖² of unit features. It is 0 where all features are one point: subtract a
    `rate`, which is least there. `by = dino(student = 0.1, teacher = 0.04)` is DINO's cross-entropy of softmaxes over
    prototypes, of what a `linear` onto some thousands of them gives. DINO subtracts a running mean of the teacher's
    features over past batches; here, where a loss has no memory, it is the mean of this batch and its views, so that
    a batch should be large, and one sample with one view tells nothing.

    Published, the mean is over all pairs with crops of either size. Of two terms, of large and of small crops, that
    is their mean with the numbers of their pairs as weights.
    """

    word: ClassVar[str] = "match"
    kind: ClassVar[OperatorKind] = "objective"
    formula: ClassVar[str] = (
        r"\frac{1}{B |P|} \sum_b \sum_{(v, w) \in P} \ell(s_{bv}, t_{bw}),\quad "
        r"\ell = \tfrac12 \Bigl\lVert \frac{t}{\lVert t \rVert} - \frac{s}{\lVert s \rVert} \Bigr\rVert_2^2 "
        r"\text{ or } -\sum_c \operatorname{softmax}\bigl(\tfrac{t - \mu}{\tau_t}\bigr)_c "
        r"\log \operatorname{softmax}\bigl(\tfrac{s}{\tau_s}\bigr)_c"
    )
    source: ClassVar[str] = (
        "distance: Wu et al. 2025 (SimDINO), arXiv 2502.10385; dino: Caron et al. 2021 (DINO), arXiv 2104.14294, "
        "eqs. 1 to 4"
    )

    student: Port
    teacher: Port
    except_: Literal["none", "same"] = "none"
    by: Distance | Dino = Distance()

    @property
    def pairs(self) -> int:
        """How many pairs of views are compared."""
        views = [_views(port.type) for port in (self.student, self.teacher)]
        return views[0] * views[1] - (min(views) if self.except_ == "same" else 0)

    def infer(self, *inputs: TensorType) -> Typing:
        student, teacher = self.student.type, self.teacher.type
        sound = all(t.kind == "float" and t.rank in (1, 2) and _views(t) for t in (student, teacher))
        if not sound or student.shape[-1] != teacher.shape[-1]:
            raise Mistake(
                "E0475",
                "`match` compares features of views, float[views, dim] or float[dim], of one width, but is given "
                f"{student} and {teacher}",
                "views -> each { encoder }, where the encoder ends in `pool` or `select`",
                at="teacher",
                label=str(teacher),
            )
        if not self.pairs:
            raise Mistake(
                "E0476",
                "nothing is left to compare: student and teacher have one view, and `except = same` leaves it out",
                "more views, such as `crops(2, …)`, or no `except`",
                at="except_",
            )
        return Typing((floats(),), flops=3 * self.pairs * student.shape[-1].bound)


class Rate(Operator):
    """How many nats the features of a batch take: R, the coding rate of unit features, to be subtracted.

    `features` is float[dim], or float[views, dim], of which it is the mean over views. It is least, ½ log(1 + d/ε²),
    where all point in one direction, and the larger the more evenly they fill all of them: `match(…) - 0.05 *
    rate(z)` keeps what is matched from becoming one point. The rates are those of the whole batch. `eps` is ε.

    SimDINO's code adds γ R with γ = (d + B)/(d B) for B samples of width d, and its `--eps 0.5` is ε²: `eps =
    0.7071`. For 512 samples of width 256, that is `match(…) - 0.00586 * rate(z, eps = 0.7071)`.
    """

    word: ClassVar[str] = "rate"
    kind: ClassVar[OperatorKind] = "objective"
    formula: ClassVar[str] = (
        r"\tfrac{1}{2V} \sum_v \log\det\bigl(I + \tfrac{d}{B \epsilon^2} \bar Z_v \bar Z_v^\top\bigr),\quad "
        r"\bar z = z / \lVert z \rVert_2"
    )
    source: ClassVar[str] = (
        "Yu et al. 2020 (MCR²), arXiv 2006.08558; against collapse: Wu et al. 2025 (SimDINO), arXiv 2502.10385"
    )

    features: Port
    eps: Positive = 0.5

    def infer(self, *inputs: TensorType) -> Typing:
        features = self.features.type
        if features.kind != "float" or features.rank not in (1, 2) or not _views(features):
            raise Mistake(
                "E0477",
                f"`rate` takes features of each sample, float[dim] or float[views, dim], but is given {features}",
                *_as_features(features),
                at="features",
                label=str(features),
            )
        width = features.shape[-1].bound
        return Typing((floats(),), flops=2 * features.elements * width)


def _views(features: TensorType) -> int:
    """How many views of a sample there are; 0 where that is known only at run time."""
    return 1 if features.rank == 1 else features.shape[0].static or 0


def _as_features(*given: TensorType) -> tuple[str, ...]:
    """The remedy where something is tokens, and not features."""
    tokens = any(t.kind == "float" and t.rank == 2 for t in given)
    return ("a token stream becomes features by `pool` or `select`",) if tokens else ()
