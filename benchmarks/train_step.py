"""Training steps per second of `crate.crate@fashion`: published formulas in a bare loop, ours bare, ours in Lightning.

The published network is written out plainly: five matrix products a layer (the projection, its way out, and three for
the dictionary's gradient) and a softmax that exists as a tensor. All three train on the same images, with the same
optimiser, and are measured in turns.

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
from torch import Tensor, nn
from torch.nn import functional as F

import crate_dsl
from crate_dsl.compiler.recipe import AdamW, Constant, Recipe
from crate_dsl.training.batches import Batches, Held
from crate_dsl.training.data import Part, Scaling
from crate_dsl.training.feed import Feed
from crate_dsl.training.progress import Display
from crate_dsl.training.schedules import optimizer_of

#: Seconds of rest before each measurement: idle threads of the one before go on spinning.
REST = 0.025


class PublishedLayer(nn.Module):
    """MSSA with a free output map, then one ISTA step (White-Box Transformers 2023, eqs. 7-8 and 17 as coded)."""

    def __init__(self, d: int, heads: int, step: float, penalty: float) -> None:
        super().__init__()
        self.heads, self.step, self.penalty = heads, step, penalty
        self.norm_1, self.norm_2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.u = nn.Linear(d, d, bias=False)
        self.out = nn.Linear(d, d)
        self.dictionary = nn.Parameter(nn.init.kaiming_uniform_(torch.empty(d, d)))

    def forward(self, z_bnd: Tensor) -> Tensor:
        b, n, d = z_bnd.shape
        w_bhnp = self.u(self.norm_1(z_bnd)).reshape(b, n, self.heads, -1).transpose(1, 2)
        scores_bhnn = w_bhnp @ w_bhnp.transpose(-1, -2) * (d // self.heads) ** -0.5
        heads_bhnp = scores_bhnn.softmax(dim=-1) @ w_bhnp
        z_bnd = z_bnd + self.out(heads_bhnp.transpose(1, 2).reshape(b, n, d))
        x_bnd = self.norm_2(z_bnd)
        # ReLU(X - step * D'(D X - X) - step * penalty)
        d_x_bnd = F.linear(x_bnd, self.dictionary)
        gradient_bnd = F.linear(d_x_bnd, self.dictionary.T) - F.linear(x_bnd, self.dictionary.T)
        return F.relu(x_bnd - self.step * gradient_bnd - self.step * self.penalty)


class Published(nn.Module):
    """The published classifier at the sizes of `crate.crate@fashion`."""

    def __init__(self, d: int = 128, depth: int = 4, heads: int = 4, patch: int = 4, size: int = 28) -> None:
        super().__init__()
        self.patch = patch
        self.embed = nn.Sequential(nn.LayerNorm(patch**2), nn.Linear(patch**2, d), nn.LayerNorm(d))
        self.class_token = nn.Parameter(torch.randn(1, 1, d))
        self.position = nn.Parameter(torch.randn(1, (size // patch) ** 2 + 1, d))
        self.layers = nn.Sequential(*(PublishedLayer(d, heads, 0.1, 0.1) for _ in range(depth)))
        self.head = nn.Sequential(nn.LayerNorm(d), nn.Linear(d, 10))

    def forward(self, image_bchw: Tensor) -> Tensor:
        b, p = len(image_bchw), self.patch
        cut_bcrpsq = image_bchw.unflatten(3, (-1, p)).unflatten(2, (-1, p))
        z_bnd = self.embed(cut_bcrpsq.permute(0, 2, 4, 3, 5, 1).reshape(b, -1, p * p))
        z_bnd = torch.cat([self.class_token.expand(b, -1, -1), z_bnd], dim=1) + self.position
        return self.head(self.layers(z_bnd)[:, 0])


class PublishedObjective(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(self.net(batch["image"]), batch["label"])


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
    published = PublishedObjective(Published())
    ours = [crate_dsl.Objective(crate_dsl.build(crate_dsl.load(given.spec), seed=0)) for _ in range(2)]
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
