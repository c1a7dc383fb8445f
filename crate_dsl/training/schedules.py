"""What a recipe's optimiser and schedule are in torch."""

from __future__ import annotations

from collections.abc import Callable
from math import cos, pi

from torch import nn, optim

from crate_dsl.compiler.recipe import AdamW, Constant, Cosine, Lion, Recipe
from crate_dsl.training.sources import required_module


def optimizer_of(recipe: Recipe, module: nn.Module, *, fused: bool = True) -> optim.Optimizer:
    """The recipe's optimiser over a module's trained parameters; `fused` runs one kernel over all of them.

    As is customary since GPT-2, weight decay acts on weights of two or more axes alone: shrinking a norm's scale, a
    bias or a single token would not make a network simpler.
    """
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    form = recipe.optimizer
    groups = [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": form.weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if isinstance(form, AdamW):
        return optim.AdamW(
            groups, lr=form.lr, betas=(form.betas[0], form.betas[1]), eps=form.eps, fused=fused
        )
    if isinstance(form, Lion):
        # The same steps, on a GPU by one kernel over all parameters; on a CPU that would be slower for large networks.
        name = "lion_pytorch.foreach" if any(p.is_cuda for p in trained) else "lion_pytorch"
        lion = required_module(name, "the optimiser `lion`")
        made: optim.Optimizer = lion.Lion(groups, lr=form.lr, betas=form.betas)
        return made
    return optim.SGD(groups, lr=form.lr, momentum=form.momentum, nesterov=form.nesterov, fused=fused)


def factor_of(recipe: Recipe, steps: int) -> Callable[[int], float]:
    """What the learning rate is multiplied by at step 0, 1, … of a run of `steps` steps an epoch.

    >>> from crate_dsl.compiler.recipe import Linear
    >>> factor = factor_of(Recipe(epochs=3, schedule=Linear(warmup=1, floor=0.5)), steps=2)
    >>> [factor(step) for step in range(6)]
    [0.5, 1.0, 1.0, 0.875, 0.75, 0.625]
    """
    schedule = recipe.schedule
    warmup = schedule.warmup * steps
    falling = recipe.epochs * steps - warmup

    def factor(step: int) -> float:
        if step < warmup:
            return min(1.0, (step + 1) / warmup)
        if isinstance(schedule, Constant):
            return 1.0
        gone = min(1.0, (step - warmup) / falling)
        remaining = (1 + cos(pi * gone)) / 2 if isinstance(schedule, Cosine) else 1 - gone
        return schedule.floor + (1 - schedule.floor) * remaining

    return factor
