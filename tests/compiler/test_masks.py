"""Masks by rule: worked out as the rule says, refused in the user's words, the same in torch and onnxruntime."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crate_dsl.compiler.masks import Allowed, Comparison, NoAttribute, Rule, Term, allowed, column
from crate_dsl.compiler.types import Dim, Grid, Layout, Segment, Symbol, TensorType, floats

#: A class token before three rows of two patches.
PICTURE = Layout(
    (Segment("class_token", Dim.of(1)), Segment("patches", Dim.of(6), Grid(3, 2, patch=4, channels=1)))
)
SIGNS = {
    "==": int.__eq__,
    "!=": int.__ne__,
    "<": int.__lt__,
    "<=": int.__le__,
    ">": int.__gt__,
    ">=": int.__ge__,
}


def tokens(layout: Layout = PICTURE) -> TensorType:
    return floats(layout.length, 8, layout=layout)


terms = st.lists(
    st.builds(Term, st.sampled_from(["place", "segment"]), st.integers(-2, 2).filter(bool)), max_size=2
).map(tuple)
comparisons = st.builds(Comparison, terms, st.sampled_from(list(SIGNS)), terms, st.integers(-4, 4))
rules = st.lists(st.lists(comparisons, min_size=1, max_size=2).map(tuple), min_size=1, max_size=3)


@given(rules)
def test_a_rule_is_worked_out_pair_by_pair(alternatives: list[tuple[Comparison, ...]]) -> None:
    found = allowed(Rule(tuple(alternatives), ""), tokens(), tokens())
    columns = {name: column(name, tokens()) for name in ("place", "segment")}

    def holds(one: Comparison, query: int, key: int) -> bool:
        left = sum(term.factor * columns[term.attribute][key] for term in one.keys)
        right = sum(term.factor * columns[term.attribute][query] for term in one.queries) + one.constant
        return bool(SIGNS[one.sign](left, right))

    for query, key in product(range(7), repeat=2):
        wanted = any(all(holds(one, query, key) for one in all_of) for all_of in alternatives)
        assert bool(found.rows[query] >> key & 1) == wanted


def test_attributes_are_those_of_the_layout() -> None:
    patches = tokens(Layout(PICTURE.segments[1:]))
    assert column("patch", patches) == (0, 1, 2, 3, 4, 5)
    assert column("row", patches) == (0, 0, 1, 1, 2, 2)
    assert column("column", patches) == (0, 1, 0, 1, 0, 1)
    assert column("segment", tokens()) == (0, 1, 1, 1, 1, 1, 1)
    assert column("place", tokens()) == tuple(range(7))


@pytest.mark.parametrize(
    ("attribute", "of"),
    [
        ("patch", tokens()),  # the class token was cut from no picture
        ("segment", floats(3, 8)),
        ("segment", floats(Dim.symbolic(Symbol("n", 5)), 8)),
    ],
)
def test_an_attribute_that_a_token_lacks_is_refused(attribute: str, of: TensorType) -> None:
    with pytest.raises(NoAttribute):
        column(attribute, of)


def test_rows_are_packed_lowest_bit_first() -> None:
    found = Allowed(9, (0b1_0000_0001, 0b10))
    assert found.packed() == bytes([1, 1, 2, 0])
    assert found.blind() is None
    assert Allowed(2, (1, 0)).blind() == 1
