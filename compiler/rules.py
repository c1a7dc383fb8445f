"""From comparisons and booleans as a spec has them to a rule of a mask."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from itertools import product
from typing import NoReturn

from crate_dsl.compiler import not_yet
from crate_dsl.compiler.exact import show_number
from crate_dsl.compiler.graph import Value
from crate_dsl.compiler.masks import ATTRIBUTES, CAUSAL, Comparison, Rule, Sign, Term
from crate_dsl.compiler.meanings import Constant, Meaning, Poison, Tensor, one_line
from crate_dsl.language import syntax
from crate_dsl.language.diagnostics import did_you_mean

#: Alternatives that a rule may have once its parentheses are multiplied out.
MOST_ALTERNATIVES = 64
_MIRRORED: dict[str, Sign] = {"==": "==", "!=": "!=", "<": ">", "<=": ">=", ">": "<", ">=": "<="}


class NoRule(Exception):
    """A mistake in a rule, which has been reported."""


#: What an alternative consists of: comparisons, and the boolean of the key (None), if it needs it.
_AllOf = tuple[Comparison | None, ...]


class RuleReader:
    """Reads the rule of one mask. `evaluate` gives the meaning of a number or a tensor; `error` reports a mistake."""

    def __init__(
        self, evaluate: Callable[[syntax.Expression], Meaning], error: Callable[..., Poison]
    ) -> None:
        self.evaluate = evaluate
        self.error = error
        self.kept: Tensor | None = None

    def rule(self, written: syntax.Expression) -> tuple[Rule, Value | None]:
        """The rule, and the boolean that it reads, if any. Raises `NoRule` after reporting what is wrong with it."""
        found = self._alternatives(written)
        always = tuple(tuple(one for one in all_of if one) for all_of in found if None not in all_of)
        where_kept = tuple(tuple(one for one in all_of if one) for all_of in found if None in all_of)
        text = one_line(written.span.text)
        if self.kept is None:
            return Rule(always, text), None
        return Rule(always, text, where_kept, self.kept.type), self.kept.value

    def _alternatives(self, written: syntax.Expression) -> tuple[_AllOf, ...]:
        match written:
            case syntax.Parenthesis():
                return self._alternatives(written.value)
            case syntax.Or():
                return tuple(one for value in written.values for one in self._alternatives(value))
            case syntax.And():
                parts = [self._alternatives(value) for value in written.values]
                found = tuple(sum(chosen, ()) for chosen in product(*parts))
                if len(found) > MOST_ALTERNATIVES:
                    message = f"with its parentheses multiplied out, this rule has {len(found)} alternatives"
                    self._refuse(written, message, f"at most {MOST_ALTERNATIVES}")
                return found
            case syntax.Comparison():
                return ((self._comparison(written),),)
            case syntax.Name(text="causal"):
                return ((CAUSAL,),)
            case syntax.Name():
                self._boolean(written)
                return ((None,),)
        self._refuse_operand(written)

    def _boolean(self, written: syntax.Name) -> None:
        """A tensor among the comparisons: it says of each key whether it counts."""
        meaning = self.evaluate(written)
        if isinstance(meaning, Poison):
            raise NoRule
        if not isinstance(meaning, Tensor):
            self._refuse_operand(written)
        if self.kept is not None and self.kept.value != meaning.value:
            self._refuse(written, "a rule reads one boolean of the keys, and this is another one")
        self.kept = meaning

    def _refuse_operand(self, written: syntax.Expression) -> NoReturn:
        self._refuse(
            written,
            "a rule is made of comparisons, `causal`, and a boolean for each key, and "
            f"`{one_line(written.span.text)}` is none of them",
            "key.place <= query.place and query.place - key.place < 8",
        )

    def _comparison(self, written: syntax.Comparison) -> Comparison:
        sides: dict[str, dict[str, int]] = {"query": {}, "key": {}}
        constant = 0
        for side, sign in ((written.left, 1), (written.right, -1)):
            constant += self._gather(side, sign, sides)
        keys, queries = (
            tuple(Term(name, factor) for name, factor in sides[of].items() if factor)
            for of in ("key", "query")
        )
        if not keys and not queries:
            self._refuse(written, "this comparison says nothing of `key` or of `query`", "key.place == 0")
        # keys + queries + constant (sign) 0, with the queries and the constant on the other side.
        moved = tuple(Term(term.attribute, -term.factor) for term in queries)
        if keys and all(term.factor < 0 for term in keys):
            turned = tuple(Term(term.attribute, -term.factor) for term in keys)
            return Comparison(turned, _MIRRORED[written.operator], queries, constant)
        return Comparison(keys, written.operator, moved, -constant)

    def _gather(self, written: syntax.Expression, sign: int, sides: dict[str, dict[str, int]]) -> int:
        """Add up the attributes of one side; the sum of its numbers."""
        match written:
            case syntax.Parenthesis():
                return self._gather(written.value, sign, sides)
            case syntax.Negative():
                return self._gather(written.value, -sign, sides)
            case syntax.Sum():
                total = self._gather(written.first, sign, sides)
                for term in written.rest:
                    total += self._gather(term.value, sign if term.operator == "+" else -sign, sides)
                return total
            case syntax.Attribute():
                of, name = written.value.text, written.attribute.text
                if of not in sides:
                    near = did_you_mean(of, sides)
                    help = f"did you mean `{near}`?" if near else "`query` attends to `key`"
                    self._refuse(written.value, f"a rule knows `query` and `key`, not `{of}`", help)
                if name in not_yet.ATTRIBUTES:
                    message = f"the attribute `{name}` of tokens is not there yet"
                    self.error("E0901", written.attribute.span, message)
                    raise NoRule
                if name not in ATTRIBUTES:
                    near = did_you_mean(name, ATTRIBUTES)
                    help = f"did you mean `{near}`?" if near else f"tokens have {', '.join(ATTRIBUTES)}"
                    self._refuse(written.attribute, f"tokens have no attribute `{name}`", help)
                sides[of][name] = sides[of].get(name, 0) + sign
                return 0
        return sign * self._number(written)

    def _number(self, written: syntax.Expression) -> int:
        if isinstance(written, syntax.Product):
            operands = (written.first, *(term.value for term in written.rest))
            if any(isinstance(operand, syntax.Attribute) for operand in operands):
                self._refuse(written, "attributes are added and subtracted, not multiplied or divided")
        meaning = self.evaluate(written)
        if isinstance(meaning, Poison):
            raise NoRule
        if isinstance(meaning, Constant) and isinstance(meaning.value, Fraction):
            if meaning.value.denominator == 1:
                return int(meaning.value)
            message = f"attributes are whole numbers, and are not compared with {show_number(meaning.value)}"
            self._refuse(written, message)
        text = one_line(written.span.text)
        self._refuse(
            written,
            f"a rule compares attributes of `query` and `key` with whole numbers, and `{text}` is neither",
            f"tokens have {', '.join(ATTRIBUTES)}: `key.place <= query.place`",
        )

    def _refuse(self, written: syntax.Node, message: str, *help: str) -> NoReturn:
        self.error("E0416", written.span, message, *help)
        raise NoRule
