"""Losses that look inside a stage: `sparse_rate(encoder)` becomes a term for each place, and their mean."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import networkx as nx

from crate_dsl.compiler.graph import Node, Value, calls_inside
from crate_dsl.compiler.meanings import Constant, Meaning, Tensor, words
from crate_dsl.compiler.operators import Inside, Mistake, Operator
from crate_dsl.compiler.record import Place
from crate_dsl.compiler.statements import Statements
from crate_dsl.language import syntax
from crate_dsl.language.source import Span


class Losses(Statements):
    """Records losses that are given the name of a stage."""

    #: The nodes of the values that the objective names.
    named: tuple[str, ...] = ()

    def look(self, objective: syntax.Objective, place: Place) -> None:
        """Remember which values an objective names, before it is read itself."""
        found = [place.names.find(word) for word in words(objective.value.span.text)]
        self.named = tuple(d.meaning.value.node for d in found if d and isinstance(d.meaning, Tensor))

    def record(
        self,
        operator: Operator,
        inputs: tuple[Tensor, ...],
        ports: dict[str, Any],
        spans: dict[str, Span],
        span: Span,
        place: Place,
        path: str | None = None,
    ) -> Meaning:
        found = None if type(operator).kind != "objective" or place.dry else _looked_into(operator)
        if found is None:
            return super().record(operator, inputs, ports, spans, span, place, path)
        argument, stage = found
        steps = list(self._uses(stage))
        if not steps:
            message = f"`{stage.name}` must be used before it is measured"
            return self.error("E0506", spans[argument], message, place=place)
        try:
            terms = operator.terms(steps)
        except Mistake as mistake:
            where = spans.get(mistake.at or "", span)
            return self.error(mistake.code, where, mistake.message, *mistake.help, place=place)
        owner = path or place.owner.path_of(operator.word)
        total: Meaning | None = None
        for layer, (term, readings) in enumerate(terms):
            values = {name: Value(node.name) for name, node in readings.items()}
            one = super().record(term, (), values, spans, span, place, f"{owner}.{layer}")
            total = one if total is None else self.combine("+", total, span, one, span, place)
        assert total is not None, "terms() gives at least one, or raises"
        count = Constant(Fraction(len(terms)))
        return total if len(terms) == 1 else self.combine("/", total, span, count, span, place)

    def _uses(self, stage: Inside) -> Iterator[Node]:
        """The uses of a stage's steps that the objective's other terms read; all of them, where they read none."""
        node_of = self.recorder.graph.nodes
        paths = {node_of[name]["item"].path for name in calls_inside(self.recorder.scopes, stage.path)}
        items = (data["item"] for _, data in self.recorder.graph.nodes(data=True))
        nodes = [item for item in items if isinstance(item, Node) and item.path in paths]
        reached = set(self.named).union(*(nx.ancestors(self.recorder.graph, name) for name in self.named))
        yield from [node for node in nodes if node.name in reached] or nodes


def _looked_into(loss: Operator) -> tuple[str, Inside] | None:
    """The argument of a loss that is the name of a stage, and the stage."""
    values = ((name, getattr(loss, name)) for name in type(loss).model_fields)
    return next(((name, value) for name, value in values if isinstance(value, Inside)), None)
