"""A training step (forward, backward, optimiser): time and peak memory, the published network against ours.

Both start from the same weights and take the same images and the same optimiser. `error` is that of the gradients of
the first step, against the published network's in float64: ‖g - g₆₄‖ / ‖g₆₄‖, the largest of any weight. Both networks'
gradients are the same in float64, or nothing is timed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import crate_dsl
from benchmarks import networks
from benchmarks.measure import Effort, interleaved, rows
from benchmarks.memory import peak_of
from benchmarks.published import PublishedObjective, counterparts, with_weights_of
from crate_dsl.compiler.recipe import AdamW, Recipe
from crate_dsl.training.schedules import optimizer_of

REFERENCE = "published, float32"
#: Who, by autocast in what, and compiled or not.
VARIANTS: dict[str, tuple[str, torch.dtype | None, bool]] = {
    REFERENCE: ("published", None, False),
    "published, bf16": ("published", torch.bfloat16, False),
    "crate-dsl, float32": ("crate-dsl", None, False),
    "crate-dsl, bf16": ("crate-dsl", torch.bfloat16, False),
    "crate-dsl, float32, compiled": ("crate-dsl", None, True),
    "crate-dsl, bf16, compiled": ("crate-dsl", torch.bfloat16, True),
}
#: Rounding of float64. In float32 gradients are as far off as a few ReLUs decide that switch by rounding.
EXACT = 1e-9


class Step:
    """One variant: its objective, its optimiser, and a batch; in float32, or all in float64."""

    def __init__(
        self, network: str, variant: str, batch: int, precision: torch.dtype = torch.float32
    ) -> None:
        whose, self.dtype, compile = VARIANTS[variant]
        graph = networks.crate(network)
        self.settings = networks.sizes(graph)
        net = crate_dsl.build(graph, seed=0)
        self.names = {name: name for name in net.state_dict()}
        self.objective: nn.Module = crate_dsl.Objective(net)
        if whose == "published":
            self.objective = PublishedObjective(with_weights_of(net, self.settings))
            self.names = counterparts(self.settings["depth"])
        self.objective.to(precision)
        self.optimizer = optimizer_of(Recipe(optimizer=AdamW(lr=1e-4)), self.objective)
        self.forward = torch.compile(self.objective, dynamic=False) if compile else self.objective
        size, channels, classes = (self.settings[name] for name in ("size", "channels", "classes"))
        generator = torch.Generator().manual_seed(batch)
        self.batch = {
            "image": torch.randn(batch, channels, size, size, generator=generator).to(precision),
            "label": torch.randint(classes, (batch,), generator=generator),
        }

    def backward(self) -> None:
        self.optimizer.zero_grad()
        with torch.autocast("cpu", dtype=self.dtype, enabled=self.dtype is not None):
            loss = self.forward(self.batch)
        loss.backward()

    def __call__(self) -> None:
        self.backward()
        self.optimizer.step()

    def gradients(self) -> dict[str, Tensor]:
        """Those of the weights as they are, by spec path, in float64."""
        self.backward()
        found = {}
        for name, parameter in self.objective.get_submodule("net").named_parameters():
            assert parameter.grad is not None
            found[self.names[name]] = parameter.grad.detach().double()
        return found


def measured(
    network: str, batch: int, effort: dict[str, Any], variants: Sequence[str] = tuple(VARIANTS)
) -> dict[str, Any]:
    """Rows of the variants, the reference first, at one batch size."""
    exact = Step(network, REFERENCE, batch, torch.float64).gradients()
    ours = Step(network, "crate-dsl, float32", batch, torch.float64).gradients()
    assert off_by(ours, exact) <= EXACT, f"gradients are off by {off_by(ours, exact):.1e} in float64"
    steps = {name: Step(network, name, batch) for name in variants}
    errors = {name: off_by(step.gradients(), exact) for name, step in steps.items()}
    table = rows(interleaved(steps, Effort(**effort)), REFERENCE)
    for name, row in table.items():
        row["error"] = errors[name]
    return table


def off_by(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """‖g - g'‖ / ‖g'‖, the largest of any weight."""
    return max(float((found[path] - value).norm() / value.norm()) for path, value in wanted.items())


def memory(network: str, variant: str, batch: int) -> dict[str, float | None]:
    """MiB that two steps take at their highest, the optimiser's state included, beyond weights and batch."""
    step = Step(network, variant, batch)

    def twice() -> None:
        step()
        step()

    return {"mebibytes": peak_of(twice)}
