"""Diagnostics: one record for each mistake, and its renderings for a terminal and for programs.

Every code has a page in `explanations/`, with a failing example and the whole message that it gives.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, InstanceOf

from crate_dsl.language.source import Span

#: Mistakes of one file that are shown before the rest is only counted.
SHOWN = 50
#: Characters of a line that an excerpt shows: of a longer one, a window around the place.
LONGEST_LINE = 200


class Label(BaseModel):
    """A stretch of text and what there is to say about it."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True, defer_build=True)

    span: InstanceOf[Span]
    text: str = ""


class Diagnostic(BaseModel):
    """One mistake, in the spec's own words.

    `where` is underlined (None where the mistake has no text to point at: a missing file); `also` are further marks
    (the other of two shapes that disagree); `uses` is the chain of blocks and repeats that led to the place, innermost
    first; `help` says what would work.
    """

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True, defer_build=True)

    code: str
    message: str
    where: Label | None = None
    also: tuple[Label, ...] = ()
    uses: tuple[Label, ...] = ()
    help: tuple[str, ...] = ()

    @property
    def severity(self) -> Literal["error", "warning"]:
        return "warning" if self.code.startswith("W") else "error"

    def order(self) -> tuple[str, int, str]:
        """Diagnostics are shown by file and by place."""
        if self.where is None:
            return "", 0, self.code
        return self.where.span.source.name, self.where.span.start, self.code


class SpecError(Exception):
    """A spec that does not mean anything yet. `diagnostics` holds every mistake, by place; `str()` shows them all."""

    def __init__(self, diagnostics: Iterable[Diagnostic]) -> None:
        self.diagnostics: tuple[Diagnostic, ...] = tuple(diagnostics)
        super().__init__(self.diagnostics)

    def __str__(self) -> str:
        return render_all(self.diagnostics)

    def __reduce__(self) -> tuple[type, tuple[tuple[Diagnostic, ...]]]:
        return SpecError, (self.diagnostics,)


class UserError(Exception):
    """A mistake in what was asked of a tool rather than in a spec: one sentence, and what would work.

    Raised for data, runs, checkpoints, ONNX files and devices; the command line prints it without a traceback.
    """

    def __init__(self, message: str, *help: str, exit_code: int = 1) -> None:
        super().__init__(message, *help)
        self.message = message
        self.help = help
        self.exit_code = exit_code

    def __str__(self) -> str:
        return "\n".join([self.message, *(f"help: {line}" for line in self.help)])


class Caution(UserWarning):
    """Something that goes on, and that a user should know of; the command line prints it as a sentence."""


class NotCertified(Caution):
    """What a spec asks for works, perhaps, but nothing certifies that it does for every input."""


class NotScaled(Caution):
    """Pictures go into a network that does not say how their pixels become numbers."""


class Remark(Caution):
    """A warning about a spec that its text alone does not show. `diagnostic` has the code and the place."""

    def __init__(self, diagnostic: Diagnostic) -> None:
        super().__init__(diagnostic)
        self.diagnostic = diagnostic

    def __str__(self) -> str:
        return render_all([self.diagnostic])


class Report:
    """Gathers the diagnostics of a phase."""

    def __init__(self) -> None:
        self._found: list[Diagnostic] = []
        self._seen: set[tuple[object, ...]] = set()

    def add(self, diagnostic: Diagnostic) -> None:
        """Keep a diagnostic; a second one of the same code at the same place (a repeat's next layer) is dropped."""
        span = diagnostic.where.span if diagnostic.where else None
        key = (
            diagnostic.code,
            span and (span.source.name, span.start, span.end),
            None if span else diagnostic.message,
        )
        if key not in self._seen:
            self._seen.add(key)
            self._found.append(diagnostic)

    def extend(self, diagnostics: Iterable[Diagnostic]) -> None:
        for diagnostic in diagnostics:
            self.add(diagnostic)

    def __iter__(self) -> Iterator[Diagnostic]:
        return iter(sorted(self._found, key=Diagnostic.order))

    def __len__(self) -> int:
        return len(self._found)

    @property
    def errors(self) -> tuple[Diagnostic, ...]:
        return tuple(d for d in self if d.severity == "error")

    @property
    def warnings(self) -> tuple[Diagnostic, ...]:
        return tuple(d for d in self if d.severity == "warning")

    def raise_errors(self) -> None:
        """Raise `SpecError` with every error gathered so far, if there is one."""
        if self.errors:
            raise SpecError(self.errors)


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """The known word nearest to one that is not known, if any is near."""
    near = get_close_matches(word, sorted(set(known)), n=1, cutoff=0.6)
    return near[0] if near else None


# ------------------------------------------------------------------ renderings


def render(diagnostic: Diagnostic) -> str:
    """The terminal's form: a sentence, the excerpt with its columns underlined, further excerpts, help."""
    lines = [f"{diagnostic.severity}[{diagnostic.code}]: {diagnostic.message}"]
    labels = [] if diagnostic.where is None else [diagnostic.where, *diagnostic.also]
    width = max((len(str(label.span.line)) for label in [*labels, *diagnostic.uses]), default=1)
    margin = " " * width
    by_source: list[tuple[object, list[Label]]] = []
    for label in labels:
        for source, group in by_source:
            if source is label.span.source:
                group.append(label)
                break
        else:
            by_source.append((label.span.source, [label]))
    for number, (_, group) in enumerate(by_source):
        head = group[0].span
        arrow = "-->" if number == 0 else ":::"
        lines.append(f"{margin}{arrow} {head.source.name}:{head.line}:{head.column}")
        lines.append(f"{margin} |")
        lines.extend(_excerpt(group, width, main=diagnostic.where))
    for use in diagnostic.uses:
        lines.append(f"{margin} = {use.text} at {use.span.source.name}:{use.span.line}:{use.span.column}")
    lines.extend(f"help: {text}" for text in diagnostic.help)
    return "\n".join(lines)


def _excerpt(labels: list[Label], width: int, main: Label | None) -> Iterator[str]:
    """The lines of one file that labels point at, in the file's order, `^` under the mistake and `-` under the rest."""
    margin = " " * width
    previous: tuple[int, int] | None = None
    for label in sorted(labels, key=lambda item: item.span.start):
        line, column = label.span.line, label.span.column
        text = label.span.source.line(line)
        first = max(0, column - 1 - LONGEST_LINE // 2) if len(text) > LONGEST_LINE else 0
        shown = text[first : first + LONGEST_LINE]
        if previous is None or (line, first) != previous:
            if previous is not None and line > previous[0] + 1:
                yield f"{margin} …"
            excerpt = f"{'…' if first else ''}{shown}{'…' if first + LONGEST_LINE < len(text) else ''}"
            yield f"{line:>{width}} | {excerpt.expandtabs(4)}".rstrip()
            previous = line, first
        before = ("…" if first else "") + shown[: column - 1 - first]
        length = max(1, label.span.end - label.span.start)
        marked = shown[column - 1 - first :][:length].expandtabs(4)
        mark = ("^" if label is main else "-") * max(1, len(marked))
        yield f"{margin} | {' ' * len(before.expandtabs(4))}{mark} {label.text}".rstrip()


def render_all(diagnostics: Iterable[Diagnostic]) -> str:
    """Every diagnostic, at most `SHOWN` of them in full."""
    found = list(diagnostics)
    parts = [render(diagnostic) for diagnostic in found[:SHOWN]]
    if len(found) > SHOWN:
        parts.append(f"… and {len(found) - SHOWN} more")
    return "\n\n".join(parts)


def as_json(diagnostic: Diagnostic) -> dict[str, Any]:
    """The form for programs: plain data, lines and columns counted from 1, ends exclusive."""

    def place(label: Label) -> dict[str, Any]:
        end_line, end_column = label.span.source.position(label.span.end)
        return {
            "file": label.span.source.name,
            "line": label.span.line,
            "column": label.span.column,
            "end_line": end_line,
            "end_column": end_column,
            "text": label.text,
        }

    return {
        "code": diagnostic.code,
        "severity": diagnostic.severity,
        "message": diagnostic.message,
        "where": place(diagnostic.where) if diagnostic.where else None,
        "also": [place(label) for label in diagnostic.also],
        "uses": [place(label) for label in diagnostic.uses],
        "help": list(diagnostic.help),
    }
