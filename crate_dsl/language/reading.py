"""A path -> the text of a spec, or a diagnostic that says why there is none."""

from __future__ import annotations

from pathlib import Path

from crate_dsl.language.diagnostics import Diagnostic, Label, SpecError
from crate_dsl.language.source import Source, Span
from crate_dsl.language.tokens import MOST_BYTES


def read_source(path: str | Path, name: str | None = None) -> Source:
    """The text of a file. `name` is what diagnostics call it, unless the path.

    Raises:
        SpecError: there is no such file, or it is no text, or there is too much of it.
    """
    name = name or str(path)
    path = Path(path)
    try:
        if path.is_dir():
            raise SpecError(
                [Diagnostic(code="E0002", message=f"`{name}` is a folder", help=_beside(path / "_"))]
            )
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise SpecError([too_large(name)])
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise SpecError(
            [Diagnostic(code="E0001", message=f"there is no file `{name}`", help=_beside(path))]
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        message = f"`{name}` cannot be read: {reason.lower()}"
        raise SpecError([Diagnostic(code="E0003", message=message)]) from None
    if len(data) > MOST_BYTES:  # a pipe, or a file that grew
        raise SpecError([too_large(name)])
    return Source(name, _decoded(name, data))


def too_large(name: str | None = None) -> Diagnostic:
    """The diagnostic for a text beyond the limit."""
    subject = f"`{name}`" if name else "this text"
    message = f"{subject} is longer than {MOST_BYTES // 1024} KiB"
    return Diagnostic(
        code="E0004", message=message, help=("blocks can be moved to a file of their own, and imported",)
    )


def _decoded(name: str, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        text = data[: error.start].decode("utf-8-sig")
        byte = data[error.start]
        # The excerpt shows the text up to the byte, which stands for itself as a question mark.
        source = Source(name, f"{text}\N{REPLACEMENT CHARACTER}")
        where = Label(span=Span(source, len(text), len(text) + 1), text=f"byte {byte:#04x}")
        help = "save the file as UTF-8"
        raise SpecError(
            [Diagnostic(code="E0005", message="this file is not UTF-8 text", where=where, help=(help,))]
        ) from None


def _beside(path: Path) -> tuple[str, ...]:
    """The specs in the folder of a path, as help."""
    from crate_dsl.language.diagnostics import did_you_mean

    try:
        specs = sorted(entry.name for entry in path.parent.glob("*.crate"))
    except OSError:
        return ()
    near = did_you_mean(path.name, specs)
    if near:
        return (f"did you mean `{path.parent / near}`?",)
    return (f"specs there: {', '.join(specs[:10])}",) if specs else ()
