"""Every operator declares itself in full, and has the faces that its kind says."""

from __future__ import annotations

import inspect

import pytest

from crate_dsl.compiler import not_yet
from crate_dsl.compiler.modules import StepModule
from crate_dsl.compiler.operators import Operator
from crate_dsl.compiler.steps import onnx_face, operators, torch_face


@pytest.mark.parametrize("word", operators())
def test_an_operator_is_whole(word: str) -> None:
    operator: type[Operator] = operators()[word]
    assert operator.__doc__ and operator.formula, "its documentation is its docstring and its formula"
    if operator.kind == "expression":
        assert callable(getattr(operator, "python", None))
    else:
        assert issubclass(torch_face(operator), StepModule)
    if operator.kind in ("language", "expression", "lowered"):
        assert list(inspect.signature(onnx_face(operator)).parameters)[:3] == ["b", "op", "typing"]
    assert word not in not_yet.STEPS
    assert not {name for step, name in not_yet.ARGUMENTS if step == word} & set(operator.model_fields)
