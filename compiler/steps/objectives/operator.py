"""Objectives: numbers that training makes small. They take tensors by name, own no weights and are never exported."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from crate_dsl.compiler.accepts import spelled
from crate_dsl.compiler.operators import (
    Inside,
    Mistake,
    NonNegative,
    Operator,
    OperatorKind,
    Port,
    Positive,
    Typing,
    Weight,
    Whole,
)
from crate_dsl.compiler.steps.compress.operator import Compress
from crate_dsl.compiler.steps.hidden.operator import check_indices, check_marks
from crate_dsl.compiler.steps.norm.operator import width_of
from crate_dsl.compiler.types import TensorType, floats

if TYPE_CHECKING:
    from crate_dsl.compiler.graph import Node


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


class SparseRate(Operator):
    """What sparse rate reduction minimises: λ times the mean size of the tokens' entries, plus their coding rate
    against K subspaces, minus their coding rate; the mean over samples.

    `sparse_rate(encoder)` measures what leaves each layer of a stage against that layer's own subspaces, and takes the
    mean over the layers, and over every use of the stage that the objective's other terms read. A layer is a `compress`
    and the steps after it up to the next one. `sparse_rate(tokens, bases = U, subspaces = 4)` measures any tokens
    against a `learn` of shape [subspaces * rank, dim].

    Tokens are first brought to a root mean square of 1 each, so that nothing is won by shrinking them. `eps` is ε.
    Rates are some hundred nats where the mean size is below 1: a λ that makes codes sparser is as large as they are.
    """

    word: ClassVar[str] = "sparse_rate"
    kind: ClassVar[OperatorKind] = "objective"
    formula: ClassVar[str] = (
        r"\tfrac{1}{B} \sum_b \bigl( \lambda \operatorname{mean} |\bar Z_b| + R^c(\bar Z_b \mid U_{[K]}) - R(\bar Z_b) "
        r"\bigr),\quad \bar z = z \,/\, \sqrt{\tfrac{1}{d} \lVert z \rVert_2^2}"
    )
    source: ClassVar[str] = (
        "the sparse rate reduction objective: Yu et al. 2023, arXiv 2311.13110; as a regulariser of CRATE's layers: "
        "arXiv 2411.17182"
    )

    of: Inside | Port
    penalty: NonNegative = 0.1
    eps: Positive = 0.5
    bases: Weight | None = None
    subspaces: Whole | None = None

    def terms(self, steps: Sequence[Node]) -> list[tuple[Operator, dict[str, Node]]]:
        layers: list[tuple[Compress, str, Node]] = []
        for node in steps:
            if isinstance(node.operator, Compress):
                layers.append((node.operator, node.weights["subspaces"].slot, node))
            elif layers and node.typing.output == layers[-1][2].typing.output:
                layers[-1] = (*layers[-1][:2], node)
        assert isinstance(self.of, Inside)
        if self.bases is not None or self.subspaces is not None:
            argument = "bases" if self.bases is not None else "subspaces"
            message = f"each layer of `{self.of.name}` is measured against its own subspaces"
            raise Mistake("E0305", message, f"leave `{argument}` out", at=argument)
        if not layers:
            message = f"`sparse_rate` measures `compress` steps, and `{self.of.name}` has none"
            help = "tokens are measured against a `learn`: `sparse_rate(tokens, bases = U, subspaces = 4)`"
            raise Mistake("E0606", message, help, at="of")
        return [(self._at(compress, slot, last), {"of": last}) for compress, slot, last in layers]

    def _at(self, compress: Compress, slot: str, last: Node) -> Operator:
        """The same measurement, of what leaves one layer against that layer's subspaces."""
        tokens = last.typing.output
        shape = floats(compress.subspaces * compress.rank, tokens.shape[-1])
        return SparseRate(
            of=Port(tokens),
            penalty=self.penalty,
            eps=self.eps,
            bases=Weight(slot, shape),
            subspaces=compress.subspaces,
        )

    def infer(self, *inputs: TensorType) -> Typing:
        assert isinstance(self.of, Port)
        tokens = self.of.type
        width = width_of(self.word, tokens)
        if self.bases is None or self.subspaces is None:
            missing = "bases" if self.bases is None else "subspaces"
            help = (
                "sparse_rate(tokens, bases = U, subspaces = 4), or the name of a stage: sparse_rate(encoder)"
            )
            raise Mistake("E0302", f"`sparse_rate` of tokens needs `{missing}`", help)
        shape = self.bases.type.shape
        rows = shape[0].bound if shape else 0
        if len(shape) != 2 or shape[1].bound != width or rows % self.subspaces:
            raise Mistake(
                "E0607",
                f"bases of {self.subspaces} subspaces of tokens {tokens} are float[{self.subspaces} * rank, {width}], "
                f"but `{self.bases.name}` is {self.bases.type}",
                at="bases",
                label=str(self.bases.type),
            )
        count, rank = tokens.shape[0].bound, rows // self.subspaces
        small, head = min(count, width), min(count, rank)
        grams = 2 * count * width * (small + rows) + 2 * rows * count * head
        flops = grams + (small**3 + self.subspaces * head**3) // 3
        return Typing((floats(),), {"bases": self.bases}, flops=flops)


class RateReduction(Operator):
    """Minus the rate reduction of features: what all of them take to code, less what each class takes by itself.

    Minimising it makes each class compact and the classes different (MCR²). `membership` is a class for each sample,
    index(classes), or its share in each, float[classes]. The rates are those of the whole batch. Features are brought
    to the unit sphere first. `eps` is ε.
    """

    word: ClassVar[str] = "rate_reduction"
    kind: ClassVar[OperatorKind] = "objective"
    formula: ClassVar[str] = (
        r"R^c(\bar Z \mid \Pi) - R(\bar Z),\quad \bar z = z / \lVert z \rVert_2,\quad R^c(Z \mid \Pi) = \sum_k "
        r"\tfrac{\operatorname{tr} \Pi_k}{2B} \log\det\bigl(I + \tfrac{d}{\operatorname{tr} \Pi_k\, \epsilon^2} "
        r"Z \Pi_k Z^\top\bigr)"
    )
    source: ClassVar[str] = "Yu et al. 2020 (MCR²), arXiv 2006.08558"

    features: Port
    membership: Port
    eps: Positive = 0.5

    def infer(self, *inputs: TensorType) -> Typing:
        features, membership = self.features.type, self.membership.type
        hard = membership.kind == "index" and not membership.shape
        soft = membership.kind == "float" and membership.rank == 1
        if features.kind != "float" or features.rank != 1 or not (hard or soft):
            raise Mistake(
                "E0608",
                "`rate_reduction` takes features, float[dim], and a class, index(classes), or shares of classes, "
                f"float[classes], of each sample, but is given {features} and {membership}",
                "a token stream becomes features by `pool` or `select`",
                at="features" if features.rank != 1 else "membership",
                label=str(features if features.rank != 1 else membership),
            )
        width = features.elements
        return Typing((floats(),), flops=2 * width**2)
