"""`denoise`: the posterior mean of tokens that lie in one of K learned subspaces, given noise of a known size."""

from __future__ import annotations

from typing import ClassVar, Literal

from crate_dsl.compiler.operators import (
    Guard,
    Inverse,
    Mode,
    NoInverse,
    Operator,
    PositiveScalar,
    Typing,
    Weight,
    Whole,
    check_scalar,
    learned_slots,
)
from crate_dsl.compiler.steps.compress.operator import bases_of, check_orthonormal
from crate_dsl.compiler.steps.norm.operator import width_of
from crate_dsl.compiler.types import TensorType


class Denoise(Operator):
    """The mean of what a token was before noise of standard deviation `time` was added to it.

    Tokens are drawn from an equal mixture of `subspaces` Gaussians N(0, U_k U_kᵀ), each of dimension `rank`. Every
    token is taken for itself: it is attention of sequence length one, whose K heads compete. (D(x) - x) / t² is the
    gradient of the log density of noisy tokens (Tweedie). `time` is a number, learned, or one for each sample.

    The formula holds where each U_k has orthonormal columns: `constraint = orthonormal`, which is the default where the
    step owns its bases. `bases` takes a `learn` of shape [subspaces * rank, dim], which a `compress` may share.

    Taps: `projection` is U_kᵀ x, (B, K, N, p); `posterior` is w, (B, N, K), how likely each subspace is.
    """

    word: ClassVar[str] = "denoise"
    formula: ClassVar[str] = (
        r"\frac{1}{1+t^2} \sum_k w_k U_k U_k^\top x,\quad "
        r"w = \operatorname{softmax}_k \frac{\lVert U_k^\top x \rVert^2}{2 t^2 (1+t^2)}"
    )
    source: ClassVar[str] = (
        "posterior mean of a mixture of low-rank Gaussians: Yu et al. 2023, arXiv 2311.13110, section 2; "
        "Efron 2011, Tweedie's Formula and Selection Bias"
    )

    subspaces: Whole
    rank: Whole
    time: PositiveScalar
    constraint: Literal["none", "orthonormal"] | None = None
    bases: Weight | None = None

    @property
    def taps(self) -> tuple[str, ...]:
        return ("projection", "posterior")

    @property
    def orthonormal(self) -> bool:
        return self.constraint == "orthonormal" or (self.constraint is None and self.bases is None)

    def infer(self, *inputs: TensorType) -> Typing:
        (tokens,) = inputs
        width = width_of(self.word, tokens)
        inner = self.subspaces * self.rank
        if self.orthonormal:
            check_orthonormal(self.subspaces, self.rank, width)
        check_scalar(self, "time", 1)
        bases = bases_of(self.bases, inner, width, "orthonormal" if self.orthonormal else "none")
        given = {name: slot for name, slot in learned_slots(self).items() if name != "bases"}
        count = tokens.shape[0].bound
        # Two maps; the energies; their softmax; the weighted heads.
        flops = count * (2 * 2 * width * inner + 3 * inner + 5 * self.subspaces)
        return Typing((tokens,), {"subspaces": bases} | given, flops=flops, guards=self._guards())

    def _guards(self) -> tuple[Guard, ...]:
        if self.orthonormal:
            return ()
        message = "this is a posterior mean only of subspaces with orthonormal basis vectors, and nothing holds these"
        at = "bases" if self.constraint is None else "constraint"
        return (Guard("W0814", message, "constraint = orthonormal", at=at),)

    def inverse(self, mode: Mode, *inputs: TensorType) -> Inverse | NoInverse:
        return NoInverse("what it takes for noise is gone")
