"""Writes `steps.md`, the reference of every step, from the operators' declarations: `python docs/make_steps.py`.

Nothing in it knows a step by name: a step that is added to the language is in the reference from then on.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from crate_dsl.compiler import not_yet
from crate_dsl.compiler.accepts import Accepts, accepted, required, spelled
from crate_dsl.compiler.draws import DRAWS
from crate_dsl.compiler.operators import (
    Form,
    Inverse,
    LearnedInverse,
    Mistake,
    Operator,
    Port,
    Tokens,
    Typing,
    Weight,
    ports,
)
from crate_dsl.compiler.recipe import FORMS, TrainBlock, written
from crate_dsl.compiler.reserved import FORMS as DERIVED
from crate_dsl.compiler.steps import operators
from crate_dsl.compiler.types import Grid, Layout, Segment, TensorType, floats

PAGE = Path(__file__).with_name("steps.md")

#: What each kind of operator is to a user, in the order of the page. Lowered operators have no spelling.
SECTIONS = {
    "language": ("Steps", "They stand in pipelines, bodies and stages."),
    "training": ("Random steps", "They stand where the objective alone reaches."),
    "objective": ("Losses", "They stand in `objective`, and take tensors by name."),
    "expression": (
        "Arithmetic",
        "The compiler makes these from `+`, `-`, `*`, `/` and `[ ]`. They have no other spelling.",
    ),
}

HEAD = """\
# Steps

Every step of the language, as it is declared. How steps are put together is in the [language reference](language.md).

This page is written by `docs/make_steps.py`. Do not edit it: edit the operator, and run `python docs/make_steps.py`.

An argument is given by position or by name. “a number” is exact until the step takes it. `learn(1.0)` makes a learned
number that the step owns. Where *weights* are listed, they are those of the use shown, with their shapes; `[ ]` is a
single number. Shapes are those of one sample: the batch axis is never written.
"""

# ------------------------------------------------------------------ an example of every step

_PATCHES = Segment("patches", floats(16).shape[0], Grid(rows=4, columns=4, patch=2, channels=3))
_CLASS = Segment("class_token", floats(1).shape[0])

#: What steps are shown on: the first of these that the step takes.
SAMPLES = (
    floats(17, 12, layout=Layout((_CLASS, _PATCHES))),
    floats(16, 12, layout=Layout((_PATCHES,))),
    floats(4, 12, layout=Layout((Segment("patches", floats(4).shape[0], whole=_PATCHES),))),
    floats(3, 8, 8),
    TensorType("index", floats(16).shape, classes=50),
)
#: What tensors that a step needs as arguments are: the first of these that it takes.
HANDED = (
    TensorType("bool", floats(16).shape),
    TensorType("index", floats(4).shape, classes=16),
    floats(16, 12),
)


def example(operator: type[Operator]) -> tuple[str, Operator, TensorType, Typing]:
    """A use of a step, as it is spelled, with the types that go in and come out.

    Raises:
        ValueError: the step takes none of `SAMPLES` with simple arguments.
    """
    names = required(operator)
    choices = [_simple(accepted(operator)[name], k) for k, name in enumerate(names)]
    for sample, values in product(SAMPLES, product(*choices)):
        made = operator.model_validate(dict(zip(names, values, strict=True)))
        try:
            typing = made.infer(sample)
        except Mistake:
            continue
        given = [_shown(name, value) for name, value in zip(names, values, strict=True)]
        text = f"{operator.word}({', '.join(given)})" if given else operator.word
        return text, made, sample, typing
    raise ValueError(f"`{operator.word}` takes none of the sample inputs: add one that it takes to SAMPLES")


def _simple(accepts: Accepts, position: int) -> list[object]:
    """Values that an argument accepts: the simplest, or each tensor that there is."""
    if accepts.words:
        return [accepts.words[0]]
    if accepts.forms:
        return [next(iter(accepts.forms.values()))()]
    if int in accepts.kinds:
        return [position + 2]
    if float in accepts.kinds:
        return [0.5]
    if Tokens in accepts.kinds:
        return [Tokens("class_token")]
    return (
        [Weight("queries", floats(4, 12))] if Weight in accepts.kinds else [Port(type_) for type_ in HANDED]
    )


def _shown(name: str, value: object) -> str:
    if isinstance(value, Port):
        return spelled(name)
    return value.name if isinstance(value, Weight | Tokens) else str(value)


# ------------------------------------------------------------------ pieces


def signature(model: type[BaseModel], word: str) -> str:
    """`norm(by = layer, eps = …)`: an argument whose default follows from the others ends in `…`."""
    arguments = [
        spelled(name) if info.is_required() else f"{spelled(name)} = {_default(info)}"
        for name, info in model.model_fields.items()
    ]
    return f"{word}({', '.join(arguments)})" if arguments else word


def _default(info: FieldInfo) -> str:
    default = info.default
    if isinstance(default, Form) and default == type(default).model_construct():
        return default.word
    return "…" if default is None else written(default)


def _table(model: type[BaseModel]) -> Iterator[str]:
    if not model.model_fields:
        return
    yield from ("", "| argument | accepts | default |", "|---|---|---|")
    for name, info in model.model_fields.items():
        accepts = accepted(model)[name].describe().replace("|", r"\|")
        default = "required" if info.is_required() else "" if info.default is None else f"`{_default(info)}`"
        yield f"| `{spelled(name)}` | {', '.join([accepts, *_bounds(info)])} | {default} |"


def _bounds(info: FieldInfo) -> Iterator[str]:
    """The range of a number, in words."""
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    for item in info.metadata:
        for key, word in words.items():
            if (bound := getattr(item, key, None)) is not None:
                yield f"{word} {bound}"


def _doc(model: type[BaseModel]) -> str:
    return inspect.cleandoc(model.__doc__ or "")


def _summary(model: type[BaseModel]) -> str:
    """The first paragraph of a docstring, as a cell of a table."""
    return " ".join(_doc(model).partition("\n\n")[0].split()).replace("|", r"\|")


# ------------------------------------------------------------------ sections


def step(operator: type[Operator]) -> Iterator[str]:
    """The section of one operator."""
    yield from ("", f"### `{operator.word}`", "", _doc(operator))
    yield from ("", "```text", signature(operator, operator.word), "```")
    if operator.formula:
        yield from ("", "```math", operator.formula, "```")
    if operator.source:
        yield from ("", f"Source: {operator.source}.")
    yield from _table(operator)
    if operator.kind != "objective":
        yield from _example(operator)


def _example(operator: type[Operator]) -> Iterator[str]:
    text, made, given, typing = example(operator)
    weights = [f"`{name} {list(slot.shape) or '[ ]'}`" for name, slot in typing.slots.items()]
    handed = "".join(f", with `{spelled(name)} : {port.type}`," for name, port in ports(made).items())
    yield from (
        "",
        f"`{given} -> {text}`{handed} gives `{typing.output}`. Weights: {', '.join(weights) or 'none'}.",
    )
    undone = made.inverse(LearnedInverse(), given)
    if isinstance(undone, Inverse):
        yield f"Undone by `{undone.operator.word}`."
    else:
        yield f"Not undone: {undone.reason}."


def forms(found: Iterable[type[Form]]) -> Iterator[str]:
    """A table of words that have arguments of their own."""
    yield from ("", "| word | meaning |", "|---|---|")
    for form in found:
        yield f"| `{signature(form, form.word)}` | {_summary(form)} |"


def _forms_of(models: Iterable[type[BaseModel]]) -> dict[str, type[Form]]:
    """The forms that arguments accept, by word; those of forms included."""
    found: dict[str, type[Form]] = {}
    for model in models:
        here = {word: form for accepts in accepted(model).values() for word, form in accepts.forms.items()}
        found |= here | _forms_of(here.values())
    return found


def lines() -> Iterator[str]:
    """The page."""
    yield HEAD.rstrip()
    # `transpose` and other forms of the language have operators that users do not write: language.md has them.
    written_by_users = [operator for word, operator in operators().items() if word not in DERIVED]
    for kind, (title, introduction) in SECTIONS.items():
        members = sorted((o for o in written_by_users if o.kind == kind), key=lambda operator: operator.word)
        if not members:
            continue
        yield from ("", f"## {title}", "", introduction, "", "| | |", "|---|---|")
        for operator in members:
            name = f"`{operator.word}`" if kind == "expression" else f"[`{operator.word}`](#{operator.word})"
            yield f"| {name} | {_summary(operator)} |"
        if kind != "expression":
            for operator in members:
                yield from step(operator)
    yield from (
        "",
        "## Words with arguments",
        "",
        "Words as arguments, with arguments of their own: `norm = layer(eps = 1e-6)`.",
    )
    yield from forms(form for _, form in sorted(_forms_of(written_by_users).items()))
    yield from (
        "",
        "## Draws",
        "",
        "What may stand behind an input's type: `input noise : float[64, 48] = normal`.",
    )
    yield from forms(DRAWS.values())
    yield from (
        "",
        "## Recipes",
        "",
        "What may stand in a `train` block.",
        "",
        "| entry | meaning | accepts | default |",
    )
    yield "|---|---|---|---|"
    for name, info in TrainBlock.model_fields.items():
        bounds = ", ".join([accepted(TrainBlock)[name].describe(), *_bounds(info)])
        yield f"| `{name}` | {info.description} | {bounds} | {'' if info.default is None else f'`{_default(info)}`'} |"
    for entry, members_of in FORMS.items():
        yield from ("", f"`{entry}`:")
        yield from forms(members_of)
    yield from (
        "",
        "## Not there yet",
        "",
        "These parse, and `check` says that they are not there yet (E0901).",
        "",
    )
    yield from ("| what | which |", "|---|---|")
    yield f"| steps and losses | {_listed(not_yet.STEPS)} |"
    yield f"| arguments | {_listed(f'{step}({name} = …)' for step, name in not_yet.ARGUMENTS)} |"
    if not_yet.WORDS:
        yield f"| words of arguments | {_listed(f'{step}({name} = {word})' for step, name, word in not_yet.WORDS)} |"


def _listed(words: Iterable[str]) -> str:
    return ", ".join(f"`{word}`" for word in sorted(words))


def page() -> str:
    """The page as one text."""
    return "\n".join(lines()) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
