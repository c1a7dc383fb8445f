"""Laws of elaboration: what a spec means, held against other specs that mean the same."""

from __future__ import annotations

import time
from fractions import Fraction

import pytest

from crate_dsl.language.diagnostics import SpecError
from tests.compiler.specs import codes, elaborated, graph_of, operators, weights

LAYER = "compress(2, rank = 4) sparsify(step = 0.1)"


# ------------------------------------------------------------------ names and weights


def test_renaming_a_stage_changes_nothing_but_names() -> None:
    text = f"stage encoder = repeat(2) {{ {LAYER} }}\n y = z -> norm -> encoder -> encoder"
    one, two = graph_of(text), graph_of(text.replace("encoder", "tower"))
    assert operators(one) == operators(two)
    assert [name.replace("encoder", "tower") for name in one.slots] == list(two.slots)
    assert [node.name.replace("encoder", "tower") for node in one.nodes] == [node.name for node in two.nodes]


def test_repeat_is_writing_the_steps_again() -> None:
    one = graph_of(f"y = z -> repeat(3) {{ {LAYER} }}")
    two = graph_of(f"y = z -> {' -> '.join([LAYER.replace(') s', ') -> s')] * 3)}")
    assert operators(one) == operators(two)
    assert weights(one) == weights(two)


def test_a_block_is_writing_its_body() -> None:
    block = (
        "block layer_of(dim, ratio = 2) { residual { norm -> linear(ratio * dim) -> gelu -> linear(dim) } }"
    )
    one = graph_of("y = z -> layer_of(8) -> layer_of(8, ratio = 3)", more=block)
    body = "residual {{ norm -> linear({}) -> gelu -> linear(8) }}"
    two = graph_of(f"y = z -> {body.format(16)} -> {body.format(24)}")
    assert operators(one) == operators(two)
    assert list(one.slots) == list(two.slots)


def test_a_block_with_a_graph_has_fresh_weights_at_every_use() -> None:
    body = (
        "input a  learn gate : float[w] = zeros  stage f = linear(w)  q = a -> norm -> f  output a + gate * q"
    )
    block = f"block gated(w) {{ {body} }}"
    graph = graph_of("y = z -> gated(8) -> gated(8)", more=block)
    assert graph.parameters == 2 * (8 + (8 * 8 + 8) + 2 * 8)
    assert [name for name in graph.slots if "gate" in name] == ["y.gate", "y.gate_2"]


def test_a_stage_shares_and_a_copy_does_not() -> None:
    graph = graph_of("stage s = linear(8)\n stage t = copy(s)\n y = z -> s -> s -> t -> copy(s)")
    assert graph.parameters == 3 * (8 * 8 + 8)
    assert [node.name for node in graph.nodes] == ["s.linear", "s.linear@2", "t.linear", "y.s.linear"]


def test_an_unnamed_step_is_fresh_each_time() -> None:
    graph = graph_of("a = z -> norm\n b = z -> norm\n y = a + b")
    assert [node.name for node in graph.nodes] == ["a.norm", "b.norm", "y.add"]
    assert graph.parameters == 2 * 2 * 8


def test_frozen_uses_are_not_trained_unless_another_use_is() -> None:
    frozen = graph_of("stage s = linear(8)\n y = z -> frozen(s)")
    assert (frozen.parameters, frozen.frozen_parameters) == (0, 72)
    both = graph_of("stage s = linear(8)\n y = z -> frozen(s) -> s")
    assert (both.parameters, both.frozen_parameters) == (72, 0)
    assert [next(iter(node.weights.values())).view for node in both.nodes] == ["detached", "same"]


def test_frozen_and_copied_stages_take_further_inputs() -> None:
    stage = "learn g : float[8]\n stage s = { input a  input k : float[16, 8]  output a + g * k }\n"
    graph = graph_of(stage + "y = z -> frozen(s, k = z) -> copy(s, k = z)")
    assert len(graph.nodes) == 4


def test_a_transpose_borrows_the_weights() -> None:
    graph = elaborated(
        "model m { input ids : index(50)[n <= 12]  stage e = embed(8)\n"
        "logits = ids -> e -> norm -> transpose(e)  output logits }"
    )
    assert graph.parameters == 50 * 8 + 2 * 8
    assert str(graph.type_of(graph.outputs["logits"])) == "float[n, 50]"


def test_stages_inside_stages() -> None:
    text = "stage inner = linear(8)\n stage outer = inner -> norm -> inner\n y = z -> outer -> outer -> inner"
    graph = graph_of(text)
    assert graph.parameters == 72 + 16
    names = ["inner.linear", "outer.norm", "inner.linear@2", "inner.linear@3", "outer.norm@2"]
    assert [node.name for node in graph.nodes] == [*names, "inner.linear@4", "inner.linear@5"]


def test_a_body_owns_its_stages_and_learns() -> None:
    text = (
        "stage s = { input a  stage f = linear(8)  b = a -> f -> f  output b -> copy(f) }\n y = z -> s -> s"
    )
    graph = graph_of(text)
    assert set(graph.slots) == {f"s.{name}.linear.{w}" for name in ("f", "f_2") for w in ("weight", "bias")}


# ------------------------------------------------------------------ paths


def test_paths_say_owner_layer_step_and_number() -> None:
    graph = graph_of("stage e = repeat(2) { norm norm } -> repeat(2) { linear(8) }\n y = z -> e -> norm")
    assert [node.name for node in graph.nodes] == [
        "e.0.norm", "e.0.norm_2", "e.1.norm", "e.1.norm_2", "e.repeat_2.0.linear", "e.repeat_2.1.linear", "y.norm",
    ]  # fmt: skip


def test_no_two_steps_have_one_path() -> None:
    block = "block b() { input a  q = a -> norm  output q }"
    graph = graph_of(
        "stage s = { input a  q_2 = a -> b() -> b()  q = q_2 -> norm  output q }\n y = z -> s", more=block
    )
    paths = [node.path for node in graph.nodes]
    assert len(set(paths)) == len(paths) == 3


def test_nested_repeats() -> None:
    graph = graph_of("y = z -> repeat(2) { norm repeat(2) { linear(8) } }")
    assert [node.name for node in graph.nodes] == [
        f"y.{outer}.{inner}" for outer in (0, 1) for inner in ("norm", "0.linear", "1.linear")
    ]


# ------------------------------------------------------------------ numbers


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("0.1 * 10", 1),
        ("384 / 7 * 7", 384),
        ("2 + 3 * 4 - 1", 13),
        ("-(-3)", 3),
        ("1e3 / 1e-3", 10**6),
        (".5 * 4", 2),
    ],
)
def test_numbers_are_exact(expression: str, value: int) -> None:
    graph = elaborated(
        f"model m(width = {expression}) {{ input z : float[4]  y = z -> linear(width)  output y }}"
    )
    assert graph.settings["width"] == value


def test_default_then_variant_then_override() -> None:
    text = """model m(a = 2, b = 3 * a, c = [a, b]) { variant wide { a = 4 }  variant odd { b = a + 1 }
        input z : float[4]  y = z -> linear(c[0]) -> linear(c[1])  output y }"""
    assert elaborated(text).settings == {"a": 2, "b": 6, "c": (2, 6)}
    assert elaborated(text, "test.crate@wide").settings == {"a": 4, "b": 12, "c": (4, 12)}
    assert elaborated(text, "test.crate@odd").settings == {"a": 2, "b": 3, "c": (2, 3)}
    assert elaborated(text, "test.crate@wide", a=5).settings == {"a": 5, "b": 15, "c": (5, 15)}
    assert elaborated(text, a=0.5 + 0.5, c=[3, 4]).settings == {"a": 1, "b": 3, "c": (3, 4)}


def test_python_numbers_are_what_they_print_as() -> None:
    graph = elaborated("model m(s = 1) { input z : float[4]  y = s * z  output y }", s=0.1)
    assert graph.settings["s"] == Fraction(1, 10)


def test_lists_are_read_by_layer() -> None:
    graph = graph_of("y = z -> repeat(3) { linear(widths[layer]) }", "widths = [4, 2, 6]")
    assert [operator.dim for operator in operators(graph)] == [4, 2, 6]


def test_a_graph_in_a_repeat_sees_its_layer_and_a_block_is_handed_it() -> None:
    graph = graph_of(
        "y = z -> repeat(2) { input a  learn g : float[8]  output a -> wide(layer) -> scale(layer + 1) }",
        more="block wide(index) { linear(8 * (index + 1)) -> linear(8) }",
    )
    assert [getattr(operator, "dim", getattr(operator, "factor", None)) for operator in operators(graph)] == [
        8, 8, 1.0, 16, 8, 2.0,
    ]  # fmt: skip


def test_words_and_booleans_are_parameters() -> None:
    graph = graph_of("y = z -> compress(2, 4, out = way, bias = flag)", "way = free, flag = false")
    assert (operators(graph)[0].out, operators(graph)[0].bias) == ("free", False)


# ------------------------------------------------------------------ bodies and lengths


def test_a_graph_body_has_several_inputs_and_symbolic_lengths() -> None:
    graph = elaborated("""model m(context = 12) {
        input ids : index(50)[n <= context]  input kept : bool[n]  stage e = embed(8)
        stage reader = { input text : index(50)[m <= context]  input kept : bool[m]
            output text -> e -> compress(2, 4, mask = kept) -> norm }
        y = ids -> reader(kept = kept)  output y }""")
    assert str(graph.type_of(graph.outputs["y"])) == "float[n, 8]"
    assert graph.scopes["reader"].names == ["text", "kept"]


def test_a_bodys_input_is_no_shadowing() -> None:
    graph = graph_of("stage s = { input z  output z -> norm }\n y = z -> s")
    assert [node.name for node in graph.nodes] == ["s.norm"]


def test_a_body_must_be_handed_what_fits() -> None:
    stage = "stage s = {{ input a : float[k <= {}, 8]  output a -> norm }}\n y = z -> s"
    assert graph_of(stage.format(16)).parameters == 16
    with pytest.raises(SpecError, match="takes at most 15 k, but is given float\\[16, 8\\]"):
        graph_of(stage.format(15))


def test_the_exported_part_is_what_outputs_reach() -> None:
    graph = elaborated("""model m { input z : float[4]  input t : float[3]
        y = z -> linear(3)  extra = t -> linear(3)  output y  objective mse(y, extra) }""")
    assert list(graph.export_inputs) == ["z"]
    assert "extra.linear" not in graph.exported
    assert graph.objective is not None


# ------------------------------------------------------------------ recipes


RECIPES = """model m { variant small { } variant large { }
    input z : float[4]  target t : float[4]  y = z -> linear(4)  output y  objective mse(y, t)
    train { epochs = 3 }  train small { epochs = 7  batch = 2 } }"""


def test_a_variant_may_have_a_recipe_of_its_own() -> None:
    text = RECIPES
    assert elaborated(text).train == {"epochs": 3}
    assert elaborated(text, "test.crate@small").train == {"epochs": 7, "batch": 2}
    assert elaborated(text, "test.crate@large").train == {"epochs": 3}


def test_every_recipe_is_checked() -> None:
    assert codes(RECIPES.replace("epochs = 7", "epoch = 7")) == ["E0301"]


def test_one_recipe_each_for_variants_that_are_there() -> None:
    assert codes(RECIPES.replace("} }", "}  train small { epochs = 1 } }")) == ["E0515"]
    assert codes(RECIPES.replace("train small", "train smal")) == ["E0209"]


# ------------------------------------------------------------------ size


@pytest.mark.slow
def test_ten_thousand_layers_take_seconds() -> None:
    def seconds(depth: int) -> float:
        start = time.perf_counter()
        graph = graph_of(f"y = z -> repeat({depth}) {{ {LAYER} }}")
        assert len(graph.nodes) == 2 * depth
        return time.perf_counter() - start

    seconds(100)
    few, many = seconds(2_000), seconds(10_000)
    assert many < 20
    assert many < 5 * few * 3  # linear, generously: a quadratic one would take 25 times as long
