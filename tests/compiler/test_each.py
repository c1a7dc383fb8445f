"""`each { … }`: a body on every item of a leading axis, against the same body on items one by one."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor

import crate_dsl
from crate_dsl.compiler.lower import REWRITES
from crate_dsl.compiler.network import Network
from crate_dsl.compiler.operators import Port
from crate_dsl.compiler.prove import perturb
from crate_dsl.compiler.steps.each.operator import Fold, Unfold
from crate_dsl.compiler.types import floats
from crate_dsl.compiler.write_torch import TorchWriter, torch_source
from crate_dsl.language.source import Source
from crate_dsl.workspace import Target, check_text, load_source
from tests.lower.holding import hold
from tests.steps.harness import step

#: Rounding of float32 over a few steps on numbers of size 1, relative to the largest result.
SINGLE = 1e-5


def spec(inputs: str, body: str, more: str = "") -> str:
    return f"model m {{\n input x : {inputs}\n {more}\n y = x -> {body}\n output y\n}}\n"


def built(text: str) -> Network:
    net = crate_dsl.build(load_source(Source("m.crate", text), Target("m.crate")), seed=2).eval()
    perturb(net, net.graph.slots)
    return net


ENCODER = (
    "learn c : float[12] = normal(1)\n stage s = patchify(2) -> linear(12) -> prepend(c) -> position(sincos)"
    " -> compress(3, rank = 4) -> sparsify -> norm -> select(c)"
)
#: For each kind of item: the spec, and the same with one item as the whole sample.
ITEMS = {
    "pictures": (spec("float[3, 2, 4, 6]", "each { s }", ENCODER), spec("float[2, 4, 6]", "s", ENCODER)),
    "one picture": (spec("float[1, 2, 4, 6]", "each { s }", ENCODER), spec("float[2, 4, 6]", "s", ENCODER)),
    "tokens": (
        spec("float[4, 7, 12]", "each { compress(2, rank = 5) -> sparsify -> residual { linear(12) -> gelu } }"),
        spec("float[7, 12]", "compress(2, rank = 5) -> sparsify -> residual { linear(12) -> gelu }"),
    ),
    "texts": (
        spec("float[4, n <= 9, 12]", "each { attend(3) -> linear(5) }"),
        spec("float[n <= 9, 12]", "attend(3) -> linear(5)"),
    ),
    "numbers": (
        spec("index(17)[5, n <= 9]", "each { embed(8) -> pool(max) }"),
        spec("index(17)[n <= 9]", "embed(8) -> pool(max)"),
    ),
    "vectors": (
        spec("float[5, 8]", "each { norm -> linear(3) -> silu }"),
        spec("float[8]", "norm -> linear(3) -> silu"),
    ),
    "a repeat": (
        spec("float[5, 7, 8]", "each { repeat(2) { compress(2, rank = 3) sparsify } }"),
        spec("float[7, 8]", "repeat(2) { compress(2, rank = 3) sparsify }"),
    ),
    "in a repeat": (
        spec("float[5, 7, 8]", "repeat(2) { each { compress(2, rank = 3) sparsify } }"),
        spec("float[7, 8]", "repeat(2) { compress(2, rank = 3) sparsify }"),
    ),
    "a graph": (
        spec("float[5, 7, 8]", "each { input z  learn g : float[8] = normal(1)  w = z -> norm  output z + g * w }"),
        spec("float[7, 8]", "b()").replace(
            "model", "block b() { input z  learn g : float[8] = normal(1)  w = z -> norm  output z + g * w }\nmodel"
        ),
    ),
}  # fmt: skip


def given(net: Network, batch: int = 3) -> Tensor:
    type_ = net.graph.inputs["x"].type
    generator = torch.Generator().manual_seed(4)
    shape = (batch, *type_.sizes({"n": 6}))
    if type_.kind == "index":
        return torch.randint(0, type_.classes or 1, shape, generator=generator)
    return torch.randn(shape, generator=generator)


def apart(found: Tensor, wanted: Tensor) -> float:
    assert found.shape == wanted.shape
    found, wanted = found.detach(), wanted.detach()
    return float((found - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("name", ITEMS)
def test_items_are_treated_one_by_one(name: str, tmp_path: Path) -> None:
    net, alone = (built(text) for text in ITEMS[name])
    alone.load_state_dict(net.state_dict())
    x = given(net)
    wanted = torch.stack([alone(item) for item in x.unbind(1)], 1)
    assert apart(net(x), wanted) < SINGLE
    count = x.shape[1]
    assert net.graph.flops == count * alone.graph.flops > 0
    assert net.graph.parameters == alone.graph.parameters
    hold(net, "none", "all", *(f"-{rewrite}" for rewrite in REWRITES))
    assert crate_dsl.export(net.graph, net, tmp_path / "net.onnx").passed
    assert crate_dsl.export(net.graph, net, tmp_path / "net.onnx", lower="none").passed


def test_each_inside_each() -> None:
    net = built(spec("float[3, 5, 7, 8]", "each { each { attend(2) -> pool } -> compress(2, rank = 3) }"))
    alone = built(spec("float[5, 7, 8]", "each { attend(2) -> pool } -> compress(2, rank = 3)"))
    alone.load_state_dict(net.state_dict())
    x = given(net, 2)
    assert apart(net(x), torch.stack([alone(item) for item in x.unbind(1)], 1)) < SINGLE
    assert sorted(set(net.graph.items.values())) == [1, 3, 15]
    hold(net, "all")


def test_what_stands_around_each_is_lowered_right(tmp_path: Path) -> None:
    body = (
        "patchify(2) -> linear(12) -> each { norm -> linear(12) -> scale(0.5) } -> compress(2, rank = 4) -> norm\n"
        " z = y -> prepend(c) -> sparsify -> each { linear(3) -> linear(3) } -> drop(c)\n"
        " w = z -> keep(patches) -> pool"
    )
    text = spec("float[2, 4, 6]", body, "learn c : float[12] = normal(1)").replace("output y", "output z, w")
    net = built(text)
    assert str(net.graph.type_of(net.graph.outputs["z"]).layout) == "patches:6(2x3)"
    hold(net, "none", "all", *REWRITES, *(f"-{rewrite}" for rewrite in REWRITES))
    assert crate_dsl.export(net.graph, net, tmp_path / "net.onnx").passed


def test_a_stage_with_each_takes_any_number_of_items() -> None:
    text = spec(
        "float[3, 7, 8]", "s", "input w : float[5, 7, 8]\n stage s = each { attend(2) -> pool } -> norm"
    )
    net = built(text.replace("output y", "v = w -> s\n output y, v"))
    x, w = torch.randn(2, 3, 7, 8), torch.randn(2, 5, 7, 8)
    found = net(x, w)
    assert apart(net(w[:, :3], w)["y"], found["v"][:, :3]) < SINGLE
    hold(net, "all")


def test_it_compiles_and_exports_to_torch() -> None:
    net = built(ITEMS["pictures"][0])
    x = given(net)
    compiled = torch.compile(copy.deepcopy(net), backend="eager", fullgraph=True)
    assert apart(compiled(x), net(x)) < SINGLE
    batch = torch.export.Dim("batch", min=2, max=64)
    exported = torch.export.export(net, (x,), dynamic_shapes=({0: batch},)).module()
    assert apart(exported(given(net, 5)), net(given(net, 5))) < SINGLE


def test_the_text_reads_like_the_spec() -> None:
    graph = built(ITEMS["pictures"][0]).graph
    body = torch_source(graph).split("class M(Network)")[1]
    lines = [line.strip() for line in body.splitlines() if "=" in line and "accept" not in line]
    assert lines == [
        "y = self.y.fold(x)  # float[2, 4, 6]",
        "y = self.s(y, self.c)  # float[12]",
        "y = self.y.unfold(y, like=x)  # float[3, 12]",
    ]


def test_an_objective_reads_items() -> None:
    text = (
        "model m {\n input image : float[1, 8, 8]\n stage s = patchify(4) -> linear(6) -> pool\n"
        " views = image -> rotations\n scores = views -> each { s -> linear(4) }\n y = image -> s\n"
        " output y\n objective rotation(scores)\n}"
    )
    net = built(text)
    assert "self.net.s(" in TorchWriter(net.graph).objective().source
    crate_dsl.Objective(net)({"image": torch.randn(3, 1, 8, 8)}).backward()
    assert all(weight.grad is not None for weight in net.parameters())


def test_batches_of_other_sizes_have_other_names_in_the_file(tmp_path: Path) -> None:
    net = built(ITEMS["pictures"][0])
    crate_dsl.export(net.graph, net, tmp_path / "net.onnx", lower="none")
    values = onnx.load(tmp_path / "net.onnx").graph.value_info
    batches = {value.name: value.type.tensor_type.shape.dim[0].dim_param for value in values}
    assert batches["y.fold:0"] == batches["s.compress:0"] == "3 * batch"


@pytest.mark.parametrize("shape", [(7, 11), (3, 4, 5)])
def test_fold_and_unfold_are_the_formula(shape: tuple[int, ...]) -> None:
    x = torch.randn(3, 5, *shape)
    folded = step(Fold(count=5), floats(5, *shape))
    wanted = torch.stack([x[b, v] for b in range(3) for v in range(5)])
    assert torch.equal(folded.module(x), wanted)
    assert np.array_equal(folded.onnx(x)[0], wanted.numpy())
    back = step(Unfold(like=Port(floats(5, *shape))), floats(*shape))
    assert torch.equal(back.module(wanted, like=x), x)
    assert np.array_equal(back.onnx(wanted, like=x)[0], x.numpy())


@pytest.mark.parametrize(
    ("code", "inputs", "body"),
    [
        ("E0533", "float[8]", "each { relu }"),
        ("E0533", "float[n <= 5, 8]", "each { relu }"),
        ("E0511", "float[4, 8]", "each"),
        ("E0303", "float[4, 8]", "each(2) { relu }"),
        ("E0508", "float[4, 8]", "each { input a  input b  output a + b }"),
        ("E0202", "float[4, 8]", "each { relu -> nrm }"),
        ("E0503", "index(9)[4, 8]", "each { mask_tokens(0.5, fill = 3) }"),
        ("E0534", "float[4, 8]", "each { norm -> scale(w) }"),
        ("E0534", "float[4, 7, 8]", "each { attend(2, mask = kept) }"),
        ("E0534", "float[4, 7, 8]", "each { residual { r(kept = kept) } }"),
        ("E0205", "float[4, 7, 8]", "each { input a  output a -> attend(2, mask = kept) }"),
        ("E0531", "float[4, 7, 8]", "e -> inverse(e, mode = learned)"),
    ],
)
def test_a_mistake_is_told(code: str, inputs: str, body: str) -> None:
    more = "input kept : bool[7]\n input u : float\n w = 2 * u"
    stages = "stage r = { input z  input kept  output z -> attend(2, mask = kept) }\n stage e = each { norm }"
    text = spec(inputs, body, f"{more}\n {stages}")
    assert [found.code for found in check_text("m.crate", text) if found.code[0] == "E"] == [code]
