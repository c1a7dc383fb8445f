"""A model's parameters in force: default < variant < override, each in the order in which it is declared."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from crate_dsl.compiler import reserved
from crate_dsl.compiler.bodies import Bodies
from crate_dsl.compiler.meanings import POISON, Constant, Namespace
from crate_dsl.compiler.record import Owner, Place
from crate_dsl.language import syntax
from crate_dsl.language.diagnostics import Diagnostic, did_you_mean


def resolve(
    model: syntax.Model,
    variant: str | None,
    overrides: Mapping[str, Any],
    names: Namespace,
    steps: Bodies,
) -> None:
    """Enter the model's parameters into `names`; mistakes are reported through `steps`.

    `overrides` hold expressions (from a command line) or plain Python values.
    """
    declared = {parameter.name.text: parameter for parameter in reversed(model.parameters)}
    variants = _variants(model, declared, steps)
    chosen: dict[str, syntax.Expression] = {}
    if variant is not None and variant in variants:
        chosen = {setting.name.text: setting.value for setting in variants[variant].settings}
    elif variant is not None and variant not in broken_names(model):
        help = nearest(variant, variants, "its variants are", "it has no variants")
        message = f"`{model.name}` has no variant `{variant}`"
        steps.report.add(Diagnostic(code="E0209", message=message, help=(help,)))
    for name in overrides:
        if name not in declared:
            help = nearest(name, declared, "its parameters are", "it has no parameters")
            message = f"`{model.name}` has no parameter `{name}`"
            steps.report.add(Diagnostic(code="E0208", message=message, help=(help,)))
    place = Place(Owner(""), None, names, dry=True)
    names.later.update({name: parameter.name.span for name, parameter in declared.items()})
    for parameter in model.parameters:
        _enter(parameter, overrides, chosen, place, steps)


def _enter(
    parameter: syntax.Parameter,
    overrides: Mapping[str, Any],
    chosen: Mapping[str, syntax.Expression],
    place: Place,
    steps: Bodies,
) -> None:
    name, span, names = parameter.name.text, parameter.name.span, place.names
    if name in names.own:
        also = names.own[name].span
        steps.error("E0203", span, f"`{name}` is defined twice", also=[(also, "first here")] if also else [])
        return
    if reserved.is_step(name):
        steps.error("E0204", span, f"`{name}` is a step of the language, and cannot be a name")
    if name == "layer":
        steps.error("E0204", span, "`layer` counts the layers of a repeat, and cannot be a name")
    written = overrides.get(name, chosen.get(name, parameter.default))
    if written is None:
        help = f"give it a default, `{name} = …`, or a value: `--set {name}=…`"
        steps.error("E0213", span, f"the parameter `{name}` has no value", help)
        names.define(name, "parameter", POISON, span)
    elif isinstance(written, syntax.Expression):
        names.define(name, "parameter", steps.plain(written, place, f"`{name}`"), span)
    else:
        names.define(name, "parameter", Constant(_exact(written)), span)


def _variants(
    model: syntax.Model, declared: Mapping[str, syntax.Parameter], steps: Bodies
) -> dict[str, syntax.Variant]:
    """The model's variants by name, their settings' names checked."""
    variants: dict[str, syntax.Variant] = {}
    for statement in model.statements:
        if not isinstance(statement, syntax.Variant):
            continue
        name = statement.name
        if name.text in variants:
            also = [(variants[name.text].name.span, "first here")]
            steps.error("E0203", name.span, f"the variant `{name}` is defined twice", also=also)
        variants.setdefault(name.text, statement)
        seen: dict[str, syntax.Setting] = {}
        for setting in statement.settings:
            key = setting.name.text
            if key not in declared:
                help = nearest(key, declared, "its parameters are", "it has no parameters")
                steps.error("E0208", setting.name.span, f"`{model.name}` has no parameter `{key}`", help)
            elif key in seen:
                also = [(seen[key].name.span, "first here")]
                steps.error("E0203", setting.name.span, f"`{key}` is set twice", also=also)
            seen.setdefault(key, setting)
    return variants


def broken_names(model: syntax.Model) -> set[str]:
    """The names that statements with a mistake may have defined."""
    broken = (statement for statement in model.statements if isinstance(statement, syntax.Broken))
    return {name.text for statement in broken for name in statement.names}


def nearest(name: str, known: Mapping[str, Any], all_of: str, none: str) -> str:
    """Help for a name that is not known: the nearest one, or all of them."""
    near = did_you_mean(name, known)
    if near:
        return f"did you mean `{near}`?"
    return f"{all_of} {', '.join(known)}" if known else none


def _exact(value: Any) -> Any:
    """A Python value as the language holds it: numbers are exact (0.1 is a tenth), lists are tuples."""
    if isinstance(value, bool | str | Fraction):
        return value
    if isinstance(value, int):
        return Fraction(value)
    if isinstance(value, float):
        return Fraction(repr(value))
    if isinstance(value, list | tuple):
        return tuple(_exact(item) for item in value)
    raise TypeError(f"a parameter is a number, a boolean, a word or a list, not {value!r}")
