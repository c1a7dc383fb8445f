"""What may stand in a `train` block: the optimiser, the schedule, and the numbers of a training run. No torch.

Every entry has a default, so a block says only what it means to fix; the command line overrides each one.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from crate_dsl.compiler.operators import Form, Fraction01, NonNegative, Positive, Whole

#: More epochs, or larger batches, than any run has: a slip of the hand is found before memory or time is spent.
Epochs = Annotated[int, Field(ge=1, le=1_000_000)]
Batch = Annotated[int, Field(ge=1, le=1_000_000)]
#: The decay rates of two moving averages: `[0.9, 0.999]`.
Betas = Annotated[tuple[Fraction01, ...], Field(min_length=2, max_length=2)]

# ------------------------------------------------------------------ optimisers


class AdamW(Form):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv 1711.05101).

    Here and below, decay acts on weights of two or more axes: norms, biases and single tokens are left alone.
    """

    word: ClassVar[str] = "adamw"
    lr: Positive = 1e-3
    weight_decay: NonNegative = 0.01
    betas: Betas = (0.9, 0.999)
    eps: Positive = 1e-8


class Lion(Form):
    """The sign of an interpolated momentum, with decoupled weight decay (Chen et al. 2023, arXiv 2302.06675)."""

    word: ClassVar[str] = "lion"
    lr: Positive = 1e-4
    weight_decay: NonNegative = 0.0
    betas: Betas = (0.9, 0.99)


class Sgd(Form):
    """Stochastic gradient descent with momentum; its weight decay is the gradient of an L2 penalty."""

    word: ClassVar[str] = "sgd"
    lr: Positive = 0.1
    momentum: Fraction01 = 0.9
    weight_decay: NonNegative = 0.0
    nesterov: bool = False


# ------------------------------------------------------------------ schedules of the learning rate


class Cosine(Form):
    """Rises linearly for `warmup` epochs, then falls along half a cosine to `floor` times the learning rate."""

    word: ClassVar[str] = "cosine"
    warmup: NonNegative = 0.0
    floor: Fraction01 = 0.0


class Linear(Form):
    """Rises linearly for `warmup` epochs, then falls linearly to `floor` times the learning rate."""

    word: ClassVar[str] = "linear"
    warmup: NonNegative = 0.0
    floor: Fraction01 = 0.0


class Constant(Form):
    """Rises linearly for `warmup` epochs, then stays."""

    word: ClassVar[str] = "constant"
    warmup: NonNegative = 0.0


# ------------------------------------------------------------------ the recipe


class Recipe(BaseModel):
    """A `train` block.

    >>> Recipe(epochs=4, schedule=Cosine(warmup=0.5)).written()["schedule"]
    'cosine(warmup = 0.5, floor = 0.0)'
    """

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    optimizer: AdamW | Lion | Sgd = Field(AdamW(), description="adamw(lr, …), lion(lr, …) or sgd(lr, …)")
    schedule: Cosine | Linear | Constant = Field(
        Cosine(), description="of the learning rate: cosine, linear or constant(warmup = epochs, …)"
    )
    epochs: Epochs = Field(10, description="how many times each training image is seen")
    batch: Batch = Field(128, description="images in a step")
    clip: Positive | None = Field(
        None, description="the gradient's largest norm: a longer one is scaled down"
    )
    patience: Whole | None = Field(
        None, description="stop after this many epochs without a better validation"
    )

    def written(self) -> dict[str, str]:
        """Every entry as a `train` block spells it; those that are off are left out."""
        return {
            name: written(value)
            for name in type(self).model_fields
            if (value := getattr(self, name)) is not None
        }


class TrainBlock(Recipe):
    """What may stand in a `train` block: a recipe, and the weights that training begins with.

    Those are not how it goes on, so they are no part of the recipe in force: a run has them from the moment it begins.
    """

    start: str | None = Field(
        None, description='weights to begin with: "file.safetensors" or a run, relative to the spec'
    )


def written(value: object) -> str:
    """An argument as the language spells it.

    >>> written(AdamW(lr=2e-3))
    'adamw(lr = 0.002, weight_decay = 0.01, betas = [0.9, 0.999], eps = 1e-08)'
    """
    if isinstance(value, Form):
        arguments = ", ".join(
            f"{name} = {written(getattr(value, name))}" for name in type(value).model_fields
        )
        return f"{value.word}({arguments})" if arguments else value.word
    if isinstance(value, tuple):
        return f"[{', '.join(map(written, value))}]"
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


#: The entries that are forms, and what may stand there.
FORMS: dict[str, tuple[type[Form], ...]] = {
    "optimizer": (AdamW, Lion, Sgd),
    "schedule": (Cosine, Linear, Constant),
}


def entries() -> dict[str, str]:
    """What the command line can override, each with a line of help: entries, and the arguments of their forms."""
    found = {name: info.description or name for name, info in Recipe.model_fields.items()}
    for forms in FORMS.values():
        for name in dict.fromkeys(name for form in forms for name in form.model_fields):
            owners = [form.word for form in forms if name in form.model_fields]
            found[name] = f"`{name}` of {' or '.join(owners)}"
    return found
