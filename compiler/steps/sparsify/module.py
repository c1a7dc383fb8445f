"""`sparsify` and `densify` in torch. Axes: B batch, N tokens, d width, s codes (s = d unless `expand`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from crate_dsl.compiler.modules import Bound, StepModule
from crate_dsl.compiler.operators import Port
from crate_dsl.compiler.steps.norm.module import normalise
from crate_dsl.compiler.steps.sparsify.operator import Leaky, ProxForm, Soft
from crate_dsl.compiler.types import TensorType

#: D' - D'D costs d tokens' worth of products, once. Measured, both ways take the same time at d tokens; at half as many
#: again, in float32 one product is ahead by 1.1 to 1.3 at widths of 128 to 768, with gradients and without.
MANY = 1.5


def proximal(form: ProxForm, a_bns: Tensor, threshold: Tensor | float) -> Tensor:
    """The proximal map of the penalty, with `threshold` = step · penalty."""
    shrunk_bns = a_bns - threshold
    if isinstance(form, Soft):
        return F.relu(shrunk_bns) - F.relu(-a_bns - threshold)
    if isinstance(form, Leaky):
        return F.leaky_relu(shrunk_bns, form.slope)
    return F.relu(shrunk_bns, inplace=True)


def _matrix_is_cheaper(y_bnd: Tensor, eta: Tensor | float, times: int = 1) -> bool:
    """Whether one product with D' - D'D is cheaper than two: where there are many more tokens than channels.

    A step for each sample would need a matrix for each, and an exported program must not depend on the size of its
    example.
    """
    each_sample = isinstance(eta, Tensor) and eta.dim() == 3
    if each_sample or torch.compiler.is_exporting():
        return False
    return times * y_bnd.numel() >= MANY * y_bnd.shape[-1] ** 2


def _pull(eta: Tensor | float, dictionary_dd: Tensor) -> Tensor:
    """η (D - D'D): the matrix of η D'(Y - D Y), where tokens are rows."""
    return eta * (dictionary_dd - dictionary_dd.T @ dictionary_dd)


def _halved(y_bnd: Tensor) -> bool:
    """Whether products of these tokens are of half precision."""
    return y_bnd.itemsize < 4 or torch.is_autocast_enabled(y_bnd.device.type)


def unshrunk(form: ProxForm, a_bns: Tensor, threshold: Tensor | float) -> Tensor:
    """What the proximal map took to `a_bns`: with `leaky` for certain, else as far as it is active."""
    if isinstance(form, Soft):
        return a_bns + a_bns.sign() * threshold
    if isinstance(form, Leaky):
        return F.leaky_relu(a_bns, 1 / form.slope) + threshold
    return a_bns + threshold


class DictionaryModule(StepModule):
    """The proximal steps of `sparsify` and `densify`.

    `given` are tensors by name: those handed over by argument, and the weights that are another's.
    """

    def _scalars(self, given: Mapping[str, Tensor]) -> tuple[Tensor | float, Tensor | float]:
        """η, and the threshold ηλ."""
        eta = self.scalar("step", given.get("step"))
        return eta, eta * self.scalar("penalty", given.get("penalty"))

    def _code(self, y_bnd: Tensor, given: Mapping[str, Tensor], plain: bool = False) -> Tensor:
        """A, (B, N, s), from Y; `plain` by two products for each step."""
        op, dictionary_ds = self.operator, self._dictionary(given)
        eta, threshold = self._scalars(given)
        # A_{t+1} = prox(A_t + η D'(Y - D A_t)), row by row.
        if op.start == "input":
            a_bns = proximal(op.prox, self._ascended(y_bnd, eta, dictionary_ds, plain), threshold)
        else:
            a_bns = proximal(op.prox, eta * (y_bnd @ dictionary_ds), threshold)
        for _ in range(op.iterations - 1):
            residue_bnd = y_bnd - F.linear(a_bns, dictionary_ds)
            a_bns = proximal(op.prox, a_bns + eta * (residue_bnd @ dictionary_ds), threshold)
        return a_bns

    def _decoded(self, a_bns: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        if self.operator.decode == "none":
            return a_bns
        return F.linear(a_bns, self._decoder(given))

    @classmethod
    def _ascended(
        cls, y_bnd: Tensor, eta: Tensor | float, dictionary_dd: Tensor, plain: bool = False
    ) -> Tensor:
        """Y + η D'(Y - D Y)."""
        if not _matrix_is_cheaper(y_bnd, eta) or plain or _halved(y_bnd):
            return y_bnd + cls._ascent(y_bnd, eta, dictionary_dd, plain=plain)(y_bnd)
        # The identity is in the matrix: with it, a sum of all tokens and that of its gradient are saved.
        identity_dd = torch.eye(len(dictionary_dd), dtype=y_bnd.dtype, device=y_bnd.device)
        return y_bnd @ (identity_dd + _pull(eta, dictionary_dd))

    @staticmethod
    def _ascent(
        y_bnd: Tensor, eta: Tensor | float, dictionary_dd: Tensor, *, times: int = 1, plain: bool = False
    ) -> Callable[[Tensor], Tensor]:
        """Y -> η D'(Y - D Y), to be taken so many `times` of tokens such as these.

        The identity stays out of the matrix, so that the tokens keep their precision under autocast.
        """
        if plain or not _matrix_is_cheaper(y_bnd, eta, times):
            return lambda x_bnd: eta * ((x_bnd - F.linear(x_bnd, dictionary_dd)) @ dictionary_dd)
        ascent_dd = _pull(eta, dictionary_dd)
        return lambda x_bnd: x_bnd @ ascent_dd

    def _explained(self, z_bnd: Tensor, given: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """What the codes amount to, and the taps, by the plain formula."""
        y_bnd = self._normalised(z_bnd, given)
        a_bns = self._code(y_bnd, given, plain=True)
        return self._decoded(a_bns, given), {"norm": y_bnd, "code": a_bns}

    @torch.no_grad()
    def bound(self, *inputs: TensorType, **given: Tensor) -> Bound:
        """‖M - I‖₂ with M = I + η(D' - D'D), on the active set; of a residual, that of the codes that it adds."""
        op = self.operator
        if isinstance(op.step, Port):
            return Bound(None, "its step is handed over, sample by sample")
        eta, _ = self._scalars(given)
        dictionary_ds = self._dictionary(given)
        if op.residual:
            return self._residual_bound(eta, dictionary_ds, given)
        if op.start == "zero" or op.iterations > 1 or op.decode != "none":
            return Bound(None, "its codes replace the tokens: the step is not near the identity")
        if op.norm.word != "none":
            return Bound(None, "its norm forgets each token's mean and size")
        found = float(_norm(_pull(eta, dictionary_ds)))
        return Bound(found, f"‖η(D' - D'D)‖₂ = {found:.3g}, where codes are active")

    def _residual_bound(
        self, eta: Tensor | float, dictionary_ds: Tensor, given: Mapping[str, Tensor]
    ) -> Bound:
        op = self.operator
        if op.norm.word != "none":
            return Bound(
                None, "the norm in the branch stretches tokens that are nearly constant without bound"
            )
        # No proximal map stretches: A_{t+1} moves by at most ‖I - ηD'D‖ of what A_t moves, and ‖ηD‖ of what Y moves.
        pull = float(_norm(eta * dictionary_ds))
        gram = eta * (dictionary_ds.T @ dictionary_ds)
        keep = float(_norm(torch.eye(len(gram), dtype=gram.dtype, device=gram.device) - gram))
        found = 1.0 if op.start == "input" else 0.0
        for _ in range(op.iterations):
            found = keep * found + pull
        if op.decode != "none":
            found *= float(_norm(self._decoder(given)))
        return Bound(found, f"codes stretch by at most {found:.3g}, from ‖ηD‖₂ = {pull:.3g}")

    def lasso(self, y_bnd: Tensor, a_bns: Tensor, **given: Tensor) -> Tensor:
        """½‖Y - D A‖² + λ‖A‖₁ of each token, (B, N): what the proximal steps descend on, where Y is the tap `norm`."""
        penalty = self.scalar("penalty", given.get("penalty"))
        residue_bnd = y_bnd - F.linear(a_bns, self._dictionary(given))
        return 0.5 * residue_bnd.square().sum(-1) + (penalty * a_bns.abs()).sum(-1)

    # -------------------------------------------------------------- pieces

    def _dictionary(self, given: Mapping[str, Tensor]) -> Tensor:
        """D, its atoms as columns: (d, s)."""
        dictionary = self.weight_of("dictionary", given)
        assert dictionary is not None
        return dictionary

    def _decoder(self, given: Mapping[str, Tensor]) -> Tensor:
        decoder = self.weight_of("decode", given)
        return self._dictionary(given) if decoder is None else decoder

    def _normalised(self, z_bnd: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        weight, bias = self.weight_of("norm_weight", given), self.weight_of("norm_bias", given)
        return normalise(self.operator.norm, z_bnd, weight, bias)


class Sparsify(DictionaryModule):
    """A sparse code of each token, or what it stands for: (B, N, d) -> (B, N, d)."""

    def forward(self, z_bnd: Tensor, **given: Tensor) -> Tensor:
        out_bnd = self._decoded(self._code(self._normalised(z_bnd, given), given), given)
        return z_bnd + out_bnd if self.operator.residual else out_bnd

    def explain(self, z_bnd: Tensor, **given: Tensor) -> dict[str, Tensor]:
        out_bnd, taps = self._explained(z_bnd, given)
        return taps | {"out": z_bnd + out_bnd if self.operator.residual else out_bnd}

    def descent(self, taps: Mapping[str, Tensor], **given: Tensor) -> tuple[Tensor, Tensor]:
        y_bnd, a_bns = taps["norm"], taps["code"]
        start_bns = y_bnd if self.operator.start == "input" else torch.zeros_like(a_bns)
        return self.lasso(y_bnd, start_bns, **given), self.lasso(y_bnd, a_bns, **given)


class Densify(DictionaryModule):
    """Tokens from their codes: (B, N, d) -> (B, N, d)."""

    def bound(self, *inputs: TensorType, **given: Tensor) -> Bound:
        if self.operator.by == "synthesis":
            return Bound(None, "a synthesis dictionary of its own is any linear map")
        return super().bound(*inputs, **given)

    def forward(self, y_bnd: Tensor, **given: Tensor) -> Tensor:
        op = self.operator
        if op.by == "synthesis":
            return F.linear(self._normalised(y_bnd, given), self._dictionary(given))
        if op.residual:
            return y_bnd - self._decoded(self._code(self._iterated(y_bnd, given), given), given)
        eta, threshold = self._scalars(given)
        v_bnd, dictionary_dd = unshrunk(op.prox, y_bnd, threshold), self._dictionary(given)
        if op.repeats == "certified":
            return self._solved(v_bnd, eta, dictionary_dd)
        ascent, x_bnd = self._ascent(v_bnd, eta, dictionary_dd, times=op.repeats), v_bnd
        for _ in range(op.repeats):
            x_bnd = v_bnd - ascent(x_bnd)
        return x_bnd

    def explain(self, y_bnd: Tensor, **given: Tensor) -> dict[str, Tensor]:
        op = self.operator
        if op.by == "synthesis":
            x_bnd = self._normalised(y_bnd, given)
            return {"norm": x_bnd, "out": F.linear(x_bnd, self._dictionary(given))}
        if op.residual:
            normalised_bnd = self._iterated(y_bnd, given)
            a_bns = self._code(normalised_bnd, given, plain=True)
            return {"norm": normalised_bnd, "code": a_bns, "out": y_bnd - self._decoded(a_bns, given)}
        return {"out": self(y_bnd, **given)}

    def _iterated(self, y_bnd: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        """The normalised tokens of the last evaluation of F: X <- Y - F(X), all but once."""
        x_bnd = y_bnd
        for _ in range(self.operator.repeats - 1):
            x_bnd = y_bnd - self._decoded(self._code(self._normalised(x_bnd, given), given), given)
        return self._normalised(x_bnd, given)

    @staticmethod
    def _solved(v_bnd: Tensor, eta: Tensor | float, dictionary_dd: Tensor) -> Tensor:
        """X where M X = V, row by row."""
        with torch.autocast(v_bnd.device.type, enabled=False):
            v_bnd = v_bnd.to(dictionary_dd.dtype)
            identity_dd = torch.eye(len(dictionary_dd), dtype=v_bnd.dtype, device=v_bnd.device)
            m_dd = identity_dd + _pull(eta, dictionary_dd)
            return torch.linalg.solve(m_dd, v_bnd.flatten(0, -2), left=False).reshape(v_bnd.shape)


def _norm(matrix: Tensor) -> Tensor:
    """The largest singular value."""
    return torch.linalg.matrix_norm(matrix.double(), 2)
