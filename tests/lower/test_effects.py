"""Each rewrite does what it says, and its precondition holds it back where it must."""

from __future__ import annotations

from collections import Counter
from timeit import Timer

import pytest

import crate_dsl
from crate_dsl.compiler.graph import ModelGraph, Node, Value
from crate_dsl.compiler.lower import REWRITES, Lowered, lower_graph
from crate_dsl.compiler.weights import plain_weights
from crate_dsl.language.diagnostics import UserError
from tests.lower.corners import CORNERS, graph_of, picture, texts, tokens
from tests.lower.holding import perturbed

#: 200 layers against 50 may take so many times the time. Work that grows with the square would take sixteen.
LINEAR = 8
#: At a width of 12, sums and differences are below a fifth of the products.
SUMS = 1.2


def lowered(text: str, rewrites: str = "all") -> Lowered:
    net = perturbed(text)
    return lower_graph(net.graph, plain_weights(net.graph, net), rewrites)


def words(found: Lowered) -> Counter[str]:
    """How many steps there are of each kind."""
    return Counter(node.word for node in found.graph.nodes)


def named(found: Lowered, part: str) -> Node:
    """The one step whose name ends like this."""
    (node,) = (node for node in found.graph.nodes if node.name.endswith(part))
    return node


def kinds_given(graph: ModelGraph, node: Node) -> list[bool]:
    """Whether each of the tensors that a step is given is flat."""
    return [graph.type_of(value).flat for value in (*node.inputs, *node.ports.values())]


# ------------------------------------------------------------------ what each does


def test_nothing_is_done_where_nothing_is_asked_for() -> None:
    found = lowered(tokens("compress(2, rank = 4) -> sparsify"), "none")
    assert found.effects == () and words(found) == {"compress": 1, "sparsify": 1}


def test_constants_leave_no_arithmetic_of_positions() -> None:
    for corner in ("learned", "sincos", "sincos grid", "resized", "unposition"):
        found = words(lowered(CORNERS[corner], "constants"))
        assert found["offset"] >= 1 and not found["position"] and not found["unposition"], corner
    for corner in ("learned texts", "sincos texts"):  # of unknown length
        assert words(lowered(CORNERS[corner], "constants"))["position"] == 1, corner


def test_constants_make_a_number_of_a_relative_step() -> None:
    chain = "compress(2, rank = 4, gradient = exact, step = relative(0.7))"
    (node,) = lowered(tokens(chain), "constants").graph.nodes
    assert isinstance(node.operator.step, float)  # type: ignore[attr-defined]
    (node,) = lowered(texts(chain), "constants").graph.nodes
    assert not isinstance(node.operator.step, float)  # type: ignore[attr-defined]


def test_parts_are_those_of_the_formula() -> None:
    found = words(lowered(tokens("compress(2, rank = 4) -> dropout(0.2) -> sparsify"), "parts"))
    assert found == {"norm": 2, "affine": 4, "attention": 1, "add": 2, "subtract": 1, "relu": 1}


@pytest.mark.parametrize(
    "step",
    [
        "compress(2, rank = 4, gradient = exact)",
        "compress(2, rank = 4, gradient = neumann, eps = 9, step = 0.3)",
        "decompress(2, rank = 4, iterations = 2)",
        "densify(by = gradient, norm = none, prox = soft)",
        "densify(by = gradient, norm = none, residual = true)",
        "sparsify(step = learn(0.2, shape = [12]), prox = soft)",
        "denoise(2, rank = 4, time = 0.5)",
    ],
)
def test_these_are_left_whole(step: str) -> None:
    assert len(lowered(tokens(step), "parts").graph.nodes) == 1


def test_what_differs_by_sample_is_left_whole() -> None:
    for corner, count in (("sparsify by sample", 1), ("compress by sample", 2)):
        found = words(lowered(CORNERS[corner], "parts"))
        assert found[corner.split()[0]] == count


def test_a_layer_takes_three_products_as_wide_as_it_is() -> None:
    """Fold leaves 3 d² a token and layer of the 4 that were there: two of compress, one of sparsify."""
    width, count = 12, 7
    found = lowered(tokens("compress(3, rank = 4) -> sparsify"))
    products = [node for node in found.graph.nodes if node.word == "affine"]
    assert sum(node.typing.flops for node in products) == 3 * 2 * count * width**2
    assert words(found)["affine"] == 3 and not words(found)["subtract"]


def test_fold_makes_one_map_of_an_affine_network() -> None:
    found = lowered(CORNERS["an affine net"])
    assert words(found) == {"flatten": 1, "affine": 1, "unflatten": 1}


@pytest.mark.parametrize(
    "chain",
    [
        "linear(2) -> linear(12)",  # of low rank: 2 · 24 a token against 144
        "linear(12)",
        "norm -> linear(12) -> relu -> linear(12)",
        "sparsify(start = zero, expand = 3, decode = free)",
    ],
)
def test_fold_keeps_off_where_it_would_cost_more(chain: str) -> None:
    before, after = (lowered(tokens(chain), rewrites) for rewrites in ("parts", "parts,fold"))
    assert words(before)["affine"] == words(after)["affine"]


def test_fold_keeps_what_something_else_reads() -> None:
    """`a` and `c` are affine in `z`. `b` reads `a` too: folding `c` would leave `a` to be computed as well."""
    text = tokens("linear(12)", "a = z -> linear(5)\n b = a -> relu\n c = a -> linear(6)", "b, c, y")
    assert words(lowered(text))["affine"] == 3


def test_every_rewrite_that_folds_costs_no_more() -> None:
    for corner, text in CORNERS.items():
        for effect in lowered(text).effects:
            # Written out, a step has sums that it does not count as a whole: some numbers for each of its products'.
            more = SUMS if effect.rewrite == "parts" else 1
            assert effect.flops[1] <= more * effect.flops[0], (corner, effect)


def test_norm_leaves_its_scale_to_the_maps_behind_it() -> None:
    found = lowered(tokens("sparsify -> sparsify(norm = rms)"))
    assert words(found)["standardise"] == 2 and not words(found)["norm"]
    weights = {slot.rpartition(".")[2] for slot in found.weights}
    assert weights == {"matrix", "bias"}


def test_norm_gives_no_map_a_bias_that_it_has_not() -> None:
    for text in (tokens("compress(2, rank = 4)"), tokens("norm -> linear(5, bias = false)")):
        assert words(lowered(text))["norm"] == 1
    assert words(lowered(tokens("norm(rms) -> linear(5, bias = false)")))["standardise"] == 1


def test_patches_lie_as_in_the_picture() -> None:
    chain = "input picture : float[3, 8, 12]\n z = picture -> patchify(4) -> {} \n output z"
    for inside, order in (
        ("norm -> linear(5)", "cpq"),
        ("linear(5)", "cpq"),
        ("norm", "pqc"),  # its scales are those of numbers in their order
        ("linear(5) -> linear(48) -> unpatchify", "pqc"),  # the picture is put together as it was cut
    ):
        text = f"model m() {{ {chain.format(inside)} }}"
        found = lowered(text)
        (cut,) = (node for node in found.graph.nodes if node.word == "patchify")
        assert cut.operator.order == order, inside  # type: ignore[attr-defined]


def test_norm_keeps_off_where_something_else_reads_it() -> None:
    for text in (
        CORNERS["norm read twice"],
        tokens("norm"),
        tokens("norm -> relu"),
        tokens("linear(5)", "a = z -> norm\n b = a -> linear(5)", "a, b, y"),
        tokens("compress(2, rank = 4, gradient = softmax)"),  # which takes the normalised tokens away
        tokens("sparsify(iterations = 2)"),
    ):
        found = lowered(text, "parts,norm")
        assert words(found)["norm"] == 1 and not words(found)["standardise"], text


def test_softmax_leaves_no_scale() -> None:
    for corner in ("compress", "compress tied", "compress wide", "compress learned", "attend", "a vit layer"):
        for node in lowered(CORNERS[corner]).graph.nodes:
            if node.word == "attention":
                assert node.operator.scale == 1.0, corner  # type: ignore[attr-defined]


def test_softmax_keeps_off_where_something_else_reads_the_projection() -> None:
    """Two layers with the same bases on the same normed tokens share their projection."""
    shared = tokens(
        "a",
        "learn u : float[8, 12] = normal(0.3)\n stage a = linear(12)\n"
        " b = z -> compress(2, rank = 4, bases = u, norm = none)\n"
        " c = z -> compress(2, rank = 4, bases = u, norm = none, scale = 0.2)",
        "b, c, y",
    )
    found = lowered(shared)
    scales = {n.operator.scale for n in found.graph.nodes if n.word == "attention"}  # type: ignore[attr-defined]
    assert words(found)["attention"] == 2 and scales == {0.5, 0.2}


def test_a_shared_stage_is_computed_once() -> None:
    stage = "stage s = compress(2, rank = 4) -> sparsify\n a = z -> s -> pool"
    once = lowered(tokens("s", stage, "a, y"), "parts,share")
    assert words(once) == words(lowered(tokens("compress(2, rank = 4) -> sparsify"), "parts")) + Counter(
        pool=1
    )
    twice = lowered(tokens("s -> s", "stage s = compress(2, rank = 4) -> sparsify"), "parts,share")
    assert words(twice)["attention"] == 2
    copied = lowered(tokens("t", stage + "\n stage t = copy(s)", "a, y"), "parts,share")
    assert words(copied)["attention"] == 2  # weights of its own


def test_a_mean_goes_before_the_map() -> None:
    found = lowered(tokens("linear(5) -> pool"), "parts,pool")
    assert [node.word for node in found.graph.nodes] == ["pool", "affine"]
    read = lowered(tokens("linear(5)", "a = z -> linear(5)\n b = a -> pool", "a, b, y"), "parts,pool")
    assert [node.word for node in read.graph.nodes].index("affine") < [
        node.word for node in read.graph.nodes
    ].index("pool")
    assert words(lowered(tokens("linear(5) -> pool(max)"), "parts,pool")) == {"affine": 1, "pool": 1}


# ------------------------------------------------------------------ demand


HEAD = "compress(2, rank = 4) -> sparsify -> select(c) -> norm -> linear(3)"


@pytest.mark.parametrize(
    "text",
    [
        picture(f"patchify(2) -> prepend(c) -> {HEAD}"),
        picture(f"patchify(2) -> append(c) -> {HEAD}"),
        texts(f"prepend(c) -> {HEAD}", "learn c : float[12] = normal(1)"),
        texts(f"append(c) -> {HEAD}", "learn c : float[12] = normal(1)"),
    ],
)
def test_the_last_layer_has_one_query(text: str) -> None:
    found = lowered(text)
    attention = named(found, ".attention")
    queries, keys, values = (found.graph.type_of(value) for value in attention.inputs)
    assert queries.shape[0].static == 1 and keys == values and keys.shape[0].bound > 1
    assert attention.typing.output.shape[0].static == 1
    assert named(found, ".prox").typing.output.shape[0].static == 1
    assert named(found, ".projection").typing.output.shape[0] == keys.shape[0]


def test_earlier_layers_have_all_of_them() -> None:
    chain = f"patchify(2) -> prepend(c) -> compress(2, rank = 4) -> {HEAD}"
    found = [
        node.typing.output.shape[0].static
        for node in lowered(picture(chain)).graph.nodes
        if node.word == "attention"
    ]
    assert found == [7, 1]


def test_heads_that_read_different_tokens_get_all_that_they_read() -> None:
    found = lowered(CORNERS["several read"])
    assert named(found, ".attention").typing.output.shape[0].static == 3  # the class token and two others
    pooled = lowered(CORNERS["drop"])
    assert named(pooled, ".attention").typing.output.shape[0].static == 6


def test_causal_attention_is_narrowed_to_its_last_query_alone() -> None:
    for corner, count, causal in (
        ("causal, the last", 1, False),
        ("causal, the last of texts", 1, False),
        ("causal, the first", 8, True),
    ):
        attention = named(lowered(CORNERS[corner]), ".attention")
        assert attention.typing.output.shape[0].bound == count, corner
        assert attention.operator.causal is causal, corner  # type: ignore[attr-defined]


def test_what_an_output_reads_is_not_narrowed() -> None:
    found = lowered(
        picture(f"patchify(2) -> prepend(c) -> {HEAD}")
        .replace("output y", "output y, h")
        .replace(
            "y = x -> patchify(2) -> prepend(c) -> compress(2, rank = 4) -> sparsify ->",
            "h = x -> patchify(2) -> prepend(c) -> compress(2, rank = 4) -> sparsify\n y = h ->",
        )
    )
    assert named(found, ".attention").typing.output.shape[0].static == 7


# ------------------------------------------------------------------ rows


@pytest.mark.parametrize("corner", ["compress", "a vit layer", "select", "inverse learned", "an affine net"])
def test_between_attention_no_step_knows_of_samples(corner: str) -> None:
    """Every product with a matrix is one of rows: each of its inputs is flat, and so is what it gives."""
    found = lowered(CORNERS[corner])
    products = [node for node in found.graph.nodes if node.word == "affine"]
    assert products
    for node in products:
        assert all(kinds_given(found.graph, node)) and node.typing.output.flat, node.name
    for node in found.graph.nodes:
        if node.word == "attention":
            assert not any(kinds_given(found.graph, node))


def test_outputs_have_their_batch_axis_and_vectors_are_left_alone() -> None:
    for corner, text in CORNERS.items():
        graph = lowered(text).graph
        assert not any(graph.type_of(value).flat for value in graph.outputs.values()), corner
    assert words(lowered(CORNERS["vectors"])) == {"standardise": 1, "affine": 1}


# ------------------------------------------------------------------ the whole


def test_the_graph_is_what_graphs_are() -> None:
    """Inputs and outputs are the network's; weights are those that are read, frozen, of their slots' shapes."""
    for corner, text in CORNERS.items():
        source = graph_of(text)
        found = lowered(text)
        graph = found.graph
        assert graph.outputs.keys() == source.outputs.keys()
        for name, value in graph.outputs.items():
            assert graph.type_of(value) == source.type_of(source.outputs[name]), corner
        given, wanted = ({n: e.type for n, e in g.export_inputs.items()} for g in (graph, source))
        assert given == wanted, corner
        assert {path: array.shape for path, array in found.weights.items()} == {
            path: slot.shape for path, slot in graph.slots.items()
        }, corner
        assert graph.frozen == graph.slots.keys() and graph.parameters == 0
        assert all(path.startswith(tuple(source.scopes) + tuple(source.slots)) for path in graph.slots)
        assert {ref.slot for node in graph.nodes for ref in node.weights.values()} == graph.slots.keys(), (
            corner
        )
        assert all(Value(node.name).node in graph.exported for node in graph.nodes), corner


def test_lowering_twice_gives_the_same() -> None:
    one, two = (lowered(CORNERS["a vit layer"]) for _ in range(2))
    assert [node.name for node in one.graph.nodes] == [node.name for node in two.graph.nodes]
    assert one.effects == two.effects
    assert all((one.weights[path] == two.weights[path]).all() for path in one.weights)


def test_what_is_no_choice_is_an_error() -> None:
    net = perturbed(tokens("sparsify"))
    with pytest.raises(UserError, match="did you mean `fold`"):
        crate_dsl.lower(net, "folt")
    with pytest.raises(UserError, match="names some rewrites and leaves out others"):
        crate_dsl.lower(net, "fold,-norm")
    assert {effect.rewrite for effect in lowered(tokens("sparsify"), "-fold").effects} == REWRITES.keys() - {
        "fold"
    }


def test_time_grows_with_the_number_of_layers() -> None:
    def best(depth: int) -> float:
        graph = graph_of(
            "model m {\n input z : float[7, 12]\n"
            f" stage s = repeat({depth}) {{ compress(2, rank = 4) sparsify }}\n y = z -> s\n output y\n}}"
        )
        weights = plain_weights(graph, crate_dsl.build(graph))
        return min(Timer(lambda: lower_graph(graph, weights)).repeat(4, 1))

    assert best(200) < LINEAR * best(50)
