"""`sparsify` as its formulas say, in float64, and what tests of it and of `densify` share."""

from __future__ import annotations

import torch
from torch import Tensor

from crate_dsl.compiler.operators import (
    Learned,
    Port,
    Weight,
)
from crate_dsl.compiler.steps.norm.operator import LayerNorm, NoNorm, NormForm, RmsNorm
from crate_dsl.compiler.steps.sparsify.operator import (
    DictionaryStep,
    Leaky,
    Soft,
    Sparsify,
)
from crate_dsl.compiler.types import TensorType, floats
from tests.steps.harness import Step, step

#: Rounding of float64 over sums of some dozens of terms.
EXACT = 1e-12
#: Rounding of float32 over sums of some dozens of terms of size 1.
SINGLE = 2e-5

N, D = 5, 6
TOKENS = floats(N, D)

CRATE = Sparsify()
CRATE_ALPHA = Sparsify(
    iterations=2, start="zero", expand=4, decode="free", residual=True, norm=LayerNorm(eps=1e-6)
)
CRATE_LM = Sparsify(iterations=2, start="zero", expand=4, decode="tied")

VARIANTS = {
    "crate": CRATE,
    "crate_alpha": CRATE_ALPHA,
    "crate_lm": CRATE_LM,
    "rms": Sparsify(step=0.2, penalty=0.3, norm=RmsNorm()),
    "no_norm": Sparsify(norm=NoNorm()),
    "soft": Sparsify(prox=Soft(), penalty=2.0),
    "orthonormal": Sparsify(constraint="orthonormal"),
    "leaky": Sparsify(prox=Leaky(slope=0.7)),
    "three": Sparsify(iterations=3),
    "three_soft_zero": Sparsify(iterations=3, start="zero", prox=Soft()),
    "residual": Sparsify(residual=True),
    "decode_complete": Sparsify(decode="free", iterations=2),
    "tied_complete": Sparsify(decode="tied", start="zero"),
    "learned": Sparsify(step=Learned(0.1), penalty=Learned(0.2)),
    "learned_channels": Sparsify(step=Learned(0.1, (D,)), penalty=Learned(0.2, (D,))),
    "learned_codes": Sparsify(
        step=Learned(0.1, (3 * D,)), start="zero", expand=3, decode="tied", iterations=2
    ),
    "handed": Sparsify(step=Port(floats()), penalty=Port(floats())),
    "handed_step": Sparsify(step=Port(floats()), iterations=2),
    "borrowed": Sparsify(step=Weight("eta", floats()), penalty=0.3),
}


def normalised(form: NormForm, y: Tensor, w: dict[str, Tensor]) -> Tensor:
    if isinstance(form, LayerNorm):
        y = (y - y.mean(-1, keepdim=True)) / (y.var(-1, keepdim=True, unbiased=False) + form.eps).sqrt()
        return w["norm_weight"] * y + w["norm_bias"]
    if isinstance(form, RmsNorm):
        return w["norm_weight"] * y / (y.pow(2).mean(-1, keepdim=True) + form.eps).sqrt()
    return y


def reference(item: Step, z: Tensor, **given: Tensor) -> Tensor:
    """The formula, one token a column: A <- prox(A + η D'(Y - D A))."""
    op, w = item.operator, {name: value.detach().double() for name, value in item.module.named_parameters()}
    y = normalised(op.norm, z.double(), w)
    eta, penalty = (scalar(item, name, w, given) for name in ("step", "penalty"))
    dictionary = w["dictionary"]
    y, tau = y.transpose(1, 2), eta * penalty
    a = y if op.start == "input" else torch.zeros(len(y), dictionary.shape[1], y.shape[2], dtype=torch.double)
    for _ in range(op.iterations):
        v = a - eta * (dictionary.T @ (dictionary @ a - y))
        if isinstance(op.prox, Soft):
            a = v.sign() * (v.abs() - tau).clamp(min=0)
        else:
            slope = op.prox.slope if isinstance(op.prox, Leaky) else 0.0
            a = torch.where(v > tau, v - tau, slope * (v - tau))
    out = {"none": a, "tied": dictionary @ a, "free": w.get("decode", dictionary) @ a}[op.decode]
    return out.transpose(1, 2) + z.double() if op.residual else out.transpose(1, 2)


def scalar(item: Step, name: str, weights: dict[str, Tensor], given: dict[str, Tensor]) -> Tensor:
    value = getattr(item.operator, name)
    if isinstance(value, float):
        return torch.tensor(value, dtype=torch.double)
    if isinstance(value, Port):
        return given[name].double().reshape(-1, 1, 1)
    # One for each code: a column.
    found = (weights[name] if isinstance(value, Learned) else given[name]).double()
    return found[:, None] if found.dim() else found


def arguments(item: Step, batch: int) -> dict[str, Tensor]:
    """A number for each sample where one is handed over, a single one where it is borrowed."""
    shapes = {Port: (batch,), Weight: ()}
    values = {name: getattr(item.operator, name) for name in ("step", "penalty")}
    return {
        name: 0.1 + 0.3 * torch.rand(shapes[type(value)])
        for name, value in values.items()
        if type(value) in shapes
    }


def perturbed(operator: DictionaryStep, tokens: TensorType = TOKENS) -> Step:
    """The step; learned thresholds are not negative."""
    item = step(operator, tokens)
    with torch.no_grad():
        for name in ("step", "penalty"):
            if name in dict(item.module.named_parameters()):
                getattr(item.module, name).abs_()
    return item


# Few tokens take two products, many one: both batches are tried in both faces.
