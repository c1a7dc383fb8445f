"""Every slip gives one error, several slips each one, and nothing a spec says makes the checker fail or stall."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crate_dsl.language.diagnostics import SpecError, render_all
from crate_dsl.workspace import check_text
from tests.compiler.specs import codes, elaborated, found, model

#: Far more than any check takes here, and far less than one that has run away.
BOUNDED = 30.0

BLOCK = "block a(w) { norm -> linear(w) }"
CELL = "stage s = { input b  input k : float[8]  output b + k }\n"

#: What a slip gives: the code of its one diagnostic, and the statements around `z` and `y`.
SLIPS = {
    "a piped learn": ("E0901", "learn q : float[3, 8]\n y = q -> norm"),
    "arithmetic on learns alone": ("E0901", "learn q : float[8]\n learn r : float[8]\n y = z + q * r"),
    "a learn's items": ("E0414", "learn q : float[3, 8]\n y = z + q[5]"),
    "a misspelt initial value": ("E0307", "learn q : float[8] = nrmal(1)\n y = z + q"),
    "a tensor as initial value": ("E0307", "learn q : float[8] = z\n y = z + q"),
    "an initial value out of range": ("E0306", "learn q : float[8] = normal(0)\n y = z + q"),
    "a block's slip in a repeat": ("E0202", "y = z -> repeat(3) { bad(8) }"),
    "a block without its argument": ("E0302", "y = z -> a()"),
    "a block with too many": ("E0303", "y = z -> a(8, 9)"),
    "a block given a tensor": ("E0333", "y = z -> a(z)"),
    "a block as a value": ("E0332", "y = z + a"),
    "a called block as a value": ("E0501", "y = a(8)"),
    "a stage with arguments": ("E0303", "stage s = norm\n y = z -> s(3)"),
    "a stage's input by position": ("E0303", CELL + "y = z -> s(z)"),
    "a stage's input misspelt": ("E0301", CELL + "y = z -> s(kk = z)"),
    "a number for a stage's input": ("E0508", CELL + "y = z -> s(k = 3)"),
    "a stage's input forgotten": ("E0508", CELL + "y = z -> s"),
    "a stage within itself": ("E0207", "stage s = norm -> s\n y = z -> s"),
    "a stage as a value": ("E0405", "stage s = norm\n y = s"),
    "a stage as an argument": ("E0307", "stage s = norm\n y = z -> linear(s)"),
    "a stage that starts with a value": ("E0502", "stage s = z -> norm\n y = z -> s -> s"),
    "a binding that starts with a step": ("E0501", "x = norm -> linear(4)\n y = z -> x -> x"),
    "a broken stage used twice": ("E0202", "stage s = norm -> lnear(8)\n y = z -> s -> s"),
    "a broken stage not used": ("E0202", "stage s = norm -> lnear(8)\n y = z -> norm"),
    "a wrong type in a stage used twice": (
        "E0312",
        "stage s = linear(4) -> attend(3)\n a1 = z -> s\n a2 = z -> s\n y = a1 + a2",
    ),
    "layer outside a repeat": ("E0205", "y = z -> linear(layer)"),
    "layer as a name": ("E0204", "layer = z -> norm\n y = layer -> norm"),
    "layer in a stage": ("E0205", "stage s = linear(layer)\n y = z -> repeat(2) { s }"),
    "repeat zero times": ("E0306", "y = z -> repeat(0) { norm }"),
    "repeat by a fraction": ("E0304", "y = z -> repeat(8 / 3) { norm }"),
    "repeat by a word": ("E0201", "y = z -> repeat(often) { norm }"),
    "repeat by a tensor": ("E0307", "y = z -> repeat(z) { norm }"),
    "repeat with two counts": ("E0302", "y = z -> repeat(2, 3) { norm }"),
    "repeat without a count": ("E0302", "y = z -> repeat { norm }"),
    "repeat with a misspelt count": ("E0301", "y = z -> repeat(depht = 2) { norm }"),
    "a repeat's second input": ("E0508", "y = z -> repeat(2) { input b  input w  output b + w }"),
    "residual with an argument": ("E0303", "y = z -> residual(2) { norm }"),
    "residual without a body": ("E0511", "y = z -> residual"),
    "copy of nothing": ("E0507", "y = z -> copy"),
    "copy of a value": ("E0507", "y = z -> copy(z)"),
    "frozen step": ("E0507", "y = z -> frozen(norm)"),
    "transpose of two": ("E0303", "stage s = linear(8)\n y = z -> s -> transpose(s, 3)"),
    "an input twice": ("E0203", "input z : float[3]\n y = z -> norm"),
    "a name that a stage has": ("E0203", "stage s = norm\n s = z -> norm\n y = s -> norm"),
    "a name that a step has": ("E0204", "norm = z -> linear(4)\n y = norm -> linear(4)"),
    "a name that torch has": ("E0206", "half = z -> linear(4)\n y = half -> linear(4)"),
    "a name that Python has": ("E0206", "lambda_ = z -> norm\n class = z -> norm\n y = lambda_ + class"),
    "a name with an underscore": ("E0206", "_h = z -> linear(4)\n y = _h -> linear(4)"),
    "a positional after a named": ("E0335", "y = z -> compress(subspaces = 2, 4)"),
    "an argument twice": ("E0308", "y = z -> compress(2, 4, rank = 4)"),
    "a huge width": ("E0306", "y = z -> linear(1e100)"),
    "a negative width": ("E0306", "y = z -> linear(-1)"),
    "a width in quotes": ("E0307", "y = z -> linear('abc')"),
    "a list as width": ("E0307", "y = z -> linear([1, 2])"),
    "a comparison as width": ("E0309", "y = z -> linear(3 < 4)"),
    "an attribute as width": ("E0309", "y = z -> linear(key.patch)"),
    "a learned width": ("E0307", "y = z -> linear(learn(1))"),
    "a number as boolean": ("E0307", "y = z -> linear(4, bias = 1)"),
    "a word as boolean": ("E0307", "y = z -> linear(4, bias = yes)"),
    "a number beyond floats": ("E0306", "y = z * 1e400"),
    "a misspelt word": ("E0307", "y = z -> compress(2, 4, mask = casual)"),
    "a misspelt form": ("E0307", "y = z -> compress(2, 4, norm = layr(eps = 1))"),
    "a form's misspelt argument": ("E0301", "y = z -> compress(2, 4, norm = layer(epsilon = 1))"),
    "a list of the wrong length": ("E0306", "y = z -> position(learned, grid = [2])"),
    "a value hidden from a body": ("E0205", "x = z -> norm\n y = z -> repeat(2) { input b  output b + x }"),
    "a step to come": ("E0901", "y = z -> scan(spiral)"),
    "a rule over what no token has": ("E0416", "y = z -> compress(2, 4, mask = key.a <= query.a)"),
    "dividing by zero": ("E0331", "y = z -> linear(8 / (4 - 4))"),
    "a loss in the network": ("E0604", "x = mse(z, z)\n y = z + x"),
    "a step as operand": ("E0211", "y = z + norm"),
    "names for results that are not": ("E0503", "y, x = z -> norm\n w = x -> norm"),
    "an unused value": ("W0801", "x = z -> norm\n y = z -> norm"),
    "a doubled residual": ("W0802", "y = z -> residual { compress(2, 4) }"),
}


@pytest.mark.parametrize("slip", SLIPS)
def test_a_slip_gives_one_diagnostic(slip: str) -> None:
    code, body = SLIPS[slip]
    blocks = BLOCK + "\nblock bad(w) { nrm -> linear(w) }" if "bad(" in body else BLOCK
    diagnostics = found(model(body, "", blocks))
    assert [diagnostic.code for diagnostic in diagnostics] == [code], render_all(diagnostics)


WHOLE = {
    "a later parameter": (
        ["E0207"],
        "model m(a = b, b = 2) { input z : float[4, a]  y = z -> linear(b)  output y }",
    ),
    "two recipes": (
        ["E0515"],
        model("y = z -> norm").replace("}", "train { epochs = 1 } train { epochs = 2 } }"),
    ),
    "an empty text": (["E0215"], ""),
    "blocks alone": ([], BLOCK),
    "a broken block that nobody uses": (["E0202", "E0301"], "block a(x) { lnear(x) -> norm(epz = 3) }"),
    "an unused parameter of a block": (
        ["W0801"],
        "block b(u, v) { linear(u) }" + model("y = z -> b(4, 8)", ""),
    ),
    "an unused parameter that a variant sets": (
        ["W0801"],
        "model m(a = 1) { variant v { a = 2 }  input z : float[4]  y = z -> norm  output y }",
    ),
    "a variant's own mistake": (
        ["E0304"],
        "model m(a = 2) { variant v { a = 3 }  input z : float[4]  y = z -> linear(4 / a)  output y }",
    ),
    "a parameter that variants complete": (
        [],
        "model m(a) { variant v { a = 3 }  input z : float[4]  y = z -> linear(a)  output y }",
    ),
    "two models, one broken": (
        ["E0202"],
        model("y = z -> norm", "") + "model k { input z : float[4] y = z -> nrm output y }",
    ),
    "two models of one name": (["E0203"], model("y = z -> norm", "") * 2),
    "an objective that is a number": (
        ["E0603"],
        model("y = z -> norm", "").replace("output y", "output y objective 3"),
    ),
    "a broken input of a body": (
        ["E0101"],
        model(
            "stage s = { input b  , kept : bool[m]  output b -> compress(2, 4, mask = kept) }\n"
            " y = z -> s(kept = z)",
            "",
        ),
    ),
    "a broken binding that a body reads": (
        ["E0101"],
        model("x = = z -> norm\n y = z -> repeat(2) { input b  output b -> x }", ""),
    ),
    "no output": (["E0601"], "model m { input z : float[4]  y = z -> norm }"),
    "no output, as far as can be read": (
        ["E0101"],
        "model m { input z : float[4]  y = z -> norm\n output (y 4)\n}",
    ),
    "six slips": (
        ["E0201", "E0202", "E0304", "E0201", "E0201", "E0201"],
        "model m(dim = 8) {\n input z : float[16, dmi]\n stage s = nrom\n a = z -> s\n b = a -> linear(dim / 3)\n"
        " y = b + q\n output y, w\n objective mse(y, v)\n}",
    ),
    "a broken import": (["E0520"], 'import "no.crate"' + model("y = z -> from_there(3)\n", "")),
}


@pytest.mark.parametrize("slip", WHOLE)
def test_a_whole_text_gives_each_mistake_once(slip: str) -> None:
    expected, text = WHOLE[slip]
    diagnostics = found(text)
    assert sorted(d.code for d in diagnostics) == sorted(expected), render_all(diagnostics)


def test_a_mistake_in_a_block_shows_what_led_there() -> None:
    text = model(
        "y = z -> repeat(2) { outer(8) }", "", "block inner(w) { linear(w / 3) }\nblock outer(w) { inner(w) }"
    )
    (mistake,) = found(text)
    assert [label.text for label in mistake.uses] == [
        "in block `inner`, used", "in block `outer`, used", "in layer 0 of the repeat",
    ]  # fmt: skip


def test_a_repeat_around_a_mistake_needs_no_word_unless_its_layer_matters() -> None:
    (first,) = found(model("y = z -> repeat(2) { residual { linear(8 / 3) } }", ""))
    assert first.uses == ()
    (later,) = found(model("y = z -> repeat(2) { residual { linear(8 / (1 - layer)) } }", ""))
    assert [label.text for label in later.uses] == ["in layer 1 of the repeat"]


# ------------------------------------------------------------------ hostile input


def doubling(kind: str, depth: int) -> str:
    """Each block or stage uses the one before twice."""
    if kind == "stage":
        lines = ["stage s0 = norm", *(f"stage s{i} = s{i - 1} -> s{i - 1}" for i in range(1, depth + 1))]
        return model("\n".join([*lines, f"y = z -> s{depth}"]), "")
    empty = "norm" if kind == "block" else "input a  output a"
    blocks = [
        f"block s0() {{ {empty} }}",
        *(f"block s{i}() {{ s{i - 1}() -> s{i - 1}() }}" for i in range(1, depth + 1)),
    ]
    return model(f"y = z -> s{depth}()", "", "\n".join(blocks))


NESTED = "y = z -> " + "repeat(1000) { " * 3 + "norm" + " }" * 3

HOSTILE = {
    "stages that double": ("E0521", doubling("stage", 60)),
    "blocks that double": ("E0521", doubling("block", 60)),
    "blocks that double nothing": ("E0521", doubling("nothing", 60)),
    "blocks within one another": ("E0522", "\n".join(
        ["block s0() { norm }", *(f"block s{i}() {{ s{i - 1}() }}" for i in range(1, 101))]
    ) + model("y = z -> s100()", "")),
    "blocks in a circle": ("E0504", "block p() { q() } block q() { p() }" + model("y = z -> p()", "")),
    "a long repeat": ("E0521", model("y = z -> repeat(1000000000) { norm }", "")),
    "a repeat of 10**400": ("E0521", model("y = z -> repeat(1e400) { norm }", "")),
    "nested repeats": ("E0521", model(NESTED, "")),
    "repeats of blocks of repeats": (
        "E0521",
        "block p() { repeat(400) { norm } } block q() { repeat(400) { p() } }"
        + model("y = z -> repeat(400) { q() }", ""),
    ),
    "a huge dimension": ("E0306", "model m { input z : float[1e300, 3]  y = z -> norm  output y }"),
    "a number that grows": ("E0331", "model m(a = 1e300, b = a * a * a * a * a) { input z : float[b]  output z }"),
}  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_what_grows_without_bound_is_one_error_in_bounded_time(text: str) -> None:
    code, spec = HOSTILE[text]
    start = time.perf_counter()
    diagnostics = found(spec)
    assert [diagnostic.code for diagnostic in diagnostics] == [code], render_all(diagnostics[:3])
    assert time.perf_counter() - start < BOUNDED


def test_a_deep_but_narrow_text_is_fine() -> None:
    blocks = ["block s0() { norm }", *(f"block s{i}() {{ s{i - 1}() }}" for i in range(1, 60))]
    assert codes(model("y = z -> s59()", "", "\n".join(blocks))) == []


def test_load_raises_every_mistake_at_once() -> None:
    with pytest.raises(SpecError) as caught:
        elaborated(model("x = z -> nrm\n y = z -> lnear(3)", ""))
    assert [diagnostic.code for diagnostic in caught.value.diagnostics] == ["E0202", "E0202"]


# ------------------------------------------------------------------ random mutations


RICH = """block layer_of(dim, heads, ratio = 2) {
    residual { norm -> attend(heads) }
    residual { norm -> linear(ratio * dim) -> gelu -> linear(dim) }
}
model small(dim = 8, depth = 2, widths = [8, 8], flag = true) {
    variant wide { dim = 12, depth = 3, widths = [12, 6] }
    input image : float[1, 8, 8]
    input noise : float[5, dim] = normal(1)
    target label : index(5)
    learn first : float[dim] = normal(0.02)
    stage encoder = repeat(depth) { compress(2, rank = dim / 2) sparsify(step = 0.1, penalty = 0.1) }
    stage mixed = { input z  input extra  learn gate : float[dim] = zeros  q = z -> norm  output q + gate * extra }
    tokens = image -> patchify(4) -> linear(dim, bias = flag) -> prepend(first) -> position(learned)
    noisy = tokens + 0.1 * noise
    inner = noisy -> encoder -> layer_of(dim, heads = 2) -> repeat(2) { linear(widths[layer]) -> linear(dim) }
    both = inner -> mixed(extra = tokens) -> frozen(encoder)
    logits = both -> select(first) -> norm -> linear(5)
    output logits
    objective cross_entropy(logits, label) + 1e-3 * mse(inner, tokens)
    train { optimizer = adamw(lr = 1e-3, betas = [0.9, 0.99]) epochs = 3 }
    train wide { schedule = cosine(warmup = 1) }
}
"""
TOKENS = re.findall(r"[A-Za-z_]\w*|\d+(?:\.\d+)?(?:e-?\d+)?|->|<=|\S|\s+", RICH)
WORDS = [position for position, token in enumerate(TOKENS) if not token.isspace()]
NUMBERS = [
    "0",
    "1",
    "7",
    "0.5",
    "1e9",
    "1e300",
    "-1",
    "200001",
    "z",
    "layer",
    "learn(1)",
    "[1,2]",
    "'a'",
    "key.a",
]


def test_the_text_that_is_mutated_is_sound() -> None:
    assert check_text("rich.crate", "".join(TOKENS)) == []


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_no_mutation_makes_the_checker_fail(data: st.DataObject) -> None:
    tokens = list(TOKENS)
    for _ in range(data.draw(st.integers(1, 3))):
        here, there = data.draw(st.sampled_from(WORDS)), data.draw(st.sampled_from(WORDS))
        match data.draw(st.sampled_from(["delete", "double", "swap", "replace", "number"])):
            case "delete":
                tokens[here] = " "
            case "double":
                tokens[here] = f"{tokens[here]} {tokens[here]}"
            case "swap":
                tokens[here], tokens[there] = tokens[there], tokens[here]
            case "replace":
                tokens[here] = tokens[there]
            case "number":
                tokens[here] = data.draw(st.sampled_from(NUMBERS))
    start = time.perf_counter()
    render_all(check_text("mutated.crate", "".join(tokens)))
    assert time.perf_counter() - start < BOUNDED
