"""What the training command adds to a step: `crate.crate@fashion` as published, ours in a bare loop, ours in Lightning.

All three train on the same images, with the same optimiser, and are measured in turns, as steps a second. The published
network is that of `published.py`; larger networks, precisions and memory are in `training.py`.

    python benchmarks/train_step.py [--rounds 10] [--steps 20] [--batch 128] [--threads 2] [--spec TARGET]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from itertools import count as counting
from statistics import median
from time import perf_counter, sleep

import numpy as np
import torch
from published import Published, PublishedObjective  # beside this file, which is run as it stands
from torch import nn

import crate_dsl
from crate_dsl.compiler.recipe import AdamW, Constant, Recipe
from crate_dsl.training.batches import Batches, Held
from crate_dsl.training.data import Part, Scaling
from crate_dsl.training.feed import Feed
from crate_dsl.training.progress import Display
from crate_dsl.training.schedules import optimizer_of

#: Seconds of rest before each measurement: idle threads of the one before go on spinning.
REST = 0.025


def bare_loop(objective: nn.Module, recipe: Recipe, batches: Batches) -> Callable[[], float]:
    """Trains one epoch a call, and says how many steps it made a second."""
    optimizer = optimizer_of(recipe, objective)
    epochs = counting()

    def run() -> float:
        batches.epoch = next(epochs)
        began = perf_counter()
        for batch in batches:
            optimizer.zero_grad()
            objective(batch).backward()
            optimizer.step()
        return len(batches) / (perf_counter() - began)

    return run


def lightning_loop(objective: nn.Module, recipe: Recipe, batches: Batches) -> Callable[[], float]:
    """The same inside the training loop of `crate-dsl train`."""
    from lightning.pytorch import Trainer

    from crate_dsl.training.loop import Training, quiet

    def run() -> float:
        training = Training(
            objective, recipe, batches, Display(None, 1, 1), lambda: None, lambda *_: None, fused=True
        )
        with quiet():
            trainer = Trainer(
                accelerator="cpu",
                max_epochs=1,
                limit_val_batches=0,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
            trainer.fit(training, batches)
        return training.journal.rows[-1].steps_per_second

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--spec", default="specs/crate.crate@fashion")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rng = np.random.default_rng(0)
    count = given.batch * given.steps
    part = Part(rng.integers(0, 256, (count, 1, 28, 28), np.uint8), rng.integers(0, 10, count))
    held = Held(part, Scaling((0.3,), (0.35,)), Feed("image", ("label",), "logits"), torch.device("cpu"))
    recipe = Recipe(optimizer=AdamW(lr=2e-3), schedule=Constant(), epochs=1, batch=given.batch)
    torch.manual_seed(0)
    graph = crate_dsl.load(given.spec)
    published = PublishedObjective(Published(**{name: int(value) for name, value in graph.settings.items()}))
    ours = [crate_dsl.Objective(crate_dsl.build(graph, seed=0)) for _ in range(2)]
    variants = {
        "published, bare loop": bare_loop(published, recipe, Batches(held, given.batch, 0)),
        "ours, bare loop": bare_loop(ours[0], recipe, Batches(held, given.batch, 0)),
        "ours, Lightning": lightning_loop(ours[1], recipe, Batches(held, given.batch, 0)),
    }
    speeds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(given.rounds + 1):
        for name, run in variants.items():
            sleep(REST)
            speeds[name].append(run())
    first = median(next(iter(speeds.values()))[1:])
    print(
        f"{given.spec}, batch {given.batch}, {given.threads} threads, {given.rounds} rounds of {given.steps} steps"
    )
    for name, found in speeds.items():
        timed = sorted(found[1:])  # the first round warms up
        middle = median(timed)
        print(f"{name:22} {middle:8.2f} steps/s  ({timed[0]:.2f} to {timed[-1]:.2f})  {middle / first:.3f} x")
    sizes = [sum(p.numel() for p in module.parameters()) for module in (published, ours[0])]
    print(f"parameters: published {sizes[0]:,}, ours {sizes[1]:,}")


if __name__ == "__main__":
    main()
