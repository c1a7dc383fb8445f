"""What the language has and this version does not compile yet: it parses, and check says so in one diagnostic."""

from __future__ import annotations

_STEPS = "scan unscan shift corrupt merge tile quantize drop_path diffusion denoising commitment"
#: Steps, derived stages and losses by name.
STEPS = frozenset(_STEPS.split())

#: Steps that are there for values, and not yet for numbers alone, `sinusoid(layer, 64)`.
OF_NUMBERS = frozenset({"sinusoid"})

#: Attributes of tokens that a mask would read (`key.noise == 0`), and no step gives yet.
ATTRIBUTES = frozenset({"noise", "scale"})

#: Arguments of steps that are there, as (step, argument).
ARGUMENTS = frozenset(
    (step, argument)
    for step, arguments in {
        "mse": "by",
        "position": "by",
    }.items()
    for argument in arguments.split()
)

#: Words of arguments that are there, as (step, argument, word).
WORDS: frozenset[tuple[str, str, str]] = frozenset()
