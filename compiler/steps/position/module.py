"""`position` and `sinusoid` in torch. Axes: B batch, N tokens, d width, r x c the table's grid, h x w the input's."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from crate_dsl.compiler.modules import StepModule
from crate_dsl.compiler.operators import Typing
from crate_dsl.compiler.steps.position.operator import Position as PositionOperator
from crate_dsl.compiler.steps.position.operator import Sinusoid as SinusoidOperator
from crate_dsl.compiler.steps.position.operator import Unposition as UnpositionOperator
from crate_dsl.compiler.steps.position.tables import cubic, fourier_features, frequencies, sincos_table


class Position(StepModule):
    """Adds positions: (B, N, d) -> (B, N, d). Fixed tables are buffers, no part of the state."""

    features_nf: Tensor
    inside_n1: Tensor
    rows_hr: Tensor
    columns_wc: Tensor

    def __init__(self, operator: PositionOperator, typing: Typing) -> None:
        super().__init__(operator, typing)
        facts, width = self.facts, typing.output.shape[1].bound
        if operator.table == "sincos":
            self._fixed("table", sincos_table(facts, width, operator.temperature))
        elif operator.table == "fourier":
            features, inside = fourier_features(facts, operator.temperature)
            self._fixed("features_nf", features)
            self._fixed("inside_n1", inside)
        elif facts.resized_from is not None:
            (patches,) = facts.patches
            self._fixed("rows_hr", cubic(facts.resized_from[0], patches.rows))
            self._fixed("columns_wc", cubic(facts.resized_from[1], patches.columns))

    def _fixed(self, name: str, table: np.ndarray) -> None:
        self.register_buffer(name, torch.from_numpy(table.astype(np.float32)), persistent=False)

    def forward(self, z_bnd: Tensor) -> Tensor:
        return z_bnd + self.positions(z_bnd.shape[1], {})

    def positions(self, count: int, given: Mapping[str, Tensor]) -> Tensor:
        """What is added to so many tokens, (N, d); `given` are the weights that are another step's."""
        table, projection = self.weight_of("table", given), self.weight_of("projection", given)
        if projection is not None:
            bias = self.weight_of("bias", given)
            assert bias is not None
            return self.features_nf @ projection.T + self.inside_n1 * bias
        assert table is not None
        if self.facts.resized_from is not None:
            return self._resized(table)
        return table[:count] if self.facts.sliced else table

    def _resized(self, table: Tensor) -> Tensor:
        """The table with its grid interpolated to the input's; other tokens keep their rows: (N, d)."""
        (patches,) = self.facts.patches
        rows, columns = self.facts.resized_from
        count = rows * columns
        before, grid, after = table.split([patches.start, count, table.shape[0] - patches.start - count])
        grid_hcd = (self.rows_hr @ grid.reshape(rows, -1)).unflatten(1, (columns, -1))
        return torch.cat([before, (self.columns_wc @ grid_hcd).flatten(0, 1), after])


class Unposition(Position):
    """Subtracts positions: (B, N, d) -> (B, N, d). What was learned is the other step's."""

    def __init__(self, operator: UnpositionOperator, typing: Typing) -> None:
        super().__init__(operator.of, typing)

    def forward(self, z_bnd: Tensor, **given: Tensor) -> Tensor:
        return z_bnd - self.positions(z_bnd.shape[1], given)


class Sinusoid(StepModule):
    """(B, …) -> (B, …, dim). The frequencies are a buffer, no part of the state."""

    frequencies_h: Tensor

    def __init__(self, operator: SinusoidOperator, typing: Typing) -> None:
        super().__init__(operator, typing)
        falling = frequencies(operator.dim, operator.temperature).astype(np.float32)
        self.register_buffer("frequencies_h", torch.from_numpy(falling), persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        angles = t.to(self.frequencies_h.dtype)[..., None] * self.frequencies_h
        return torch.cat([angles.sin(), angles.cos()], dim=-1)
