"""What goes on with a text: a network that scores the next token, as its spec tells."""

from __future__ import annotations

from dataclasses import dataclass

from crate_dsl.compiler.graph import Entry, ModelGraph, Node
from crate_dsl.compiler.types import Dim
from crate_dsl.language.diagnostics import UserError


@dataclass(frozen=True, slots=True)
class TextNetwork:
    """The names of what a network reads and gives, and the most tokens that it reads.

    `ids` is its input of tokens, `kept` its input that says which of them are real, if there is one, and `scores` its
    output, for each token the scores of the next one.
    """

    model: str
    ids: str
    kept: str | None
    scores: str
    context: int
    vocabulary: int


def text_network(graph: ModelGraph) -> TextNetwork:
    """How a spec's network goes on with a text: its objective tells, by a `next_token(logits, ids)`.

    Raises:
        UserError: it does not, or needs more than tokens.

    >>> import crate_dsl
    >>> text_network(crate_dsl.load("specs/text.crate:crate_gpt@characters"))
    TextNetwork(model='crate_gpt', ids='ids', kept=None, scores='logits', context=128, vocabulary=128)
    """
    name = f"`{graph.model}`"
    term = _next_token(graph)
    if term is None:
        raise UserError(
            f"{name} goes on with no text: its objective does not tell the next token",
            "objective next_token(logits, ids)",
        )
    entry = graph.item(term.ports["ids"].node)
    scores = next((output for output, value in graph.outputs.items() if value == term.ports["logits"]), None)
    if not isinstance(entry, Entry) or scores is None:
        raise UserError(
            f"{name} tells the next token of what is no input, or by what is no output",
            "input ids : index(vocab)[n <= context], output logits, objective next_token(logits, ids)",
        )
    (length,) = entry.type.shape
    if length.symbol is None or length != Dim.symbolic(length.symbol):
        raise UserError(
            f"{name} reads texts of {length} tokens, and no shorter ones",
            f"input {entry.name} : index(vocab)[n <= {length.bound}]",
        )
    others = [other for other in graph.export_inputs.values() if other is not entry]
    kept = next((o for o in others if o.type.kind == "bool" and o.type.shape == entry.type.shape), None)
    if missing := next((other for other in others if other is not kept), None):
        raise UserError(f"{name} also needs `{missing.name}` : {missing.type}, which no text tells")
    assert entry.type.classes is not None
    return TextNetwork(
        graph.model, entry.name, kept.name if kept else None, scores, length.bound, entry.type.classes
    )


def _next_token(graph: ModelGraph) -> Node | None:
    """The first such term of the objective."""
    if graph.objective is None:
        return None
    reached = graph.reached([graph.objective])
    return next((node for node in graph.nodes if node.name in reached and node.word == "next_token"), None)
