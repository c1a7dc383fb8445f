"""Masked completion as whole networks: what is hidden is not seen, and is what the loss is about."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import crate_dsl
from crate_dsl.compiler.network import Network
from tests.compiler.specs import codes, elaborated, found

DESIGN = Path(__file__).parents[1] / "data" / "design" / "crate_mae.crate"
#: Float32 means of some hundred numbers of size one, in two orders.
FLOAT32 = 1e-6
#: Some layers in onnxruntime and torch.
PARITY = 1e-5

#: Masked autoencoding: the encoder sees the visible patches alone. Pictures are 4 x 6 patches.
MAE = """
model mae(dim = 12, depth = 2, decoder_dim = 8, decoder_depth = 3, patch = 2, seen = 7) {
    input image   : float[3, 8, 12]
    input visible : index(24)[seen] = choose
    learn class_token : float[dim] = normal(0.02)
    learn mask_token  : float[decoder_dim] = normal(0.02)

    stage embedding = linear(dim) -> position(sincos)
    stage encoder = repeat(depth) {
        compress(3, rank = dim / 3)
        sparsify(step = 0.1, penalty = 0.5)
    } -> norm
    stage decoder = position(sincos) -> repeat(decoder_depth) {
        compress(2, rank = decoder_dim / 2)
        sparsify(step = 0.1, penalty = 0.5)
    } -> norm

    patches   = image -> patchify(patch)
    tokens    = patches -> embedding
    code      = tokens -> gather(visible) -> prepend(class_token) -> encoder
    completed = code -> linear(decoder_dim) -> drop(class_token) -> scatter(visible, fill = mask_token)
                     -> decoder -> linear(patch * patch * 3)
    features  = tokens -> prepend(class_token) -> encoder -> select(class_token)

    output features, completed
    objective mse(completed, patches, except = visible)
}
"""

#: The encoder sees every token, hidden ones as a learned one.
MASKED = """
model masked(dim = 12, patch = 2) {
    input image  : float[3, 8, 12]
    input hidden : bool[24] = choose(0.75)
    learn class_token : float[dim] = normal(0.02)
    learn mask_token  : float[dim] = normal(0.02)

    stage encoder = repeat(2) {
        compress(3, rank = dim / 3)
        sparsify(step = 0.1, penalty = 0.5)
    }

    patches   = image -> patchify(patch)
    completed = patches -> linear(dim) -> mask(hidden, fill = mask_token) -> prepend(class_token) -> position(sincos)
                        -> encoder -> norm(eps = 1e-6) -> linear(patch * patch * 3) -> drop(class_token)

    output completed
    objective mse(completed, patches, on = hidden, normalize = patch)
}
"""


def network(text: str) -> Network:
    return crate_dsl.build(elaborated(text), seed=0)


def images(batch: int = 5) -> Tensor:
    return torch.randn(batch, 3, 8, 12, generator=torch.Generator().manual_seed(0))


def draw(name: str, batch: int = 5) -> Tensor:
    """What the spec draws: seven visible places, or all others marked."""
    order = torch.rand(batch, 24, generator=torch.Generator().manual_seed(1)).argsort(-1)
    visible = order[:, :7]
    if name == "visible":
        return visible
    return torch.ones(batch, 24, dtype=torch.bool).scatter(1, visible, value=False)


def patches_of(image: Tensor) -> Tensor:
    """(B, 3, 8, 12) -> (B, 24, 12)."""
    return image.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)


def completed(net: Network, image: Tensor, name: str, value: Tensor) -> Tensor:
    with torch.no_grad():
        result = net(image, **{name: value})
    return result if isinstance(result, Tensor) else result["completed"]


NETWORKS = pytest.mark.parametrize(("text", "name"), [(MAE, "visible"), (MASKED, "hidden")])


@NETWORKS
def test_what_is_hidden_is_not_seen(text: str, name: str) -> None:
    net, image, drawn = network(text), images(), draw(name)
    other = images(10)[5:]
    hidden = draw("hidden")[..., None].expand(5, 24, 12)
    mixed = torch.where(hidden, patches_of(other), patches_of(image))
    picture = mixed.reshape(5, 4, 6, 2, 2, 3).permute(0, 5, 1, 3, 2, 4).reshape(5, 3, 8, 12)
    assert not torch.equal(picture, image)
    assert torch.equal(completed(net, picture, name, drawn), completed(net, image, name, drawn))
    assert not torch.equal(completed(net, other, name, drawn), completed(net, image, name, drawn))


@NETWORKS
def test_the_loss_is_about_what_is_hidden(text: str, name: str) -> None:
    net, image, drawn = network(text), images(), draw(name)
    target = patches_of(image)
    if name == "hidden":
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
    errors = (completed(net, image, name, drawn) - target).square().mean(-1)
    marked = draw("hidden").float()
    loss = crate_dsl.Objective(net)({"image": image, name: drawn})
    torch.testing.assert_close(loss.detach(), (errors * marked).sum() / marked.sum(), rtol=0, atol=FLOAT32)


@NETWORKS
def test_it_draws_where_nothing_is_given_and_learns(text: str, name: str) -> None:
    net, image = network(text), images()
    objective = crate_dsl.Objective(net)
    torch.manual_seed(0)
    losses = [float(objective({"image": image}).detach()) for _ in range(3)]
    assert len(set(losses)) == 3
    torch.manual_seed(0)
    assert float(objective({"image": image}).detach()) == losses[0]
    batch = {"image": image, name: draw(name)}
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    before = float(objective(batch).detach())
    for _ in range(30):
        optimizer.zero_grad()
        objective(batch).backward()
        optimizer.step()
    assert float(objective(batch).detach()) < 0.8 * before
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in net.parameters())


@NETWORKS
def test_it_exports_with_its_draw_as_an_input(text: str, name: str, tmp_path: Path) -> None:
    net, image, drawn, file = network(text), images(), draw(name), tmp_path / "completion.onnx"
    assert crate_dsl.export(net.graph, net, file).passed
    session = crate_dsl.open_session(file, provider="cpu", seed=3)
    assert list(session.inputs) == ["image", name] and list(session.draws) == [name]
    given = session(image=image.numpy(), **{name: drawn.numpy()})["completed"]
    np.testing.assert_allclose(given, completed(net, image, name, drawn), atol=PARITY)
    first, second = (session(image=image.numpy())["completed"] for _ in range(2))
    again = crate_dsl.open_session(file, provider="cpu", seed=3)(image=image.numpy())["completed"]
    assert np.array_equal(first, again) and not np.array_equal(first, second)


def test_what_is_exported_may_need_no_draw(tmp_path: Path) -> None:
    graph = elaborated(MAE.replace("output features, completed", "output features"))
    assert list(graph.export_inputs) == ["image"]
    net = crate_dsl.build(graph)
    assert crate_dsl.Objective(net)({"image": images()}).isfinite()
    assert crate_dsl.export(graph, net, tmp_path / "features.onnx").passed


def test_the_published_size_has_its_parameters() -> None:
    """As counted by hand: blocks of 3 d^2 + 5 d, linear maps with bias, norms of 2 d, two learned tokens."""

    def blocks(count: int, width: int) -> int:
        return count * (3 * width**2 + 5 * width) + 2 * width

    def linear(into: int, out: int) -> int:
        return into * out + out

    graph = crate_dsl.load(f"{DESIGN}:mae")
    maps = linear(768, 768) + linear(768, 512) + linear(512, 768)
    assert graph.parameters == blocks(12, 768) + blocks(8, 512) + maps + 768 + 512
    assert [str(graph.type_of(value)) for value in graph.outputs.values()] == [
        "float[768]",
        "float[196, 768]",
    ]


# ------------------------------------------------------------------ a word that Python keeps for itself


def test_except_is_spelled_as_the_language_spells_it() -> None:
    (unknown,) = found(MAE.replace("except = visible", "except_ = visible"))
    assert (unknown.code, unknown.help) == ("E0301", ("did you mean `except`?",))
    (twice,) = found(MAE.replace("except = visible", "except = visible, except = visible"))
    assert (twice.code, twice.message) == ("E0308", "`except` of `mse` is given twice")
    (kind,) = found(MAE.replace("except = visible", "except = 3"))
    assert (kind.code, kind.message) == ("E0307", "`except` of `mse` is a tensor, not 3")
    (both,) = found(MAE.replace("except = visible", "on = visible, except = visible"))
    assert both.code == "E0305" and both.where is not None
    assert both.where.span.text == "visible"
    assert codes(MAE.replace("except = visible", "on = visible")) == ["E0443"]
