"""A lowered network is a torch module like others: copied, saved, compiled, exported; and it is not trained."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor

import crate_dsl
from crate_dsl.compiler.network import Network
from crate_dsl.language.diagnostics import UserError
from tests.lower.corners import CORNERS, picture, texts
from tests.lower.holding import ROUNDING, feeds, perturbed, results

TEXT = picture(
    "patchify(2) -> linear(12) -> prepend(c) -> position(learned) -> s -> s -> select(c) -> norm -> linear(5)",
    "stage s = repeat(2) { compress(2, rank = 4) sparsify }",
)


@pytest.fixture(scope="module")
def nets() -> tuple[Network, Network]:
    """A network and what it is lowered to. Tests leave them as they are."""
    net = perturbed(TEXT)
    return net, crate_dsl.lower(net)


def images(batch: int) -> Tensor:
    return torch.randn(batch, 3, 4, 6, generator=torch.Generator().manual_seed(batch))


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_any_batch(nets: tuple[Network, Network], batch: int) -> None:
    net, fast = nets
    with torch.no_grad():
        wanted = net(images(batch))
    assert fast(images(batch)).shape == (batch, 5)
    assert (fast(images(batch)) - wanted).abs().max() < ROUNDING * wanted.abs().max()


def test_a_network_is_left_as_it_is() -> None:
    net = perturbed(TEXT).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    graph = net.graph
    fast = crate_dsl.lower(net)
    assert net.training and net.graph is graph and all(value.requires_grad for value in net.parameters())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    with torch.no_grad():
        fast(images(2))
        for weight in net.parameters():
            weight.zero_()
    assert any(bool(weight.any()) for weight in fast.parameters()), "weights are its own"


def test_it_is_not_trained(nets: tuple[Network, Network]) -> None:
    fast = nets[1]
    assert not fast.training
    assert not any(weight.requires_grad for weight in fast.parameters())
    assert not fast(images(2)).requires_grad
    with pytest.raises(RuntimeError, match="does not require grad"):
        fast(images(2)).sum().backward()


def test_weights_have_names_of_the_spec(nets: tuple[Network, Network]) -> None:
    net, fast = nets
    names = list(fast.state_dict())
    assert "s.0.sparsify.code.matrix" in names and "s.1.compress.projection.matrix" in names
    owners = {path.rpartition(".")[0] for path in net.state_dict()} | {""}
    for name in names:
        assert any(name.startswith(owner) for owner in owners), name
    # The stage is used twice. All its maps are the same in both uses.
    assert sum("projection.matrix" in name for name in names) == 2


def test_copies_and_pickles(nets: tuple[Network, Network]) -> None:
    fast = nets[1]
    wanted = fast(images(2))
    assert torch.equal(copy.deepcopy(fast)(images(2)), wanted)
    assert torch.equal(pickle.loads(pickle.dumps(fast))(images(2)), wanted)


def test_weights_are_saved_and_loaded(nets: tuple[Network, Network], tmp_path: Path) -> None:
    net, fast = nets
    torch.save(fast.state_dict(), tmp_path / "weights.pt")
    other = crate_dsl.lower(crate_dsl.build(net.graph, seed=5))
    assert not torch.equal(other(images(2)), fast(images(2)))
    other.load_state_dict(torch.load(tmp_path / "weights.pt"))
    assert torch.equal(other(images(2)), fast(images(2)))


def test_other_precisions_of_what_is_lowered(nets: tuple[Network, Network]) -> None:
    net, fast = nets
    exact = copy.deepcopy(fast).double()
    wanted = copy.deepcopy(net).double()(images(3).double())
    assert (exact(images(3).double()) - wanted).abs().max() < ROUNDING * wanted.abs().max()
    with pytest.raises(UserError, match="float32"):
        crate_dsl.lower(copy.deepcopy(net).double())


@pytest.mark.parametrize("corner", ["select", "compress masked texts", "select from texts"])
def test_torch_exports_it_with_a_free_batch(corner: str) -> None:
    fast = crate_dsl.lower(perturbed(CORNERS[corner]))
    first, *others = feeds(fast.graph)
    batch = torch.export.Dim("batch", min=1)
    shapes = {name: {0: batch} for name in first}
    program = torch.export.export(fast, (), first, dynamic_shapes=shapes)
    for given in others:
        if all(given[name].shape[1:] == first[name].shape[1:] for name in first):
            (wanted,) = results(fast, given).values()
            assert torch.allclose(program.module()(**given), wanted, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "text", [TEXT, texts("compress(2, rank = 4, mask = kept) -> sparsify", "input kept : bool[n]")]
)
def test_torch_compiles_it_whole(text: str) -> None:
    torch.compiler.reset()
    net = perturbed(text)
    fast = torch.compile(crate_dsl.lower(net), fullgraph=True)
    for given in feeds(net.graph):
        with torch.no_grad():
            wanted, found = net(**given), fast(**given)
        assert (found - wanted).abs().max() < ROUNDING * wanted.abs().max()
