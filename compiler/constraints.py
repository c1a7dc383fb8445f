"""Weights that are held to a constraint: where they start, how they are led back to it, how far off they are.

A constrained weight is an ordinary parameter, with the spec's path for a key. Whoever moves it leads it back: the
training loop after every step, anybody else by `net.constrain_()`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from crate_dsl.compiler.operators import Slot

#: How far W Wᵀ may be from the identity, entry by entry, in a weight that counts as orthonormal: float32's rounding
#: of sums over some thousand terms of size 1/√1000, ten times over.
ORTHONORMAL_TOLERANCE = 1e-5
#: From ‖W Wᵀ - I‖₂ = e a Newton-Schulz step leaves at most ¾ e² + ¼ e³: five leave nothing of 0.3 in float64.
NEAR, NEWTON_STEPS = 0.3, 5


def orthonormal(weight: Tensor) -> Tensor:
    """The nearest matrix whose rows (columns, where there are fewer) are orthonormal: the polar factor V of W = S V.

    Nearest in the Frobenius norm; computed in float64. Near it already, as after a step of training, Newton-Schulz
    iterations take a tenth of the time of singular values. Both: Higham 1986, Computing the Polar Decomposition.
    """
    wide = weight.double() if weight.shape[0] <= weight.shape[1] else weight.double().T
    one = torch.eye(len(wide), dtype=wide.dtype, device=wide.device)
    off = wide @ wide.T - one
    if (off @ off).norm().sqrt() < NEAR:  # ‖A‖₂² = ‖A²‖₂ ≤ ‖A²‖
        for _ in range(NEWTON_STEPS):
            wide = wide + 0.5 * (one - wide @ wide.T) @ wide
    else:
        left, _, right = torch.linalg.svd(wide, full_matrices=False)
        wide = left @ right
    return (wide if weight.shape[0] <= weight.shape[1] else wide.T).to(weight.dtype)


@torch.no_grad()
def deviation(weight: Tensor) -> float:
    """The largest entry of W Wᵀ - I (or WᵀW - I, where there are fewer columns)."""
    wide = weight.double() if weight.shape[0] <= weight.shape[1] else weight.double().T
    return float((wide @ wide.T - torch.eye(len(wide), dtype=wide.dtype, device=wide.device)).abs().max())


@torch.no_grad()
def constrain_(weights: Mapping[str, Tensor], slots: Mapping[str, Slot]) -> None:
    """Lead every weight that has a constraint back to it, in place."""
    for path, slot in slots.items():
        if slot.constraint == "orthonormal":
            weights[path].copy_(orthonormal(weights[path]))


def violated(weight: Tensor, slot: Slot) -> float | None:
    """How far a weight is off its constraint, where that is further than rounding explains; None where it is kept."""
    if slot.constraint == "none":
        return None
    off = deviation(weight)
    return off if not off <= ORTHONORMAL_TOLERANCE else None
