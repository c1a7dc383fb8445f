"""What fits the grammar and is refused all the same."""

from __future__ import annotations

from collections.abc import Sequence

from crate_dsl.language.diagnostics import Diagnostic, Label
from crate_dsl.language.source import Span
from crate_dsl.language.syntax import Expression, Pipe


def pipeline_as_operand(span: Span, operands: Sequence[Expression]) -> Diagnostic:
    """`z + z -> f`: both readings, so that nobody has to know which one binds tighter."""
    pipe = next(operand for operand in operands if isinstance(operand, Pipe))
    left, inner, right = (_short(text) for text in _split(span, pipe.span))
    readings = [f"{left}({inner}){right}"]
    if operands[-1] is pipe:
        value, arrow, steps = inner.partition("->")
        readings.append(f"({left}{value.rstrip()}) {arrow}{steps}")
    return Diagnostic(
        code="E0115",
        message="a pipeline that is an operand stands in parentheses",
        where=Label(span=pipe.span),
        help=("write " + " or ".join(f"`{reading}`" for reading in readings),),
    )


def _split(whole: Span, part: Span) -> tuple[str, str, str]:
    text = whole.source.text
    return text[whole.start : part.start], text[part.start : part.end], text[part.end : whole.end]


def _short(text: str) -> str:
    """A stretch of text on one line."""
    words = " ".join(text.split()) if text.strip() else ""
    before, after = " " * text[:1].isspace(), " " * text[-1:].isspace()
    return f"{before}{words if len(words) <= 40 else words[:20] + ' … ' + words[-12:]}{after}"


def model_only(statement: Span) -> Diagnostic:
    """A statement of a model that stands in the body of a block, a stage or a step."""
    keyword = statement.text.split(None, 1)[0].split("{", 1)[0]
    return Diagnostic(
        code="E0117",
        message=f"`{keyword}` stands in a body",
        where=Label(span=Span(statement.source, statement.start, statement.start + len(keyword))),
        help=(
            "a graph body holds `input`, `learn`, `stage`, bindings and `output`; the rest belongs to the model",
        ),
    )
