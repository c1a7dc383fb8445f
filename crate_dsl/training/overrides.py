"""From a `train` block and what the command line says instead, to the recipe in force."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from pydantic import BaseModel, ValidationError

from crate_dsl.compiler.accepts import accepted
from crate_dsl.compiler.apply import Steps
from crate_dsl.compiler.arguments import Broken
from crate_dsl.compiler.meanings import Namespace
from crate_dsl.compiler.operators import Form
from crate_dsl.compiler.recipe import FORMS, Recipe, entries, written
from crate_dsl.compiler.record import Owner, Place, Recorder
from crate_dsl.language.diagnostics import Report, UserError, did_you_mean
from crate_dsl.language.fragments import parse_expression

#: No entry needs more text; longer text is refused before it is looked at.
MOST_CHARACTERS = 500


def recipe_of(train: Mapping[str, Any], overrides: Mapping[str, object] | None = None) -> Recipe:
    """The recipe of a `train` block, with some entries said otherwise.

    An override names an entry (`epochs`, `optimizer`) or an argument of the form that stands there (`lr`, `warmup`). It
    is text as the language spells it, a number, or a form. The weights that a block begins with are no part of it.

    >>> recipe_of({"epochs": 4}, {"optimizer": "lion(lr = 3e-4)", "weight_decay": "0.1"}).written()["optimizer"]
    'lion(lr = 0.0003, weight_decay = 0.1, betas = [0.9, 0.99])'

    Raises:
        UserError: an unknown entry, text that is no value, a value out of range.
    """
    known = entries()
    chosen: dict[str, Any] = {name: _plain(value) for name, value in train.items() if name != "start"}
    arguments: dict[str, Any] = {}
    for name, value in (overrides or {}).items():
        if name not in known:
            near = did_you_mean(name, known)
            help = f"did you mean `{near}`?" if near else f"a recipe has {', '.join(known)}"
            raise UserError(f"a recipe has no `{name}`", help)
        value = _read(name, value) if isinstance(value, str) else _plain(value)
        if name in Recipe.model_fields:
            chosen[name] = value
        else:
            arguments[name] = value
    for name, value in arguments.items():
        entry = next(
            entry for entry, forms in FORMS.items() if any(name in form.model_fields for form in forms)
        )
        form = chosen.get(entry, Recipe.model_fields[entry].default)
        if name not in type(form).model_fields:
            names = ", ".join(type(form).model_fields)
            raise UserError(f"`{entry}` is {form.word}, which has no `{name}`", f"{form.word} has {names}")
        given = {key: getattr(form, key) for key in form.model_fields_set}
        chosen[entry] = _made(type(form), {**given, name: value})
    recipe: Recipe = _made(Recipe, chosen)
    if recipe.schedule.warmup >= recipe.epochs:
        warmup, epochs = recipe.schedule.warmup, recipe.epochs
        raise UserError(
            f"the schedule warms up for {warmup:g} epochs, but there are only {epochs}",
            f"another warm-up: --warmup {epochs / 10:g}",
        )
    return recipe


def _plain(value: Any) -> Any:
    """A value of a `train` block as Python's own: exact numbers become whole or floating-point ones."""
    if isinstance(value, Fraction):
        return int(value) if value.denominator == 1 else float(value)
    return tuple(map(_plain, value)) if isinstance(value, (list, tuple)) else value


def _made(model: type[BaseModel], values: Mapping[str, Any]) -> Any:
    """A recipe or form, its ranges checked."""
    try:
        return model.model_validate(dict(values), strict=True)
    except ValidationError as problem:
        item = problem.errors()[0]
        name = str(item["loc"][0])
        if item["type"] == "extra_forbidden":
            near = did_you_mean(name, model.model_fields)
            what = f"`{model.word}`" if issubclass(model, Form) else "a recipe"
            help = f"did you mean `{near}`?" if near else f"it has {', '.join(model.model_fields)}"
            raise UserError(f"{what} has no `{name}`", help) from None
        bounds = {
            "greater_than": "above {gt:g}",
            "greater_than_equal": "at least {ge:g}",
            "less_than": "below {lt:g}",
            "less_than_equal": "at most {le:g}",
            "too_short": "a list of {min_length}",
            "too_long": "a list of {max_length}",
            "finite_number": "finite",
        }
        wanted = (
            bounds.get(item["type"], "").format(**item.get("ctx", {})) or accepted(model)[name].describe()
        )
        raise UserError(f"`{name}` must be {wanted}, but is {written(values[name])}") from None


# ------------------------------------------------------------------ text from the command line


def _read(name: str, text: str) -> Any:
    """The value that a text spells, as a `train` block would: `4`, `1e-3`, `cosine(warmup = 5)`; `none` is nothing."""
    if text.strip() == "none":
        return None
    written = parse_expression(f"--{name}", text) if len(text) <= MOST_CHARACTERS else None
    if written is None:
        shown = f"`{name}` is given as `{text[:60]}`, which is no value"
        raise UserError(shown, f"for instance: {_example(name)}")
    report = Report()
    reader = Steps(Recorder(), report).reader(Place(Owner(""), None, Namespace(), dry=True))
    models: list[type[BaseModel]] = [Recipe, *(form for forms in FORMS.values() for form in forms)]
    accepts = next(accepted(model)[name] for model in models if name in model.model_fields)
    try:
        value, _ = reader.value("train", name, accepts, written)
    except Broken:
        found = report.errors[0]
        raise UserError(found.message, *(found.help or (f"for instance: {_example(name)}",))) from None
    return value


def _example(name: str) -> str:
    whole = ("epochs", "batch", "patience")
    others = {"optimizer": "adamw(lr = 2e-3)", "schedule": "cosine(warmup = 1)"}
    others |= {"betas": "[0.9, 0.99]", "nesterov": "true"}
    return others.get(name, "4" if name in whole else "0.01")
