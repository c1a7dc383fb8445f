"""Masks by rule: worked out as the rule says, refused in the user's words, the same in torch and onnxruntime."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import crate_dsl
from crate_dsl.compiler.masks import Allowed, Columns, Comparison, NoAttribute, Rule, Term, allowed, column
from crate_dsl.compiler.steps.attend.module import _known_pairs
from crate_dsl.compiler.types import Dim, Grid, Layout, Segment, Symbol, TensorType, floats
from crate_dsl.language.diagnostics import SpecError
from tests.compiler.specs import elaborated

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
    rule = Rule(tuple(alternatives), "")
    found = allowed(rule.alternatives, Columns.of(rule, tokens(), tokens()), 7, 7)
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


# ------------------------------------------------------------------ in a spec

#: Rules over eight tokens, and the pairs (query, key) that they allow.
RULES = {
    "key.place <= query.place": lambda q, k: k <= q,
    "key.place <= query.place and query.place - key.place < w": lambda q, k: 0 <= q - k < 3,
    "key.place == 0 or key.place >= query.place and key.place != 7": lambda q, k: (
        k == 0 or (k >= q and k != 7)
    ),
    "(key.place == 0 or key.place >= query.place) and 2 > key.place": lambda q, k: (
        k < 2 and (k == 0 or k >= q)
    ),
}
STEPS = ("compress(2, rank = 3, mask = {})", "attend(2, mask = {})")
#: Rounding of float32 over a dozen terms of size 1.
SINGLE = 1e-5


def spec(step: str, rule: str, length: str = "8") -> str:
    count = length.split(" ")[0]
    return (
        f"model m(w = 3) {{ input z : float[{length}, 6]\n input kept : bool[{count}]\n input other : bool[{count}]\n"
        f"y = z -> {step.format(rule)}\n output y }}"
    )


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("length", ["8", "n <= 8"])
@pytest.mark.parametrize("rule", RULES)
def test_attention_is_zero_where_the_rule_says_so(step: str, length: str, rule: str) -> None:
    net = crate_dsl.build(elaborated(spec(step, rule, length)))
    (name,) = [node.name for node in net.graph.nodes if "attention" in node.operator.taps]
    z_bnd = torch.randn(2, 8, 6, generator=torch.Generator().manual_seed(0))
    seen = crate_dsl.trace(net, f"{name}.attention", z=z_bnd)[f"{name}.attention"]
    for query, key in product(range(8), repeat=2):
        assert bool((seen[:, :, query, key] > 0).all()) == RULES[rule](query, key)
    out = crate_dsl.trace(net, name, z=z_bnd)[name]
    assert torch.allclose(net(z_bnd), out, atol=SINGLE)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("length", ["8", "n <= 8"])
@pytest.mark.parametrize("lower", ["none", "all"])
def test_a_rule_is_exported_and_proved(step: str, length: str, lower: str, tmp_path: Path) -> None:
    rule = list(RULES)[1]
    net = crate_dsl.build(elaborated(spec(step, rule, length)))
    proof = crate_dsl.export(net.graph, net, tmp_path / "m.onnx", lower=lower)
    assert proof.passed


def test_a_causal_rule_is_the_causal_mask() -> None:
    for step in STEPS:
        ruled, causal = (
            crate_dsl.build(elaborated(spec(step, rule))) for rule in ("key.place <= query.place", "causal")
        )
        z_bnd = torch.randn(2, 8, 6)
        assert torch.allclose(ruled(z_bnd), causal(z_bnd), atol=SINGLE)


@pytest.mark.parametrize(
    ("rule", "code"),
    [
        ("key.place < query.place", "E0418"),
        ("key.patch <= query.patch", "E0417"),
        ("kay.place <= query.place", "E0416"),
        ("key.plaice <= query.place", "E0416"),
        ("key.place <= query.place / 2", "E0416"),
        ("key.place", "E0416"),
        ("key.place <= 1.5", "E0416"),
        ("1 <= 2", "E0416"),
        ("key.place <= z", "E0416"),
        ("key.place <= nothing", "E0201"),
        ("causal and none", "E0201"),
        ("causal and w", "E0416"),
        ("causal and 2", "E0416"),
        ("causal and z", "E0406"),
        ("causal and kept and other", "E0416"),
        ("kept and key.place < query.place", "E0418"),
    ],
)
def test_a_rule_that_means_nothing_is_refused(rule: str, code: str) -> None:
    for step in STEPS:
        with pytest.raises(SpecError) as caught:
            elaborated(spec(step, rule))
        assert [found.code for found in caught.value.diagnostics] == [code]


# ------------------------------------------------------------------ with a boolean of the keys

#: Rules that read `kept`, and the pairs (query, key, whether the key counts) that they allow.
RULES_OF_KEPT = {
    "causal and kept": lambda q, k, kept: kept and k <= q,
    "kept and (query.place - key.place < w and causal)": lambda q, k, kept: kept and 0 <= q - k < 3,
    "causal and kept or key.place == query.place": lambda q, k, kept: (kept and k <= q) or k == q,
    "kept or causal": lambda q, k, kept: kept or k <= q,
    "kept or key.place == query.place and kept": lambda q, k, kept: kept,
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("length", ["8", "n <= 8"])
@pytest.mark.parametrize("rule", RULES_OF_KEPT)
def test_a_rule_with_a_boolean_is_worked_out_for_each_sample(step: str, length: str, rule: str) -> None:
    """Also for a sample whose first tokens do not count: where a rule leaves no key, attention is zero."""
    net = crate_dsl.build(elaborated(spec(step, rule, length)))
    (name,) = [node.name for node in net.graph.nodes if "attention" in node.operator.taps]
    z_bnd = torch.randn(3, 8, 6, generator=torch.Generator().manual_seed(0))
    kept_bn = torch.arange(8) < torch.tensor([[8], [5], [3]])
    kept_bn[2] = kept_bn[2].flip(0)
    seen = crate_dsl.trace(net, f"{name}.*", z=z_bnd, kept=kept_bn)
    for sample, query, key in product(range(3), range(8), range(8)):
        wanted = RULES_OF_KEPT[rule](query, key, bool(kept_bn[sample, key]))
        assert bool((seen[f"{name}.attention"][sample, :, query, key] > 0).all()) == wanted
    out = crate_dsl.trace(net, name, z=z_bnd, kept=kept_bn)[name]
    assert torch.allclose(net(z_bnd, kept_bn), out, atol=SINGLE)


RAGGED = """
model reader(context = 9, dim = 12) {
    input ids  : index(17)[n <= context]
    input kept : bool[n]

    stage encoder = {
        input tokens
        input kept : bool[m <= context]
        output tokens -> repeat(2) {
            compress(3, rank = 4, mask = causal and kept)
            compress(2, rank = 4, gradient = statistics, mask = kept and causal, length = context)
            residual { norm -> attend(2, mask = kept and causal and query.place - key.place < 3) }
            sparsify
        }
    }

    y = ids -> embed(dim) -> position(learned, length = context) -> encoder(kept = kept)

    output y
}
"""


@pytest.mark.parametrize("lower", ["none", "all"])
def test_texts_of_several_lengths_are_read_together_as_alone(lower: str, tmp_path: Path) -> None:
    net = crate_dsl.build(elaborated(RAGGED), seed=0)
    lengths = (9, 5, 1)
    ids_bn = torch.randint(0, 17, (3, 9), generator=torch.Generator().manual_seed(0))
    kept_bn = torch.arange(9) < torch.tensor(lengths)[:, None]
    with torch.no_grad():
        together = net(ids_bn, kept_bn)
        for sample, length in enumerate(lengths):
            alone = net(ids_bn[sample : sample + 1, :length], kept_bn[sample : sample + 1, :length])
            assert torch.allclose(together[sample, :length], alone[0], atol=SINGLE)
    assert crate_dsl.export(net.graph, net, tmp_path / "m.onnx", lower=lower).passed
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    (exported,) = session.run(None, {"ids": ids_bn.numpy(), "kept": kept_bn.numpy()})
    assert np.abs(exported - together.numpy()).max() < SINGLE * np.abs(exported).max()


def test_a_rule_is_worked_out_once_for_all_layers() -> None:
    steps = "repeat(3) { compress(2, rank = 3, mask = key.place + 5 >= query.place) }"
    net = crate_dsl.build(
        elaborated(f"model m {{ input z : float[n <= 8, 6]\n y = z -> {steps}\n output y }}")
    )
    before = _known_pairs.cache_info()
    with torch.inference_mode():
        net(torch.randn(2, 7, 6))
    for _ in range(2):
        net(torch.randn(2, 7, 6)).sum().backward()  # of what was worked out without gradients
    after = _known_pairs.cache_info()
    assert (after.misses - before.misses, after.hits - before.hits) == (1, 8)
