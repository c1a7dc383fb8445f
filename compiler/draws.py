"""Declared draws: `input noise : float[64, 48] = normal`. What each word means, and the drawing itself.

One rule for training, proofs and sessions: torch's side draws here and converts. Only methods of the generator and of
the arrays that it gives are used, so that the language reads these forms without importing numpy.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from math import floor
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field, FiniteFloat

from crate_dsl.compiler.operators import Form, Positive
from crate_dsl.compiler.types import TensorType

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: The largest denominator that a share may have: 0.9 means nine tenths, not the nearest binary fraction, so that of
#: ten tokens one stays unmarked and not none.
MAXIMUM_DENOMINATOR = 10**6


class DrawForm(Form):
    """A draw of an input: what type it can have, and one batch of it."""

    def check(self, wanted: TensorType) -> str | None:
        """Why an input of this type cannot be drawn so, in the user's words; None if it can."""
        raise NotImplementedError

    def sample(
        self, wanted: TensorType, batch: int, lengths: Mapping[str, int], generator: np.random.Generator
    ) -> NDArray[Any]:
        """One batch: float32, int64 or bool of shape (batch, …), where symbols have these lengths; each sample anew."""
        return self._sample(wanted, (batch, *wanted.sizes(dict(lengths))), generator)

    def _sample(
        self, wanted: TensorType, shape: tuple[int, ...], generator: np.random.Generator
    ) -> NDArray[Any]:
        raise NotImplementedError


class NormalDraw(DrawForm):
    """Normally distributed around zero with standard deviation `std`."""

    word: ClassVar[str] = "normal"
    std: Positive = 1.0

    def check(self, wanted: TensorType) -> str | None:
        return None if wanted.kind == "float" else f"`normal` draws float numbers, but this input is {wanted}"

    def _sample(
        self, wanted: TensorType, shape: tuple[int, ...], generator: np.random.Generator
    ) -> NDArray[Any]:
        drawn = generator.standard_normal(shape, dtype="float32")
        drawn *= self.std
        return drawn


class UniformDraw(DrawForm):
    """Uniform from `low` up to `high`."""

    word: ClassVar[str] = "uniform"
    low: FiniteFloat = 0.0
    high: FiniteFloat = 1.0

    def check(self, wanted: TensorType) -> str | None:
        if not self.low < self.high:
            return f"`uniform` goes from a lower number up to a higher one, not from {self.low:g} to {self.high:g}"
        return (
            None if wanted.kind == "float" else f"`uniform` draws float numbers, but this input is {wanted}"
        )

    def _sample(
        self, wanted: TensorType, shape: tuple[int, ...], generator: np.random.Generator
    ) -> NDArray[Any]:
        drawn = generator.random(shape, dtype="float32")
        drawn *= self.high - self.low
        drawn += self.low
        return drawn


class Choose(DrawForm):
    """`choose`: distinct indices, in random order. `choose(ratio)`: a mask that marks this share of the last axis.

    Of N places it marks N - ⌊N (1 - ratio)⌋, as masked autoencoders do (He et al. 2022, arXiv 2111.06377).

    >>> import numpy as np
    >>> from crate_dsl.compiler.types import Dim
    >>> mask = Choose(ratio=0.75).sample(TensorType("bool", (Dim(8),)), 2, {}, np.random.default_rng(0))
    >>> mask.sum(axis=-1).tolist()
    [6, 6]
    """

    word: ClassVar[str] = "choose"
    ratio: Annotated[float, Field(ge=0, le=1)] | None = None

    def check(self, wanted: TensorType) -> str | None:
        if self.ratio is not None:
            fits = wanted.kind == "bool" and wanted.rank > 0
            return (
                None
                if fits
                else f"`choose({self.ratio:g})` marks places of bool[…], but this input is {wanted}"
            )
        if wanted.kind != "index" or wanted.classes is None or not wanted.shape:
            return f"`choose` draws index(places)[…], but this input is {wanted}"
        if wanted.shape[-1].bound > wanted.classes:
            return f"there are no {wanted.shape[-1].bound} distinct indices below {wanted.classes}"
        return None

    def marked(self, places: int) -> int:
        """How many of so many places the mask marks."""
        assert self.ratio is not None
        unmarked = 1 - Fraction(self.ratio).limit_denominator(MAXIMUM_DENOMINATOR)
        return places - floor(places * unmarked)

    def _sample(
        self, wanted: TensorType, shape: tuple[int, ...], generator: np.random.Generator
    ) -> NDArray[Any]:
        if self.ratio is not None:
            return generator.random(shape).argsort(axis=-1) < self.marked(shape[-1])
        assert wanted.classes is not None
        return generator.random((*shape[:-1], wanted.classes)).argsort(axis=-1)[..., : shape[-1]]


class Shuffle(DrawForm):
    """Every index of the last axis once, in random order."""

    word: ClassVar[str] = "shuffle"

    def check(self, wanted: TensorType) -> str | None:
        if wanted.kind == "index" and wanted.shape and wanted.shape[-1].static == wanted.classes:
            return None
        return f"`shuffle` draws every index once, index(n)[n], but this input is {wanted}"

    def _sample(
        self, wanted: TensorType, shape: tuple[int, ...], generator: np.random.Generator
    ) -> NDArray[Any]:
        return generator.random(shape).argsort(axis=-1)


#: What may stand behind an input's type.
Draw = NormalDraw | UniformDraw | Choose | Shuffle

#: By word.
DRAWS: dict[str, type[Draw]] = {form.word: form for form in (NormalDraw, UniformDraw, Choose, Shuffle)}


# ------------------------------------------------------------------ as plain data


def as_data(form: Form) -> dict[str, Any]:
    """A draw as JSON takes it.

    >>> as_data(Choose(ratio=0.75))
    {'word': 'choose', 'ratio': 0.75}
    """
    return {"word": form.word, **form.model_dump(exclude_none=True)}


def from_data(data: Mapping[str, Any]) -> Draw:
    """The draw that `as_data` wrote.

    Raises:
        ValueError: there is no such draw, or it has no such arguments.
    """
    form = DRAWS.get(str(data.get("word")))
    if form is None:
        raise ValueError(f"no draw is called {data.get('word')!r}")
    return form.model_validate({name: value for name, value in data.items() if name != "word"})
