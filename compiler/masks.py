"""Masks by rule: `mask = key.place <= query.place and query.place - key.place < 8`.

A rule compares whole-number attributes of the token that attends, `query`, and of the token that it may attend to,
`key`. Where all lengths are known it is a constant, worked out here, without tensors; where they are not, it may speak
of places alone, and is worked out when the network runs. A boolean tensor among the comparisons, as in `mask = causal
and kept`, speaks of the key, sample by sample: it is joined to the rest when the network runs.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import or_
from typing import Literal

from crate_dsl.compiler.types import Segment, TensorType

Sign = Literal["==", "!=", "<", "<=", ">", ">="]

#: What a token has: its place on the token axis, the segment that it belongs to, and, where it was cut from a picture,
#: its number among the patches, its row and its column. All are counted from 0.
ATTRIBUTES = ("place", "segment", "patch", "row", "column")


class NoAttribute(Exception):
    """Why a token has no such attribute, in the user's words; the second argument is a remedy."""


@dataclass(frozen=True, slots=True)
class Term:
    """`factor` times the attribute of that name."""

    attribute: str
    factor: int = 1


@dataclass(frozen=True, slots=True)
class Comparison:
    """Σ terms of the key, compared with Σ terms of the query + `constant`."""

    keys: tuple[Term, ...]
    sign: Sign
    queries: tuple[Term, ...]
    constant: int = 0


#: The word `causal` within a rule: `key.place <= query.place`.
CAUSAL = Comparison((Term("place"),), "<=", (Term("place"),))

#: Of each alternative all comparisons hold; one without any holds for all pairs.
Alternatives = tuple[tuple[Comparison, ...], ...]


@dataclass(frozen=True, slots=True)
class Rule:
    """Which keys a query attends to: those for which one of the alternatives holds, or, where a boolean is true of the
    key, one of those that need it.

    `text` is the rule as it is written; `kept` is the type of the boolean, None where the rule reads none.
    """

    alternatives: Alternatives
    text: str
    where_kept: Alternatives = ()
    kept: TensorType | None = None

    @property
    def attributes(self) -> tuple[str, ...]:
        """The attributes that it reads, each once."""
        every = (*self.alternatives, *self.where_kept)
        terms = [t for all_of in every for one in all_of for t in (*one.keys, *one.queries)]
        return tuple(dict.fromkeys(term.attribute for term in terms))

    @property
    def causal_and_kept(self) -> bool:
        """Whether it is `causal and kept`: of the tokens so far, those that count."""
        return not self.alternatives and self.where_kept == ((CAUSAL,),)

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Allowed:
    """A rule worked out for tokens of known number: bit j of `rows[i]` says that query i attends to key j."""

    keys: int
    rows: tuple[int, ...]

    def blind(self) -> int | None:
        """The first query that attends to nothing; None where each attends to something."""
        return next((place for place, row in enumerate(self.rows) if not row), None)

    def packed(self) -> bytes:
        """Row by row, each padded to whole bytes, the lowest bit first."""
        return b"".join(row.to_bytes(self.width, "little") for row in self.rows)

    @property
    def width(self) -> int:
        """Bytes of a packed row."""
        return (self.keys + 7) // 8


@dataclass(frozen=True, slots=True)
class Columns:
    """What a rule reads, for each token: the attributes of the queries, and of the keys."""

    queries: tuple[tuple[str, tuple[int, ...]], ...]
    keys: tuple[tuple[str, tuple[int, ...]], ...]

    @staticmethod
    def of(rule: Rule, queries: TensorType, keys: TensorType) -> Columns:
        """Those of tokens of known number.

        Raises:
            NoAttribute: some token lacks what the rule reads.
        """
        both = (tuple((name, column(name, tokens)) for name in rule.attributes) for tokens in (queries, keys))
        return Columns(*both)


def column(attribute: str, tokens: TensorType) -> tuple[int, ...]:
    """The attribute of each token, where their number is known.

    >>> from crate_dsl.compiler.types import floats
    >>> column("place", floats(4, 8))
    (0, 1, 2, 3)

    Raises:
        NoAttribute: some token has none.
    """
    count = tokens.shape[0].static
    if attribute == "place" and count is not None:
        return tuple(range(count))
    if count is None:
        raise NoAttribute(
            f"of tokens whose number, {tokens.shape[0]}, is known only at run time a rule knows `place` alone",
            "key.place <= query.place",
        )
    if tokens.layout is None:
        raise NoAttribute(f"these tokens have no layout, and so no `{attribute}`", "`place` counts them all")
    found: list[int] = []
    for number, segment in enumerate(tokens.layout):
        found += _of_segment(attribute, number, segment)
    return tuple(found)


def _of_segment(attribute: str, number: int, segment: Segment) -> list[int]:
    length = segment.length.bound
    if attribute == "segment":
        return [number] * length
    grid = segment.grid
    if grid is None or segment.whole is not None:
        why = "were taken by index" if segment.whole is not None else "were cut from no picture"
        raise NoAttribute(
            f"the tokens `{segment.name}` {why}, and have no `{attribute}`",
            "`place` counts all tokens, `segment` the segments that they belong to",
        )
    if attribute == "patch":
        return list(range(length))
    each = [divmod(patch, grid.columns) for patch in range(length)]
    return [row if attribute == "row" else column for row, column in each]


def allowed(alternatives: Alternatives, columns: Columns, queries: int, keys: int) -> Allowed:
    """Alternatives worked out for so many queries and keys.

    >>> from crate_dsl.compiler.types import floats
    >>> causal = Rule(((CAUSAL,),), "causal")
    >>> columns = Columns.of(causal, floats(3, 8), floats(3, 8))
    >>> [f"{row:03b}" for row in allowed(causal.alternatives, columns, 3, 3).rows]
    ['001', '011', '111']
    """
    rows = [0] * queries
    for all_of in alternatives:
        mine = [(1 << keys) - 1] * queries
        for one in all_of:
            meeting = _Keys(one.sign, _sums(one.keys, dict(columns.keys), keys))
            known: dict[int, int] = {}
            for place, value in enumerate(_sums(one.queries, dict(columns.queries), queries)):
                wanted = value + one.constant
                if wanted not in known:
                    known[wanted] = meeting.at(wanted)
                mine[place] &= known[wanted]
        rows = [row | more for row, more in zip(rows, mine, strict=True)]
    return Allowed(keys, tuple(rows))


def _sums(terms: Sequence[Term], columns: Mapping[str, tuple[int, ...]], count: int) -> list[int]:
    return [sum(term.factor * columns[term.attribute][place] for term in terms) for place in range(count)]


class _Keys:
    """Keys by their values: which of them, as bits, stand to a value as the sign says."""

    def __init__(self, sign: Sign, values: Sequence[int]) -> None:
        bits: dict[int, int] = {}
        for place, value in enumerate(values):
            bits[value] = bits.get(value, 0) | 1 << place
        self.sign, self.bits = sign, bits
        self.sorted = sorted(bits)
        #: Of the first i values: all their keys.
        self.below = [0, *accumulate((bits[value] for value in self.sorted), or_)]

    def at(self, value: int) -> int:
        every = self.below[-1]
        match self.sign:
            case "==":
                return self.bits.get(value, 0)
            case "!=":
                return every & ~self.bits.get(value, 0)
            case "<":
                return self.below[bisect_left(self.sorted, value)]
            case "<=":
                return self.below[bisect_right(self.sorted, value)]
            case ">":
                return every & ~self.below[bisect_right(self.sorted, value)]
            case ">=":
                return every & ~self.below[bisect_left(self.sorted, value)]
