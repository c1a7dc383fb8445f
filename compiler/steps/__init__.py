"""Every step of the language, one folder for each family. A new step is a new folder here, and no edit elsewhere."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pkgutil import iter_modules
from typing import Any

from crate_dsl.compiler.operators import Operator


@cache
def operators() -> dict[str, type[Operator]]:
    """Every declared operator by its word."""
    found: dict[str, type[Operator]] = {}
    for family in sorted(module.name for module in iter_modules(__path__) if module.ispkg):
        declared = import_module(f"{__name__}.{family}.operator")
        for value in vars(declared).values():
            if (
                isinstance(value, type)
                and issubclass(value, Operator)
                and value.__module__ == declared.__name__
            ):
                if value.__dict__.get("word") is None:
                    continue
                if value.word in found:
                    raise ValueError(
                        f"two operators are called {value.word}: {found[value.word]} and {value}"
                    )
                found[value.word] = value
    return found


def torch_face(operator: type[Operator]) -> Any:
    """The `StepModule` that is this operator in torch: of the same name, in `module.py`. Expressions have none."""
    return getattr(import_module(f"{operator.family()}.module"), operator.__name__)


def onnx_face(operator: type[Operator]) -> Any:
    """The function that writes this operator as ONNX nodes: named by its word, in `onnx.py`."""
    return getattr(import_module(f"{operator.family()}.onnx"), operator.word)


def parts_face(operator: type[Operator]) -> Any:
    """The function that writes this operator out as its parts: named by its word, in `parts.py`; None where there is
    none, and the step is lowered as a whole.
    """
    name = f"{operator.family()}.parts"
    return getattr(import_module(name), operator.word, None) if find_spec(name) else None
