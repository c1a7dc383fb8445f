"""What a step's text was read as: layers that say the same share it."""

from __future__ import annotations

from dataclasses import dataclass

from crate_dsl.compiler.arguments import Read
from crate_dsl.compiler.meanings import Definition, Namespace
from crate_dsl.compiler.operators import Operator
from crate_dsl.language import syntax


@dataclass(frozen=True, slots=True)
class Reading:
    """A step's text as it was read last: what its words meant, and the operator that it said.

    It holds the tree's step, whose identity stands for the text.
    """

    step: syntax.Step
    words: tuple[str, ...]
    meant: tuple[Definition | None, ...]
    operator: Operator
    read: Read

    def holds(self, names: Namespace) -> bool:
        """Whether every word still means what it meant: then the text says the same."""
        return all(names.find(word) is known for word, known in zip(self.words, self.meant, strict=True))
