"""Compiled training: one program for the whole of an objective's forward and backward."""

from __future__ import annotations

from torch import nn

from crate_dsl.language.diagnostics import UserError


def compile_(objective: nn.Module) -> None:
    """Compile an objective in place: its names, weights and class stay what they are.

    The first step of a run takes long: that is when it is compiled. So does the first one of another batch size, after
    which batches of every size fit.

    Raises:
        UserError: this machine has no C++ compiler.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as problem:
        raise UserError(
            "`--compile` needs a C++ compiler, and this machine has none",
            "install g++ or clang, or name one: CXX=/path/to/g++",
        ) from problem
    objective.compile()
