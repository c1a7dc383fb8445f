"""What a step knows of its tokens belongs to the use: one stage on pictures of several sizes, one set of weights."""

from __future__ import annotations

import copy
import pickle
from math import exp
from pathlib import Path

import pytest
import torch
from torch import Tensor

import crate_dsl
from crate_dsl.compiler.modules import ByShape
from crate_dsl.compiler.network import Network
from crate_dsl.compiler.prove import perturb
from crate_dsl.language.source import Source
from crate_dsl.workspace import Target, check_text, load_source
from tests.lower.holding import hold

#: Rounding of float32 over a few steps on numbers of size 1, relative to the largest result.
SINGLE = 1e-5

#: Stages of pictures, each with a step that knows something of its tokens.
STAGES = {
    "a grid resized": "patchify(2) -> linear(12) -> position(learned, grid = [4, 6], resize = bicubic)"
    " -> prepend(c) -> compress(2, rank = 5) -> select(c)",
    "a grid of both sizes": "patchify(2) -> linear(12) -> position(learned, grid = [2, 3], resize = bicubic) -> gelu",
    "sines": "patchify(2) -> linear(12) -> position(sincos) -> append(c) -> sparsify -> select(c)",
    "a length": "patchify(2) -> position(learned, length = 24) -> linear(12) -> pool",
    "the last token": "patchify(2) -> linear(12) -> append(c) -> compress(3, rank = 4) -> drop(patches) -> pool",
    "pictures again": "patchify(2) -> linear(8) -> gelu -> linear(8) -> unpatchify",
    "kept": "patchify(2) -> linear(12) -> append(c) -> attend(3) -> keep(patches) -> pool(max)",
    "a layer": "patchify(2) -> linear(12) -> repeat(2) { position(sincos) compress(2, rank = 4) }",
}
SIZES = {"large": (2, 8, 12), "small": (2, 4, 6), "square": (2, 6, 6)}


def spec(stage: str, *names: str) -> str:
    inputs = "\n ".join(f"input {name}x : float{list(SIZES[name])}" for name in names)
    uses = "\n ".join(f"{name} = {name}x -> s" for name in names)
    learn = "learn c : float[12] = normal(1)" if "(c)" in stage else ""
    head = f"model m {{\n {inputs}\n {learn}\n stage s = {stage}"
    return f"{head}\n {uses}\n output {', '.join(names)}\n}}\n"


def built(text: str) -> Network:
    net = crate_dsl.build(load_source(Source("m.crate", text), Target("m.crate")), seed=2).eval()
    perturb(net, net.graph.slots)
    return net


def pictures(batch: int = 3, *names: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(6)
    return {f"{name}x": torch.randn(batch, *SIZES[name], generator=generator) for name in names or SIZES}


def apart(found: Tensor, wanted: Tensor) -> float:
    found, wanted = found.detach(), wanted.detach()
    assert found.shape == wanted.shape
    return float((found - wanted).abs().max() / wanted.abs().max())


# ------------------------------------------------------------------ laws


@pytest.mark.parametrize("name", STAGES)
def test_every_use_is_a_network_of_its_own_with_the_same_weights(name: str) -> None:
    net = built(spec(STAGES[name], *SIZES))
    given = pictures()
    found = net(**given)
    for size in SIZES:
        alone = built(spec(STAGES[name], size))
        assert alone.state_dict().keys() == net.state_dict().keys()
        alone.load_state_dict(net.state_dict())
        assert apart(found[size], alone(given[f"{size}x"])) < SINGLE


@pytest.mark.parametrize("name", STAGES)
def test_the_order_of_uses_changes_nothing(name: str) -> None:
    one, two = built(spec(STAGES[name], *SIZES)), built(spec(STAGES[name], *reversed(SIZES)))
    two.load_state_dict(one.state_dict())
    for size, value in one(**pictures()).items():
        assert apart(two(**pictures())[size], value) < SINGLE


@pytest.mark.parametrize("name", STAGES)
def test_it_is_lowered_and_exported(name: str, tmp_path: Path) -> None:
    net = built(spec(STAGES[name], *SIZES))
    hold(net, "none", "all", "parts", "-parts", "-rows", "constants", "demand", "patches")
    for lower in ("all", "none"):
        assert crate_dsl.export(net.graph, net, tmp_path / "net.onnx", lower=lower).passed


@pytest.mark.parametrize("name", STAGES)
def test_it_is_traced_step_by_step(name: str) -> None:
    net = built(spec(STAGES[name], *SIZES))
    given = pictures()
    taps = crate_dsl.trace(net, **given)
    for size, value in net(**given).items():
        assert apart(taps[net.graph.outputs[size].node], value) < SINGLE


@pytest.mark.parametrize("name", ["a grid resized", "sines", "pictures again", "a layer"])
def test_it_compiles_and_exports_to_torch(name: str) -> None:
    net = built(spec(STAGES[name], *SIZES))
    given = pictures()
    compiled = torch.compile(copy.deepcopy(net), backend="eager", fullgraph=True)
    batch = torch.export.Dim("batch", min=2, max=64)
    exported = torch.export.export(net, (), given, dynamic_shapes={key: {0: batch} for key in given}).module()
    assert set(dict(exported.named_parameters())) == set(net.state_dict())
    for size, value in net(**given).items():
        assert apart(compiled(**given)[size], value) < SINGLE
        assert apart(exported(**given)[size], value) < SINGLE
    five = pictures(5)
    for size, value in net(**five).items():
        assert apart(exported(**five)[size], value) < SINGLE


# ------------------------------------------------------------------ one module, several uses


def test_weights_are_one_set_wherever_a_module_goes() -> None:
    net = built(spec(STAGES["a grid resized"], *SIZES))
    step = net.get_submodule("s.position")
    assert isinstance(step, ByShape) and len(step.uses) == 3
    assert [name for name in net.state_dict() if "position" in name] == ["s.position.table"]
    assert sum(weight.numel() for weight in net.parameters()) == net.graph.parameters
    for moved in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), copy.deepcopy(net).double()):
        table = moved.get_parameter("s.position.table")
        with torch.no_grad():
            table.mul_(3.0)
        dtype = table.dtype
        given = {key: value.to(dtype) for key, value in pictures().items()}
        changed = moved(**given)
        for size, value in net(**pictures()).items():
            assert apart(changed[size].float(), value) > 1e-3
        changed["small"].sum().backward()
        assert table.grad is not None


def test_a_step_without_such_knowledge_stays_one_module() -> None:
    net = built(spec(STAGES["a grid resized"], *SIZES))
    assert not isinstance(net.get_submodule("s.linear"), ByShape)
    once = built(spec(STAGES["a grid resized"], "large"))
    assert not any(isinstance(module, ByShape) for module in once.modules())


def test_a_shape_that_no_use_has_is_refused() -> None:
    net = built(spec(STAGES["sines"], *SIZES))
    with pytest.raises(ValueError, match="not used on"):
        net.s(torch.zeros(1, 2, 10, 2), net.c)


def test_a_slow_copy_takes_other_sizes_than_its_student(tmp_path: Path) -> None:
    text = spec(STAGES["a grid resized"], "large", "small", "square")
    text = text.replace("square = squarex -> s", "stage t = ema(s, momentum = 0.5)\n square = squarex -> t")
    net = built(text)
    net.average_(momentum=0)
    plain = built(spec(STAGES["a grid resized"], *SIZES))
    plain.load_state_dict({name: net.state_dict()[name] for name in plain.state_dict()})
    for size, value in plain(**pictures()).items():
        assert apart(net(**pictures())[size], value) < SINGLE
    assert crate_dsl.export(net.graph, net, tmp_path / "net.onnx").passed


def test_tokens_go_back_to_where_each_use_has_them() -> None:
    text = (
        "model m {\n input a : float[3, 8]\n input u : index(9)[3]\n input b : float[4, 8]\n input w : index(12)[4]\n"
        " stage s = { input z  input v  output z -> linear(8) -> scatter(v) -> linear(2) }\n"
        " y = a -> s(v = u)\n x = b -> s(v = w)\n output y, x\n}"
    )
    net = built(text)
    a, b = torch.randn(2, 3, 8), torch.randn(2, 4, 8)
    u, w = torch.tensor([[8, 0, 3], [1, 2, 7]]), torch.tensor([[11, 0, 3, 9], [10, 2, 7, 4]])
    found = net(a, u, b, w)
    assert (found["y"].shape, found["x"].shape) == ((2, 9, 2), (2, 12, 2))
    same = text.replace("float[4, 8]", "float[3, 8]").replace("index(12)[4]", "index(12)[3]")
    assert [item.code for item in check_text("m.crate", same)] == ["E0409"]


# ------------------------------------------------------------------ pairing


def test_an_inverse_undoes_every_size() -> None:
    text = (
        "model m {\n input a : float[2, 8, 12]\n input b : float[2, 4, 6]\n"
        " stage s = patchify(2) -> position(learned, grid = [2, 3], resize = bicubic)"
        " -> compress(2, rank = 3, gradient = exact, constraint = orthonormal, norm = none)\n"
        " stage t = inverse(s, mode = certified)\n"
        " y = a -> s -> t\n w = b -> s -> t\n output y, w\n}"
    )
    net = built(text)
    a, b = torch.randn(2, 2, 8, 12), torch.randn(2, 2, 4, 6)
    found = net.double()(a.double(), b.double())
    assert apart(found["y"], a.double()) < 1e-9 and apart(found["w"], b.double()) < 1e-9
    undone = {pair.step: pair.undoes for pair in net.graph.pairs}
    assert undone["t.unpatchify"] == "s.patchify" and undone["t.unpatchify@2"] == "s.patchify@2"


def test_a_certificate_is_that_of_the_use() -> None:
    """The flow back in time stretches by e^(α t), and α = p / (N ε²) is larger where there are fewer tokens."""
    text = (
        "model m {\n input a : float[96, 8]\n input b : float[6, 8]\n"
        " stage s = flow(2, rank = 3, time = 0.1, solver = exact, constraint = orthonormal)\n"
        " stage t = inverse(s, mode = certified)\n y = a -> s -> t\n w = b -> s -> t\n output y, w\n}"
    )
    certificates = [pair.certificate for pair in built(text).graph.pairs]
    for certificate, tokens in zip(certificates, (96, 6), strict=True):
        assert certificate is not None
        assert certificate.stretch == pytest.approx(exp(0.1 * 3 / (tokens * 0.5**2)))


# ------------------------------------------------------------------ what stays a mistake


@pytest.mark.parametrize(
    ("body", "codes"),
    [
        ("p = x -> patchify(2)\n a = p -> prepend(c) -> s\n y = p -> append(c) -> s", ["E0409"]),
        ("p = x -> patchify(2)\n q = w -> patchify(2)\n a = p -> prepend(c) -> s\n b = q -> prepend(c) -> s\n"
         " y = q -> append(c) -> s", ["E0409"]),
        ("p = x -> patchify(2)\n q = w -> patchify(2)\n a = p -> prepend(c) -> s\n y = q -> append(c) -> s", []),
    ],
)  # fmt: skip
def test_only_equal_shapes_with_other_layouts_are_refused(body: str, codes: list[str]) -> None:
    text = (
        "model m {\n input x : float[2, 4, 6]\n input w : float[2, 6, 6]\n learn c : float[8]\n"
        f" stage s = select(c) -> linear(3)\n {body}\n output y\n}}"
    )
    found = check_text("m.crate", text)
    assert [item.code for item in found if item.code[0] == "E"] == codes
    if len(body) > 150 and codes:
        assert "used on tokens c:1 patches:9(3x3)" in str(found[0].also[0].text)


def test_a_length_that_is_open_may_be_any() -> None:
    text = (
        "model m {{\n input x : float[n <= 9, 8]\n input w : float[{}, 8]\n"
        " stage s = position(learned, length = 12) -> linear(3)\n y = x -> s\n v = w -> s\n output y, v\n}}"
    )
    assert [item.code for item in check_text("m.crate", text.format(7))] == []  # both are cut
    assert [item.code for item in check_text("m.crate", text.format(12))] == []  # whole, and longer than 9
    nine = text.replace("length = 12", "length = 9")
    assert [item.code for item in check_text("m.crate", nine.format(9))] == ["E0409"]
