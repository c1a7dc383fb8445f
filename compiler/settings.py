"""A model's parameters in force: default < variant < override, each in the order in which it is declared."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from crate_dsl.compiler.apply import Steps
from crate_dsl.compiler.meanings import POISON, Constant, Namespace
from crate_dsl.compiler.record import Owner, Place
from crate_dsl.compiler.steps import operators
from crate_dsl.language import syntax
from crate_dsl.language.diagnostics import Diagnostic, did_you_mean


def resolve(
    model: syntax.Model,
    variant: str | None,
    overrides: Mapping[str, Any],
    names: Namespace,
    steps: Steps,
) -> None:
    """Enter the model's parameters into `names`; mistakes are reported through `steps`.

    `overrides` hold expressions (from a command line) or plain Python values.
    """
    declared = {parameter.name.text: parameter for parameter in model.parameters}
    variants: dict[str, syntax.Variant] = {}
    for statement in model.statements:
        if isinstance(statement, syntax.Variant):
            _check_variant(statement, declared, variants, steps)
    chosen: dict[str, syntax.Expression] = {}
    if variant is not None and variant not in variants:
        near = did_you_mean(variant, variants)
        known = f"its variants are {', '.join(variants)}" if variants else "it has no variants"
        _unplaced(steps, "E0209", f"`{model.name}` has no variant `{variant}`", f"did you mean `{near}`?" if near else known)
    elif variant is not None:
        chosen = {setting.name.text: setting.value for setting in variants[variant].settings}
    for name in overrides:
        if name not in declared:
            near = did_you_mean(name, declared)
            known = f"its parameters are {', '.join(declared)}" if declared else "it has no parameters"
            _unplaced(steps, "E0208", f"`{model.name}` has no parameter `{name}`", f"did you mean `{near}`?" if near else known)
    place = Place(Owner(""), None, names, dry=True)
    for name, parameter in declared.items():
        span = parameter.name.span
        if name in names.own:
            also = names.own[name].span
            steps.error("E0203", span, f"`{name}` is defined twice", also=[(also, "first here")] if also else [])
            continue
        if name in operators() or name in steps.forms:
            steps.error("E0204", span, f"`{name}` is a step of the language, and cannot be a name")
        written = overrides.get(name, chosen.get(name, parameter.default))
        if written is None:
            steps.error("E0213", span, f"`{name}` has no value", f"give it a default, or `--set {name}=…`")
            names.define(name, "parameter", POISON, span)
        elif isinstance(written, syntax.Expression):
            names.define(name, "parameter", steps.plain(written, place, f"`{name}`"), span)
        else:
            names.define(name, "parameter", Constant(_exact(written)), span)


def _check_variant(
    statement: syntax.Variant, declared: Mapping[str, syntax.Parameter], variants: dict[str, syntax.Variant], steps: Steps
) -> None:
    name = statement.name.text
    if name in variants:
        also = [(variants[name].name.span, "first here")]
        steps.error("E0203", statement.name.span, f"`{name}` is defined twice", also=also)
    variants[name] = statement
    seen: dict[str, syntax.Setting] = {}
    for setting in statement.settings:
        key = setting.name.text
        if key not in declared:
            near = did_you_mean(key, declared)
            help = [f"did you mean `{near}`?"] if near else [f"parameters are {', '.join(declared)}"] if declared else []
            steps.error("E0208", setting.name.span, f"there is no parameter `{key}`", *help)
        elif key in seen:
            steps.error("E0203", setting.name.span, f"`{key}` is set twice", also=[(seen[key].name.span, "first here")])
        seen[key] = setting


def _unplaced(steps: Steps, code: str, message: str, *help: str) -> None:
    """Report a mistake that stands on the command line rather than in the text."""
    steps.report.add(Diagnostic(code=code, message=message, help=help))


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
