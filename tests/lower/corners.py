"""Small networks, each with a corner of the language that a rewrite has to get right. Sizes are all different."""

from __future__ import annotations

from crate_dsl.compiler.graph import ModelGraph
from crate_dsl.language.source import Source
from crate_dsl.workspace import Target, load_source


def graph_of(text: str) -> ModelGraph:
    """The graph of a spec's text."""
    return load_source(Source("spec.crate", text), Target("spec.crate"))


def tokens(chain: str, more: str = "", output: str = "y") -> str:
    """A network of 7 tokens, 12 wide: `z -> chain`. `more` are further lines, before it."""
    return f"model m {{\n input z : float[7, 12]\n {more}\n y = z -> {chain}\n output {output}\n}}"


def texts(chain: str, more: str = "", output: str = "y") -> str:
    """The same with as many tokens as there are when it runs, nine at most."""
    return f"model m {{\n input z : float[n <= 9, 12]\n {more}\n y = z -> {chain}\n output {output}\n}}"


def picture(chain: str, more: str = "", output: str = "y") -> str:
    """A network of pictures, 2 x 3 patches of 12 numbers, with a class token if `chain` asks for it."""
    learn = "learn c : float[12] = normal(1)\n learn two : float[2, 12] = normal(1)"
    used = "\n".join(line for line in learn.splitlines() if line.split()[1] in chain + more)
    return f"model m {{\n input x : float[3, 4, 6]\n {used}\n {more}\n y = x -> {chain}\n output {output}\n}}"


ALPHA = "iterations = 2, start = zero, expand = 3, decode = {}, residual = true, prox = {}"
ONE_TO_ONE = "norm = none, constraint = orthonormal, prox = leaky(0.8)"
DERIVED = "gradient = {}, norm = none"

SPARSIFY = {
    "sparsify": tokens("sparsify"),
    "sparsify soft": tokens("sparsify(prox = soft, penalty = 0.7)"),
    "sparsify leaky": tokens("sparsify(prox = leaky(0.6), norm = rms)"),
    "sparsify without norm": tokens("sparsify(norm = none, step = 0.3) -> sparsify(norm = rms(eps = 1e-4))"),
    "sparsify learned": tokens("sparsify(step = learn(0.2), penalty = learn(0.3))"),
    "sparsify learned by channel": tokens(
        "sparsify(step = learn(0.2, shape = [12]), penalty = learn(0.3, shape = [12]))"
    ),
    "sparsify soft learned": tokens("sparsify(step = learn(0.2), penalty = learn(2), prox = soft)"),
    "sparsify soft learned by channel": tokens("sparsify(step = learn(0.2, shape = [12]), prox = soft)"),
    "sparsify with a shared step": tokens(
        "sparsify(step = s) -> sparsify(step = s, penalty = s)", "learn s : float = 0.2"
    ),
    "sparsify by sample": tokens("sparsify(step = s) -> sparsify", "input s : float = uniform(0.1, 0.3)"),
    "sparsify 2": tokens("sparsify(iterations = 2, decode = tied)"),
    "sparsify 3": tokens("sparsify(iterations = 3, prox = soft, penalty = 0.4)"),
    "sparsify from zero": tokens("sparsify(start = zero)"),
    "sparsify alpha tied": tokens(f"sparsify({ALPHA.format('tied', 'nonnegative')})"),
    "sparsify alpha free": tokens(f"sparsify({ALPHA.format('free', 'soft')}) -> sparsify"),
    "sparsify alpha leaky": tokens(f"sparsify({ALPHA.format('free', 'leaky(0.5)')}, norm = none)"),
    "sparsify residual": tokens("sparsify(residual = true) -> sparsify(residual = true)"),
    "sparsify whole, on rows": tokens(
        "linear(12) -> sparsify(step = learn(0.2, shape = [12]), prox = soft) -> scale(learn(0.5)) -> gelu"
        " -> densify(by = gradient, norm = none, residual = true) -> silu"
        " -> densify(by = gradient, norm = none, prox = soft) -> linear(12)"
    ),
    "densify": tokens("densify -> densify(norm = rms) -> densify(norm = none)"),
    "densify backwards": tokens("densify(by = gradient, norm = none, step = 0.2)"),
    "densify thrice": tokens("densify(by = gradient, norm = none, repeats = 3, penalty = learn(0.2))"),
    "densify soft": tokens("densify(by = gradient, norm = none, prox = soft, repeats = 2)"),
    "densify residual": tokens("densify(by = gradient, norm = none, residual = true, repeats = 2)"),
    "densify certified": tokens(
        f"sparsify({ONE_TO_ONE}) -> densify(by = gradient, repeats = certified, {ONE_TO_ONE})"
    ),
}

COMPRESS = {
    "compress": tokens("compress(2, rank = 4)"),
    "compress tied": tokens("compress(2, rank = 4, out = tied)"),
    "compress unbiased": tokens("compress(2, rank = 4, bias = false, norm = rms)"),
    "compress wide": tokens("compress(5, rank = 4, norm = none, step = 0.7, scale = 0.3)"),
    "compress learned": tokens("compress(2, rank = 4, step = learn(0.6), scale = learn(0.4), out = tied)"),
    "compress learned by channel": tokens("compress(2, rank = 4, step = learn(0.6, shape = [12]))"),
    "compress with a shared scale": tokens(
        "compress(2, rank = 4, scale = s) -> compress(3, rank = 2, scale = s, step = s)",
        "learn s : float = 0.5",
    ),
    "compress by sample": tokens(
        "compress(2, rank = 4, step = s) -> compress(2, rank = 4, scale = s)",
        "input s : float = uniform(0.1, 0.9)",
    ),
    "compress softmax": tokens("compress(2, rank = 4, gradient = softmax)"),
    "compress softmax step": tokens("compress(2, rank = 4, gradient = softmax, step = learn(0.1))"),
    "compress softmax texts": texts("compress(2, rank = 4, gradient = softmax) -> compress(2, rank = 3)"),
    "compress exact": tokens("compress(2, rank = 4, gradient = exact) -> sparsify"),
    "compress neumann": tokens("compress(2, rank = 4, gradient = neumann, eps = 9, step = 0.3) -> sparsify"),
    "compress relative": texts("compress(2, rank = 4, gradient = exact, step = relative(0.7)) -> sparsify"),
    "compress orthonormal": tokens("compress(2, rank = 4, gradient = exact, constraint = orthonormal)"),
    "compress with shared bases": tokens(
        "compress(2, rank = 4, bases = u) -> compress(2, rank = 4, bases = u, out = tied)",
        "learn u : float[8, 12] = normal(0.3)",
    ),
    "compress causal": tokens("compress(2, rank = 4, mask = causal) -> compress(2, rank = 4)"),
    "compress masked": tokens("compress(2, rank = 4, mask = kept)", "input kept : bool[7]"),
    "compress masked texts": texts("compress(2, rank = 4, mask = kept) -> sparsify", "input kept : bool[n]"),
    "decompress": tokens("decompress(2, rank = 4) -> decompress(2, rank = 4, out = tied, norm = rms)"),
    "decompress twice": tokens("decompress(2, rank = 4, iterations = 2)"),
    "decompress softmax": tokens("decompress(2, rank = 4, gradient = softmax)"),
    "decompress certified": tokens(
        f"compress(2, rank = 4, step = relative(0.4), {DERIVED.format('exact')}) -> "
        f"decompress(2, rank = 4, iterations = certified, step = relative(0.4), {DERIVED.format('exact')})"
    ),
    "attend": tokens("attend(3)"),
    "attend unbiased": tokens("norm -> attend(2, bias = false) -> attend(4, mask = causal)"),
    "attend masked": texts("attend(3, mask = kept)", "input kept : bool[n]"),
}

TOKENS = {
    "select": picture("patchify(2) -> prepend(c) -> compress(2, rank = 4) -> sparsify -> select(c)"),
    "select from the middle": picture(
        "patchify(2) -> append(c) -> append(two) -> compress(2, rank = 4) -> sparsify -> select(c)"
    ),
    "select from the end of texts": texts(
        "append(c) -> compress(2, rank = 4) -> sparsify -> select(c) -> linear(3)",
        "learn c : float[12] = normal(1)",
    ),
    "select from texts": texts(
        "prepend(c) -> append(d) -> compress(2, rank = 4) -> sparsify -> norm -> select(d) -> linear(3)",
        "learn c : float[12] = normal(1)\n learn d : float[12] = normal(1)",
    ),
    "causal, the last": tokens(
        "append(c) -> compress(2, rank = 4, mask = causal) -> sparsify -> select(c)",
        "learn c : float[12] = normal(1)",
    ),
    "causal, the first": tokens(
        "prepend(c) -> compress(2, rank = 4, mask = causal) -> sparsify -> select(c)",
        "learn c : float[12] = normal(1)",
    ),
    "causal, the last of texts": texts(
        "append(c) -> compress(2, rank = 4, mask = causal) -> sparsify -> select(c)",
        "learn c : float[12] = normal(1)",
    ),
    "masked and selected": texts(
        "compress(2, rank = 4, mask = kept) -> sparsify -> append(c) -> select(c)",
        "input kept : bool[n]\n learn c : float[12] = normal(1)",
    ),
    "keep": picture("patchify(2) -> prepend(two) -> compress(2, rank = 4) -> sparsify -> keep(two) -> pool"),
    "keep patches": picture("patchify(2) -> prepend(c) -> compress(2, rank = 4) -> keep(patches)"),
    "keep a grid": picture("patchify(2) -> prepend(two) -> relu -> keep(patches) -> unpatchify"),
    "keep and place": picture(
        "patchify(2) -> prepend(c) -> norm -> keep(patches) -> position(sincos) -> compress(2, rank = 4)"
    ),
    "keep and gather": picture(
        "patchify(2) -> append(c) -> norm -> keep(patches) -> gather(v) -> norm -> scatter(v) -> unpatchify",
        "input v : index(6)[6] = shuffle",
    ),
    "keep twice": picture(
        "patchify(2) -> prepend(c) -> append(two) -> sparsify -> drop(patches) -> norm -> keep(two) -> pool"
    ),
    "drop": picture("patchify(2) -> prepend(c) -> compress(2, rank = 4) -> sparsify -> drop(c) -> pool"),
    "drop from the middle": picture(
        "patchify(2) -> prepend(c) -> append(two) -> attend(2) -> norm -> drop(patches) -> attend(3)"
    ),
    "drop from texts": texts(
        "prepend(c) -> append(d) -> attend(2) -> norm -> drop(tokens) -> linear(3) -> pool(max)",
        "learn c : float[12] = normal(1)\n learn d : float[2, 12] = normal(1)",
    ),
    "drop texts' front": texts(
        "prepend(c) -> attend(2) -> norm -> drop(c) -> linear(3)", "learn c : float[2, 12] = normal(1)"
    ),
    "several read": picture(
        "patchify(2) -> prepend(c) -> append(two) -> compress(2, rank = 4) -> sparsify",
        "a = y -> select(c) -> linear(3)\n b = y -> keep(two) -> norm -> pool",
        "a, b",
    ).replace("a = y", "\n a = y"),
    "pool": tokens("compress(2, rank = 4) -> sparsify -> pool -> norm -> linear(5)"),
    "pool max": texts("attend(3) -> norm -> pool(max) -> linear(5)"),
}

TOKENS["several read"] = (
    "model m {\n input x : float[3, 4, 6]\n learn c : float[12] = normal(1)\n"
    " learn two : float[2, 12] = normal(1)\n"
    " y = x -> patchify(2) -> prepend(c) -> append(two) -> compress(2, rank = 4) -> sparsify\n"
    " a = y -> select(c) -> linear(3)\n b = y -> keep(two) -> norm -> pool\n output a, b\n}"
)

POSITIONS = {
    "learned": tokens("position(learned) -> compress(2, rank = 4)"),
    "learned texts": texts("position(learned, length = 11) -> sparsify"),
    "sincos": tokens("position(sincos) -> sparsify"),
    "sincos texts": texts("position(sincos, temperature = 50) -> sparsify"),
    "sincos grid": picture("patchify(2) -> prepend(c) -> position(sincos) -> compress(2, rank = 4)"),
    "resized": picture(
        "patchify(2) -> prepend(c) -> position(learned, grid = [3, 2], resize = bicubic) -> sparsify"
    ),
    "unposition": tokens("position(learned) -> unposition(of = position)").replace(
        "y = z -> position(learned) -> unposition(of = position)",
        "stage s = position(learned) -> scale(0.5)\n stage t = inverse(s, mode = certified)\n y = z -> s -> t",
    ),
}

STAGES = {
    "used on the same": tokens(
        "s", "stage s = compress(2, rank = 4) -> sparsify\n a = z -> s -> pool", "a, y"
    ),
    "used on others": tokens("s -> s -> norm -> s", "stage s = compress(2, rank = 4) -> sparsify"),
    "used and selected": picture(
        "patchify(2) -> prepend(c) -> s -> s -> select(c)", "stage s = compress(2, rank = 4) -> sparsify"
    ),
    "frozen": tokens("s -> frozen(s) -> frozen(t)", "stage s = sparsify\n stage t = linear(12) -> norm"),
    "transposed": tokens("s -> relu -> transpose(s)", "stage s = linear(5)"),
    "embedded": (
        "model m {\n input ids : index(17)[n <= 9]\n stage e = embed(12)\n"
        " h = ids -> e -> position(sincos) -> compress(2, rank = 4, mask = causal) -> sparsify\n"
        " y = h -> transpose(e)\n output y, h\n}"
    ),
    "inverse learned": tokens(
        "s -> t",
        "stage s = repeat(2) { compress(2, rank = 4) sparsify }\n stage t = inverse(s, mode = learned)",
    ),
    "inverse tied": tokens(
        "s -> t",
        "stage s = repeat(2) { compress(2, rank = 4) sparsify(norm = none, prox = leaky(0.9)) }\n"
        " stage t = inverse(s, mode = tied)",
    ),
    "inverse by iteration": tokens(
        "s -> t",
        "stage s = residual { linear(12) -> scale(0.1) } -> sparsify(norm = none, step = 0.05)\n"
        " stage t = inverse(s, mode = fixed_point(3))",
    ),
    "inverse certified": tokens(
        "s -> t",
        "stage s = repeat(2) {\n"
        "  compress(2, rank = 4, gradient = exact, constraint = orthonormal, norm = none)\n"
        f"  sparsify({ONE_TO_ONE}) }}\n stage t = inverse(s, mode = certified)",
    ),
    "flow": tokens("flow(2, rank = 4, time = 0.2, steps = 2, solver = euler) -> sparsify"),
    "denoise": tokens("denoise(2, rank = 4, time = 0.5) -> sparsify"),
}

ARITHMETIC = {
    "sums of one": tokens(
        "norm", "a = z -> linear(12) -> scale(0.5)\n b = (z - a) + (a - z) * 1.0\n", "b, y"
    ),
    "an affine net": tokens("linear(12) -> linear(30) -> linear(4, bias = false) -> scale(0.3)"),
    "low rank": tokens("linear(2) -> linear(12) -> scale(2)"),
    "negative": tokens("linear(12)", "a = -(z -> linear(12))\n b = z - a", "b, y"),
    "gated": tokens("linear(12)", "learn g : float[12] = normal(1)\n b = g * z + (z -> linear(12))", "b, y"),
    "of two": (
        "model m {\n input a : float[7, 12]\n input b : float[7, 12]\n"
        " c = (a + b) -> linear(12) -> linear(12)\n d = a * b -> norm\n y = c + d - a\n output y\n}"
    ).replace("a * b -> norm", "(a * b) -> norm"),
    "broadcast": (
        "model m {\n input a : float[7, 12]\n input b : float[12]\n input s : float\n"
        " y = (a + b) -> linear(12) -> scale(s) -> linear(12)\n output y\n}"
    ),
    "an input comes out": tokens("linear(12) -> linear(12)", "", "y, z"),
    "in between": tokens(
        "linear(12)", "a = z -> norm\n b = a -> linear(12)\n c = (b + a) -> linear(12)", "a, b, c, y"
    ),
    "one under two names": tokens("norm", "a = z -> linear(12)\n b = a", "a, b, y"),
    "vectors": "model m {\n input v : float[12]\n y = v -> norm -> linear(30) -> linear(4)\n output y\n}",
    "dropout": tokens(
        "norm -> dropout(0.3) -> linear(12) -> dropout(0.1) -> compress(2, rank = 4, dropout = 0.2)"
    ),
    "a vit layer": tokens(
        "residual { norm -> attend(3) } -> residual { norm -> linear(48) -> gelu -> linear(12) } -> norm"
    ),
    "norm read twice": tokens("linear(12)", "a = z -> norm\n b = a -> linear(5)\n c = a -> pool", "b, c, y"),
    "nothing": tokens("relu"),
    "hidden": (
        "model m {\n input z : float[6, 12]\n input h : bool[6] = choose(0.5)\n learn t : float[12] = normal(1)\n"
        " y = z -> linear(12) -> mask(h, fill = t) -> compress(2, rank = 4) -> sparsify -> silu\n output y\n}"
    ),
}

CORNERS = SPARSIFY | COMPRESS | TOKENS | POSITIONS | STAGES | ARITHMETIC
