"""Small specs, elaborated: what the tests of the elaborator share."""

from __future__ import annotations

from typing import Any

from crate_dsl.compiler.graph import ModelGraph
from crate_dsl.language.diagnostics import Diagnostic
from crate_dsl.language.source import Source
from crate_dsl.workspace import Target, check_text, load_source


def elaborated(text: str, target: str = "test.crate", **values: Any) -> ModelGraph:
    """The graph of a text; `values` override parameters."""
    return load_source(Source("test.crate", text), Target.of(target), values)


def model(body: str, parameters: str = "dim = 8", more: str = "") -> str:
    """A whole model around some statements that make `y` of `z : float[16, dim]`."""
    head = f"model m({parameters}) {{" if parameters else "model m {"
    return f"{more}\n{head}\n    input z : float[16, 8]\n{body}\n    output y\n}}\n"


def graph_of(body: str, parameters: str = "", more: str = "", **values: Any) -> ModelGraph:
    return elaborated(model(body, parameters, more), **values)


def found(text: str) -> list[Diagnostic]:
    """Every diagnostic of a text."""
    return check_text("test.crate", text)


def codes(text: str) -> list[str]:
    return [diagnostic.code for diagnostic in found(text)]


def operators(graph: ModelGraph) -> list[Any]:
    """Every operator in order, whatever it is called."""
    return [node.operator for node in graph.nodes]


def weights(graph: ModelGraph) -> list[Any]:
    """Every weight in order, whatever it is called."""
    return list(graph.slots.values())
