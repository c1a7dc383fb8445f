"""The public names of `crate_dsl`, each fetched with what it needs when it is first asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crate_dsl.language.diagnostics import SpecError
from crate_dsl.workspace import load

if TYPE_CHECKING:
    from crate_dsl.compiler.build import Objective, build
    from crate_dsl.compiler.export import export
    from crate_dsl.compiler.lower import lower
    from crate_dsl.compiler.runtime import open_session
    from crate_dsl.compiler.stepping import stepped
    from crate_dsl.compiler.trace import trace
    from crate_dsl.compiler.weights import load_weights

__all__ = [
    "Objective",
    "SpecError",
    "build",
    "export",
    "load",
    "load_weights",
    "lower",
    "open_session",
    "stepped",
    "trace",
]

_HOMES = {
    "Objective": "crate_dsl.compiler.build",
    "build": "crate_dsl.compiler.build",
    "export": "crate_dsl.compiler.export",
    "load_weights": "crate_dsl.compiler.weights",
    "lower": "crate_dsl.compiler.lower",
    "open_session": "crate_dsl.compiler.runtime",
    "stepped": "crate_dsl.compiler.stepping",
    "trace": "crate_dsl.compiler.trace",
}


def __getattr__(name: str) -> object:
    """Import what is heavy when it is asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
