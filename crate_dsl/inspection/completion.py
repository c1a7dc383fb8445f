"""What a network makes of patches that it was not shown, held against the two simplest guesses.

Axes: B images, N patches (r rows x s columns), m numbers of a patch, c channels, h rows and w columns of pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from crate_dsl.compiler.graph import ModelGraph, Value
from crate_dsl.compiler.steps.patches.module import Unpatchify as UnpatchifyModule
from crate_dsl.compiler.steps.patches.operator import Unpatchify
from crate_dsl.compiler.types import Grid, TensorType
from crate_dsl.inspection.measures import Samples
from crate_dsl.training.data import Scaling

#: What He et al. 2022 (MAE) add to a patch's variance where patches are normalised.
PATCH_EPS = 1e-6


@dataclass(frozen=True)
class Task:
    """A loss that compares some patches of a picture: what it reads. `chosen` marks them, or names all the others."""

    completed: Value
    patches: Value
    chosen: Value
    normalised: bool
    type: TensorType
    grid: Grid

    @property
    def values(self) -> frozenset[str]:
        return frozenset(value.node for value in (self.completed, self.patches, self.chosen))


def task(graph: ModelGraph) -> Task | None:
    """The completion that a network is trained for, if its outputs show it: `mse(…, on = …)` or `except = …`."""
    for node in graph.nodes:
        operator: Any = node.operator
        chosen = node.ports.get("on") or node.ports.get("except_")
        if node.word != "mse" or chosen is None:
            continue
        target = node.ports["target"]
        type_ = graph.type_of(target)
        segments = type_.layout.segments if type_.layout is not None else ()
        if len(segments) != 1 or segments[0].grid is None:
            continue
        normalised = operator.normalize == "patch"
        found = Task(node.ports["output"], target, chosen, normalised, type_, segments[0].grid)
        if found.values <= graph.exported:
            return found
    return None


@dataclass(frozen=True)
class Pictures:
    """Some pictures on a 0..1 scale, (B, c, h, w), and what is hidden of them, (B, r, s)."""

    shown: Tensor
    completed: Tensor
    hidden: Tensor


class Completions:
    """Gathers the squared error on hidden patches, in pixels from 0 to 1: the network's, and of two guesses.

    The guesses are the mean training image, and the nearest patch that is not hidden.
    """

    def __init__(self, task: Task, scaling: Scaling, mean_chw: Tensor, shown: int) -> None:
        self.task, self.scaling, self.mean_chw, self._left = task, scaling, mean_chw, shown
        self.network, self.mean, self.nearest = Samples(), Samples(), Samples()
        self.pictures: list[Pictures] = []
        unpatchify = Unpatchify()
        self._picture = UnpatchifyModule(unpatchify, unpatchify.infer(task.type))

    def see(self, seen: dict[str, Tensor]) -> None:
        """The values of a batch, by path."""
        task, grid = self.task, self.task.grid
        patches_bnm, completed_bnm = seen[task.patches.node], seen[task.completed.node]
        if task.normalised:
            mean_bn1 = patches_bnm.mean(-1, keepdim=True)
            completed_bnm = completed_bnm * (patches_bnm.var(-1, keepdim=True) + PATCH_EPS).sqrt() + mean_bn1
        hidden_bn = hidden(seen[task.chosen.node], patches_bnm.shape[1])
        hidden_brs = hidden_bn.unflatten(1, (grid.rows, grid.columns))
        image_bchw = self._pixels(patches_bnm)
        guesses = {
            "network": self._pixels(completed_bnm),
            "mean": self.mean_chw.to(image_bchw).expand_as(image_bchw),
            "nearest": self._pixels(nearest_visible(patches_bnm, hidden_bn, grid)),
        }
        hidden_b1hw = hidden_brs.repeat_interleave(grid.patch, 1).repeat_interleave(grid.patch, 2)[:, None]
        pixels_b = (hidden_b1hw.flatten(1).sum(1) * grid.channels).clamp(min=1)
        for name, guess_bchw in guesses.items():
            squares_bchw = (guess_bchw - image_bchw).double().square() * hidden_b1hw
            getattr(self, name).add(squares_bchw.flatten(1).sum(1) / pixels_b)
        if self._left:
            one = slice(0, self._left)
            completed = torch.where(hidden_b1hw, guesses["network"], image_bchw)[one]
            self.pictures.append(Pictures(image_bchw[one].cpu(), completed.cpu(), hidden_brs[one].cpu()))
            self._left -= len(completed)

    def _pixels(self, tokens_bnm: Tensor) -> Tensor:
        """Patches as the network knows them -> pictures on a 0..1 scale."""
        picture: Tensor = self._picture(tokens_bnm)
        mean, std = (
            picture.new_tensor(values)[:, None, None] for values in (self.scaling.mean, self.scaling.std)
        )
        return picture * std + mean


def hidden(chosen: Tensor, patches: int) -> Tensor:
    """Which patches are hidden, (B, N), from their marks or from the indices (B, k) of the others."""
    if chosen.dtype == torch.bool:
        return chosen
    return torch.ones(len(chosen), patches, dtype=torch.bool, device=chosen.device).scatter(1, chosen, False)


def nearest_visible(patches_bnm: Tensor, hidden_bn: Tensor, grid: Grid) -> Tensor:
    """Each hidden patch replaced by the visible one nearest on the grid, the first of several: (B, N, m)."""
    places = torch.arange(grid.rows * grid.columns, device=patches_bnm.device)
    at_n2 = torch.stack([places // grid.columns, places % grid.columns], -1).double()
    distance_nn = torch.cdist(at_n2, at_n2)
    distance_bnn = distance_nn.masked_fill(hidden_bn[:, None, :], torch.inf)
    source_bn = torch.where(hidden_bn, distance_bnn.argmin(-1), places)
    return torch.take_along_dim(patches_bnm, source_bn[..., None], 1)
