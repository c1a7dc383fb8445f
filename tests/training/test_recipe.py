from __future__ import annotations

import subprocess
import sys
from fractions import Fraction

import pytest
import torch
from torch import nn

from crate_dsl.compiler.recipe import AdamW, Constant, Cosine, Linear, Lion, Recipe, Sgd, entries
from crate_dsl.language.diagnostics import UserError
from crate_dsl.training.overrides import recipe_of
from crate_dsl.training.schedules import factor_of, optimizer_of


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(),
        Recipe(optimizer=Lion(lr=3e-4, weight_decay=0.1), schedule=Constant(), clip=1.0, patience=3),
        Recipe(optimizer=Sgd(nesterov=True), schedule=Linear(warmup=0.25, floor=0.01), epochs=7, batch=33),
        Recipe(optimizer=AdamW(betas=(0.5, 0.75), eps=1e-6)),
    ],
)
def test_a_written_recipe_reads_back(recipe: Recipe) -> None:
    assert recipe_of({}, recipe.written()) == recipe


def test_overrides_reach_into_forms() -> None:
    block = {
        "epochs": Fraction(200),
        "optimizer": Lion(lr=2e-4, weight_decay=0.05),
        "schedule": Cosine(warmup=5),
    }
    assert recipe_of(block) == Recipe(**block | {"epochs": 200})
    changed = recipe_of(block, {"lr": "1e-3", "warmup": 1, "epochs": "4", "clip": "1"})
    assert changed.optimizer == Lion(lr=1e-3, weight_decay=0.05)
    assert (changed.schedule, changed.epochs, changed.clip) == (Cosine(warmup=1), 4, 1)
    assert recipe_of(block, {"optimizer": "sgd", "momentum": "0.5"}).optimizer == Sgd(momentum=0.5)
    assert recipe_of({"clip": 1.0}, {"clip": "none"}).clip is None


def test_every_entry_has_help() -> None:
    assert {"optimizer", "schedule", "epochs", "batch", "clip", "patience", "lr", "warmup", "floor"} <= set(
        entries()
    )
    assert all(entries().values())


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"epoch": "4"}, "a recipe has no `epoch`\nhelp: did you mean `epochs`?"),
        ({"epochs": "0"}, "`epochs` must be at least 1, but is 0"),
        ({"epochs": "2.5"}, "`epochs` must be a whole number, but is 2.5"),
        ({"batch": "true"}, "`batch` of `train` is a whole number, not true"),
        ({"lr": "-1"}, "`lr` must be above 0, but is -1"),
        ({"lr": "1e999"}, "`lr` is given as `1e999`, which is no value"),
        (
            {"optimizer": "adam"},
            "`optimizer` of `train` is adamw, lion or sgd, not `adam`\nhelp: did you mean `adamw`?",
        ),
        (
            {"optimizer": "lion(rl = 1)"},
            "`lion` has no argument `rl`\nhelp: its arguments are lr, weight_decay, betas",
        ),
        ({"optimizer": "lion(1, 2, 3, 4)"}, "`betas` of `lion` is a list, not 3"),
        ({"optimizer": "5"}, "`optimizer` of `train` is adamw, lion or sgd, not 5"),
        ({"momentum": "0.5"}, "`optimizer` is adamw, which has no `momentum`"),
        ({"betas": "[0.9]"}, "`betas` must be a list of 2, but is [0.9]"),
        ({"warmup": "10"}, "the schedule warms up for 10 epochs, but there are only 10"),
        ({"epochs": "((("}, "`epochs` is given as `(((`, which is no value\nhelp: for instance: 4"),
        ({"epochs": "__import__('os')"}, "unknown step `__import__`"),
        ({"clip": "(" * 10_000}, "which is no value"),
        ({"clip": "-" * 400 + "1"}, "which is no value"),
    ],
)
def test_what_a_recipe_cannot_be(overrides: dict[str, str], said: str) -> None:
    with pytest.raises(UserError) as caught:
        recipe_of({}, overrides)
    assert said in str(caught.value)


def test_the_vocabulary_needs_no_torch() -> None:
    code = "import sys, crate_dsl.compiler.recipe; assert not {'torch', 'numpy', 'onnx'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# ------------------------------------------------------------------ schedules, against their formulas


def test_cosine() -> None:
    factor = factor_of(Recipe(epochs=5, schedule=Cosine(warmup=1, floor=0.2)), steps=10)
    assert [factor(step) for step in (0, 4, 9, 10)] == [0.1, 0.5, 1.0, 1.0]
    assert factor(30) == pytest.approx(0.6)  # half-way between 1 and 0.2
    assert factor(50) == pytest.approx(0.2)


def test_linear_and_constant() -> None:
    factor = factor_of(Recipe(epochs=2, schedule=Linear()), steps=10)
    assert [factor(step) for step in (0, 5, 20)] == [1.0, 0.75, 0.0]
    factor = factor_of(Recipe(epochs=2, schedule=Constant(warmup=0.5)), steps=4)
    assert [factor(step) for step in range(8)] == [0.5] + [1.0] * 7


# ------------------------------------------------------------------ optimisers, against the papers' updates

W0, G = torch.tensor([[1.0, -2.0], [3.0, 0.5]]), torch.tensor([[0.1, 0.2], [-0.3, 0.4]])


def stepped(recipe: Recipe) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix and a vector after one step with gradients G and G[0]."""
    module = nn.Linear(2, 2)
    module.weight.data, module.bias.data = W0.clone(), W0[0].clone()
    module.weight.grad, module.bias.grad = G.clone(), G[0].clone()
    optimizer_of(recipe, module).step()
    return module.weight.data, module.bias.data


def test_adamw_decays_matrices_alone() -> None:
    weight, bias = stepped(Recipe(optimizer=AdamW(lr=0.1, weight_decay=0.5)))
    # The first step of Adam has size lr, whatever the gradient.
    torch.testing.assert_close(weight, W0 * (1 - 0.1 * 0.5) - 0.1 * G.sign(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(bias, W0[0] - 0.1 * G[0].sign(), rtol=1e-5, atol=1e-6)


def test_lion_and_sgd() -> None:
    weight, bias = stepped(Recipe(optimizer=Lion(lr=0.1, weight_decay=0.5)))
    torch.testing.assert_close(weight, W0 * (1 - 0.1 * 0.5) - 0.1 * G.sign())
    torch.testing.assert_close(bias, W0[0] - 0.1 * G[0].sign())
    weight, bias = stepped(Recipe(optimizer=Sgd(lr=0.1, weight_decay=0.5)))
    torch.testing.assert_close(weight, W0 - 0.1 * (G + 0.5 * W0))
    torch.testing.assert_close(bias, W0[0] - 0.1 * G[0])


def test_frozen_weights_are_left_alone() -> None:
    module = nn.Linear(2, 2)
    module.weight.requires_grad_(False)
    groups = optimizer_of(Recipe(), module).param_groups
    assert [tuple(p.shape) for group in groups for p in group["params"]] == [(2,)]
