"""Random networks: some front, a few steps in a row, some head."""

from __future__ import annotations

from hypothesis import strategies as st

#: Steps from tokens that are 12 wide to tokens that are 12 wide.
STEPS = [
    "norm",
    "norm(rms)",
    "linear(12)",
    "linear(12, bias = false)",
    "linear(3) -> linear(12)",
    "linear(30) -> linear(12)",
    "scale(0.5)",
    "scale(learn(0.5, shape = [12]))",
    "relu",
    "gelu",
    "dropout(0.2)",
    "position(sincos)",
    "attend(3)",
    "attend(2, mask = causal)",
    "compress(2, rank = 4)",
    "compress(5, rank = 4, norm = none, out = tied, step = 0.3)",
    "compress(2, rank = 3, mask = causal, norm = rms)",
    "compress(2, rank = 4, gradient = exact)",
    "compress(2, rank = 4, gradient = softmax)",
    "decompress(2, rank = 4)",
    "sparsify",
    "sparsify(norm = none, prox = leaky(0.7))",
    "sparsify(prox = soft, step = learn(0.1))",
    "sparsify(iterations = 2, start = zero, expand = 2, decode = free, residual = true)",
    "densify",
    "densify(by = gradient, norm = none, step = 0.2)",
    "residual { norm -> linear(12) }",
    "residual { norm -> attend(3) -> scale(0.5) }",
    "residual { linear(12) -> linear(12) }",
    "residual { relu }",
    "s",
    "frozen(s)",
    "t",
]
#: Where tokens come from, and what they are called.
FRONTS = {
    "input z : float[7, 12]": ("z", "tokens"),
    "input z : float[n <= 9, 12]": ("z", "tokens"),
    "input z : float[3, 4, 6]": ("z -> patchify(2)", "patches"),
}
JOINS = [
    "",
    " -> prepend(c)",
    " -> append(c)",
    " -> prepend(c) -> append(two)",
    " -> append(c) -> append(two)",
]
#: What becomes of tokens, by the segment that has to be there.
HEADS = {
    "": ["", "pool", "pool(max)", "pool -> norm -> linear(5)", "linear(5) -> pool", "linear(4)"],
    "c": [
        "select(c)", "select(c) -> norm -> linear(5)", "drop(c)", "drop(c) -> norm -> pool", "keep(c) -> linear(5)",
        "drop(c) -> position(sincos)", "norm -> select(c) -> linear(30) -> linear(5)",
    ],
    "two": ["keep(two)", "keep(two) -> norm -> pool", "drop(two) -> linear(5)", "norm -> keep(two) -> attend(2)"],
}  # fmt: skip


@st.composite
def specs(draw: st.DrawFn) -> str:
    """The text of a small network."""
    line = draw(st.sampled_from(list(FRONTS)))
    start, _ = FRONTS[line]
    joins = draw(st.sampled_from(JOINS))
    steps = draw(st.lists(st.sampled_from(STEPS), min_size=1, max_size=6))
    between = draw(st.integers(0, len(steps)))
    heads = [head for name, found in HEADS.items() if not name or f"({name})" in joins for head in found]
    chosen = draw(st.lists(st.sampled_from(heads), min_size=1, max_size=2, unique=True))
    stages = {
        "s": " stage s = compress(2, rank = 4) -> sparsify",
        "t": " stage t = norm -> linear(12) -> residual { linear(12) }",
    }
    used = " -> ".join(steps)
    learns = {"c": " learn c : float[12] = normal(1)", "two": " learn two : float[2, 12] = normal(1)"}
    lines = [f" {line}"]
    lines += [text for name, text in learns.items() if f"({name})" in joins]
    lines += [text for name, text in stages.items() if name in steps or f"frozen({name})" in used]
    before, behind = steps[:between], steps[between:]
    lines.append(
        f" a = {' -> '.join([start + joins, *before])}" if before or joins or "->" in start else " a = z"
    )
    lines.append(f" b = {' -> '.join(['a', *behind])}")
    outputs = []
    for number, head in enumerate(chosen):
        lines.append(f" y{number} = {' -> '.join(['b', *([head] if head else [])])}")
        outputs.append(f"y{number}")
    if draw(st.booleans()):
        outputs.append("a")
    return "model m {\n" + "\n".join(lines) + f"\n output {', '.join(outputs)}\n}}"
