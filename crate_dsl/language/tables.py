"""The grammar, compiled: LALR(1) tables that `lark` makes from `crate.lark` and that travel as plain JSON.

Making them takes longer than all else that checking a file does, so they are made once and kept beside this module:

    python -m crate_dsl.language.tables grammars/crate.lark

A terminal that is written as itself is called by its text (`->`, `model`); the others are NAME, NUMBER and STRING.
"""

from __future__ import annotations

import json
import pkgutil
import re
import sys
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import lark

#: What follows the last token.
END = "$END"


@dataclass(frozen=True)
class Rule:
    """What a reduction replaces (`size` symbols) and by what. One whose name starts with `_` leaves no node behind."""

    name: str
    size: int

    @cached_property
    def inline(self) -> bool:
        return self.name.startswith("_")


@dataclass(frozen=True, eq=False)
class Tables:
    """`actions[state][terminal]` is the state to go to, or `~rule` where a rule is complete; `gotos[state][rule name]`
    is the state to go to once a rule has been reduced.
    """

    patterns: dict[str, str]
    keywords: tuple[str, ...]
    ignored: tuple[str, ...]
    rules: tuple[Rule, ...]
    start: int
    end: int
    actions: tuple[dict[str, int], ...]
    gotos: tuple[dict[str, int], ...]

    @classmethod
    def from_json(cls, text: str | bytes) -> Tables:
        data: dict[str, Any] = json.loads(text)
        data["rules"] = [Rule(name, size) for name, size in data["rules"]]
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        return cls(**fields)

    def to_json(self) -> str:
        """One line for each rule and state, so that a change of the grammar can be read in a diff."""
        fields: dict[str, Any] = asdict(self) | {"rules": [(rule.name, rule.size) for rule in self.rules]}
        lines = []
        for name, value in fields.items():
            if name in ("rules", "actions", "gotos"):
                items = ",\n".join(json.dumps(item) for item in value)
                lines.append(f'"{name}": [\n{items}\n]')
            else:
                lines.append(f'"{name}": {json.dumps(value)}')
        return "{\n" + ",\n".join(lines) + "\n}\n"

    def advance(self, stack: list[int], symbol: str) -> bool:
        """Feed one terminal to a stack of states. False where it does not fit; the stack may have been reduced then."""
        while True:
            action = self.actions[stack[-1]].get(symbol)
            if action is None:
                return False
            if action >= 0:
                stack.append(action)
                return True
            rule = self.rules[~action]
            del stack[len(stack) - rule.size :]
            stack.append(self.gotos[stack[-1]][rule.name])
            if symbol == END and stack[-1] == self.end:
                return True

    def accepts(self, stack: list[int], *symbols: str) -> bool:
        """Whether these terminals could come next."""
        trial = list(stack)
        return all(self.advance(trial, symbol) for symbol in symbols)

    def expected(self, stack: list[int]) -> set[str]:
        """The terminals that could come next."""
        return {symbol for symbol in self.actions[stack[-1]] if self.accepts(stack, symbol)}


@lru_cache(maxsize=1)
def load() -> Tables:
    """The tables of the language."""
    data = pkgutil.get_data(__package__ or "crate_dsl.language", "tables.json")
    assert data is not None, "tables.json is part of the package"
    return Tables.from_json(data)


def compile_grammar(text: str) -> Tables:
    """The tables of a grammar. Strict: an ambiguity, between rules or between terminals, is an error."""
    import lark

    parser = lark.Lark(
        text,
        parser="lalr",
        lexer="basic",
        start="file",
        keep_all_tokens=True,
        maybe_placeholders=False,
        strict=True,
    )
    patterns, keywords = _terminals(parser)
    spelling = {t.name: t.pattern.value if t.pattern.type == "str" else t.name for t in parser.terminals} | {
        END: END
    }
    table: Any = parser.parser.parser._parse_table
    states = _numbered(table)
    rules: dict[Rule, int] = {}
    actions: list[dict[str, int]] = []
    gotos: list[dict[str, int]] = []
    for state in states:
        actions.append({})
        gotos.append({})
        for symbol, (action, argument) in sorted(table.states[state].items()):
            if str(action) == "Reduce":
                rule = Rule(argument.origin.name, len(argument.expansion))
                actions[-1][spelling[symbol]] = ~rules.setdefault(rule, len(rules))
            elif symbol in spelling:
                actions[-1][spelling[symbol]] = states[argument]
            else:
                gotos[-1][symbol] = states[argument]
    return Tables(
        patterns=patterns,
        keywords=keywords,
        ignored=tuple(sorted(parser.ignore_tokens)),
        rules=tuple(rules),
        start=states[table.start_states["file"]],
        end=states[table.end_states["file"]],
        actions=tuple(actions),
        gotos=tuple(gotos),
    )


def _terminals(parser: lark.Lark) -> tuple[dict[str, str], tuple[str, ...]]:
    """The terminals' patterns in the order in which they are tried (`.5` before `.`), and the keywords among them."""
    name = next(t.pattern for t in parser.terminals if t.name == "NAME").to_regexp()
    written = [t.pattern for t in parser.terminals if t.pattern.type == "str"]
    keywords = sorted(pattern.value for pattern in written if re.fullmatch(name, pattern.value))
    marks = sorted((p for p in written if p.value not in keywords), key=lambda p: (-len(p.value), p.value))
    patterns = {t.name: t.pattern.to_regexp() for t in parser.terminals if t.pattern.type == "re"}
    return patterns | {pattern.value: pattern.to_regexp() for pattern in marks}, tuple(keywords)


def _numbered(table: Any) -> dict[int, int]:
    """Our numbers for lark's states, in the order of a walk: lark's own differ from run to run."""
    start: int = table.start_states["file"]
    numbers = {start: 0}
    queue = [start]
    for state in queue:
        for _, (action, argument) in sorted(table.states[state].items()):
            if str(action) == "Shift" and argument not in numbers:
                numbers[argument] = len(numbers)
                queue.append(argument)
    return numbers


if __name__ == "__main__":
    grammar = Path(sys.argv[1]).read_text(encoding="utf-8")
    Path(__file__).with_name("tables.json").write_text(compile_grammar(grammar).to_json(), encoding="utf-8")
