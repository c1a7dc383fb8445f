"""White-box neural networks in a small language: a `.crate` file becomes a torch module and a proved ONNX file.

Importing this package imports nothing else; each name below arrives with its first use.
"""

import importlib
import os

__version__ = "0.1.0"

__all__ = [
    "Objective",
    "SpecError",
    "__version__",
    "build",
    "export",
    "load",
    "load_weights",
    "lower",
    "open_session",
    "stepped",
    "trace",
]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from crate_dsl.api import (
        Objective,
        SpecError,
        build,
        export,
        load,
        load_weights,
        lower,
        open_session,
        stepped,
        trace,
    )

# Installed, `compiler`, `grammars` and `specs` lie in this folder. In a source checkout they lie beside it.
_folder = os.path.dirname(os.path.abspath(__file__))
if not os.path.isdir(os.path.join(_folder, "compiler")):
    __path__.append(os.path.dirname(_folder))


def __getattr__(name: str) -> object:
    """Fetch a public name from `crate_dsl.api` and keep it.

    Raises:
        AttributeError: `name` is not one of `__all__`.
    """
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module("crate_dsl.api"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
