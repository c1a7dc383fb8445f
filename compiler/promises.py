"""What an inverse promises as a whole, from the certificates of its pairs. No torch: it is known from the text."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from crate_dsl.compiler.graph import ModelGraph
from crate_dsl.compiler.operators import (
    FLOAT32_SPACING,
    FLOAT64_SPACING,
    CertifiedInverse,
    FixedPoint,
    Mode,
)

#: The spacing of numbers at 1, by precision.
EPSILONS = {"float32": FLOAT32_SPACING, "float64": FLOAT64_SPACING}


@dataclass(frozen=True, slots=True)
class Promise:
    """That `inverse` undoes `stage`. `stretch` is by how much an error may grow on the whole way back, where the mode
    is certified.
    """

    inverse: str
    stage: str
    mode: Mode
    stretch: float | None

    @property
    def spelled(self) -> str:
        """The mode as a spec says it."""
        return f"fixed_point({self.mode.iterations})" if isinstance(self.mode, FixedPoint) else self.mode.word

    def tolerance(self, precision: str = "float32") -> float | None:
        """The certificate's own tolerance: how far stage and inverse together may be from the identity, relative to
        the largest token. Machine epsilon times the product over the steps of their inverses' Lipschitz constants.
        """
        return None if self.stretch is None else EPSILONS[precision] * self.stretch


def promises(graph: ModelGraph) -> tuple[Promise, ...]:
    """The promise of each `inverse` in a graph, in the order of the spec."""
    found: dict[tuple[str, str], list[float | None]] = {}
    modes: dict[tuple[str, str], Mode] = {}
    for pair in graph.pairs:
        key = (pair.inverse, pair.stage)
        modes.setdefault(key, pair.mode)
        known = pair.certificate if isinstance(pair.mode, CertifiedInverse) else None
        found.setdefault(key, []).append(known.stretch if known else None)
    return tuple(
        Promise(inverse, stage, modes[inverse, stage], _product(stretches))
        for (inverse, stage), stretches in found.items()
    )


def _product(stretches: list[float | None]) -> float | None:
    known = [stretch for stretch in stretches if stretch is not None]
    return prod(known) if len(known) == len(stretches) else None
