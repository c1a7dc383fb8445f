"""The command line: `crate-dsl COMMAND …`. One file for each command, loaded when it is asked for.

Exit codes: 0 fine; 1 the spec or another input is wrong; 2 the command line itself is; 3 a proof failed; 70 a
mistake of this program; 130 interrupted.
"""

from __future__ import annotations

import gc
import io
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from inspect import cleandoc
from keyword import iskeyword
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

import crate_dsl
from crate_dsl.cli.terminal import complain
from crate_dsl.language.diagnostics import Caution, Remark, SpecError, UserError, did_you_mean, render_all

#: Each is a function of this name in a module of this name, and its docstring is its help. Where Python keeps the name
#: for itself, an underscore follows there: `import_`.
COMMANDS = (
    "check",
    "fmt",
    "show",
    "train",
    "import",
    "export",
    "inspect",
    "features",
    "run",
    "generate",
    "explain",
    "demo",
)
#: Those that read a text and are done: a tenth of their time would go into looking for garbage that is not there.
BRIEF = ("check", "fmt", "explain")
#: Set it to see where a mistake of this program comes from.
TRACEBACK = "CRATE_DSL_TRACEBACK"

INTERNAL_ERROR, INTERRUPTED = 70, 130
OPTIONS: dict[str, Any] = {
    "add_completion": False,
    "rich_markup_mode": None,
    "pretty_exceptions_enable": False,
}


def _help(command: Callable[..., None]) -> str:
    """A command's docstring, its examples marked for typer: it fills all paragraphs but those after a backspace."""
    paragraphs = cleandoc(command.__doc__ or "").split("\n\n")
    return "\n\n".join(f"\b\n{text}" if text.startswith("crate-dsl ") else text for text in paragraphs)


class Commands(TyperGroup):
    """Imports a command's module when the command is asked for: `check` does not wait for torch."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            near = did_you_mean(cmd_name, COMMANDS)
            help = f"did you mean `{near}`?" if near else f"commands: {', '.join(COMMANDS)}"
            raise UserError(f"there is no command `{cmd_name}`", help, exit_code=2)
        if cmd_name in BRIEF:
            gc.disable()
        single = typer.Typer(**OPTIONS)
        name = f"{cmd_name}_" if iskeyword(cmd_name) else cmd_name
        module = import_module(f"crate_dsl.cli.{name}")
        command = getattr(module, name)
        # What a module has as `epilog` writes the end of its command's help.
        epilog = module.epilog() if hasattr(module, "epilog") else None
        single.command(cmd_name, help=_help(command), epilog=epilog)(command)
        return typer.main.get_command(single)


def _version(asked: bool) -> None:
    if asked:
        print(f"crate-dsl {crate_dsl.__version__}")
        raise typer.Exit


def crate_dsl_command(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Print the version and stop.")
    ] = False,
) -> None:
    """White-box neural networks from a small language: a .crate file becomes a trained network and a proved ONNX file.

    crate-dsl check specs/crate.crate                find every mistake
    crate-dsl show specs/crate.crate@tiny            see what a spec computes
    crate-dsl train specs/crate.crate@fashion --data mnist5k --out runs/first
    crate-dsl export runs/first --out first.onnx     write ONNX, and prove it
    crate-dsl run first.onnx picture.png             use it

    A TARGET is FILE.crate, FILE.crate@VARIANT, or FILE.crate:MODEL@VARIANT.
    """


app = typer.Typer(cls=Commands, no_args_is_help=True, **OPTIONS)
app.callback(help=_help(crate_dsl_command))(crate_dsl_command)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line, and leave with its exit code. No mistake of a user's ends in a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a sign shows a question mark
    sys.exit(_flushed(_run(arguments)))


def _run(arguments: Sequence[str] | None) -> int:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", Caution)
            warnings.showwarning = partial(_warn, set())
            app(arguments, prog_name="crate-dsl")
    except SystemExit as end:
        if end.code == INTERRUPTED:
            complain("interrupted")
        return end.code if isinstance(end.code, int) else 0
    except SpecError as problem:
        complain(render_all(problem.diagnostics))
        return 1
    except UserError as problem:
        complain(f"error: {problem}")
        return problem.exit_code
    except OSError as problem:
        if problem.filename is None:
            return _internal(problem)
        complain(f"error: `{problem.filename}`: {(problem.strerror or str(problem)).lower()}")
        return 1
    # The only place that takes whatever comes: a user is owed a sentence, and a developer the way to the traceback.
    except Exception as problem:
        return _internal(problem)
    finally:
        gc.enable()
    return 0


def _warn(told: set[str], message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    """A warning of ours as a sentence, told once. Those of libraries are for developers."""
    if issubclass(category, Caution) and str(message) not in told:
        told.add(str(message))
        complain(str(message) if isinstance(message, Remark) else f"warning: {message}")


def _internal(problem: Exception) -> int:
    if os.environ.get(TRACEBACK):
        raise problem
    what = " ".join(str(problem).split())[:200]
    complain(f"internal error: {type(problem).__name__}: {what}")
    complain(f"help: this is a mistake of crate-dsl; {TRACEBACK}=1 shows where it comes from")
    return INTERNAL_ERROR


def _flushed(code: int) -> int:
    """The exit code, once everything is written. Whoever read our output may have gone: `crate-dsl show … | head`."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes once more at its end, and must find somewhere to write to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return code or 1
    return code
