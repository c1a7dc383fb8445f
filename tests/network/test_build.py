"""A spec as a torch module: an ordinary one, whose forward reads like the spec."""

from __future__ import annotations

import copy
import os
import pickle
import traceback
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import crate_dsl
from crate_dsl.compiler.network import Network
from crate_dsl.compiler.write_torch import torch_source
from crate_dsl.language.diagnostics import UserError
from crate_dsl.language.source import Source
from crate_dsl.workspace import Target, load_source

#: Rounding of float32 where the same sums are taken in another order.
SINGLE = 1e-5

TINY = """
model tiny(dim = 12, depth = 2, subspaces = 3, classes = 5) {
    input  image : float[1, 8, 12]
    target label : index(classes)
    learn  class_token : float[dim] = normal(1)

    stage encoder = repeat(depth) {
        compress(subspaces, rank = dim / subspaces)
        sparsify(step = 0.1, penalty = 0.1)
    }

    tokens = image -> patchify(4) -> linear(dim) -> prepend(class_token) -> position(learned)
    logits = tokens -> encoder -> select(class_token) -> norm -> linear(classes)

    output logits
    objective cross_entropy(logits, label)
}
"""


def network(text: str, seed: int = 0) -> Network:
    return crate_dsl.build(load_source(Source("test.crate", text), Target("test.crate")), seed=seed)


@pytest.fixture
def tiny() -> Network:
    return network(TINY)


def pictures(batch: int = 3) -> Tensor:
    return torch.randn(batch, 1, 8, 12, generator=torch.Generator().manual_seed(1))


def batch_of(count: int = 3) -> dict[str, Tensor]:
    return {"image": pictures(count), "label": torch.arange(count) % 5}


def test_it_is_the_published_network(tiny: Network) -> None:
    """The whole forward once more, from the published formulas (CATALOGUE 3.1) and the weights by their paths."""
    w = dict(tiny.state_dict())
    x = pictures().double()
    patches = x.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 4, 5, 1).reshape(3, 6, 16)
    w = {name: value.double() for name, value in w.items()}
    z = patches @ w["tokens.linear.weight"].T + w["tokens.linear.bias"]
    z = torch.cat([w["class_token"].expand(3, 1, 12), z], 1) + w["tokens.position.table"]
    for layer in range(2):
        c, s = f"encoder.{layer}.compress.", f"encoder.{layer}.sparsify."
        h = nn.functional.layer_norm(z, (12,), w[c + "norm_weight"], w[c + "norm_bias"])
        q = (h @ w[c + "subspaces"].T).unflatten(-1, (3, 4)).transpose(1, 2)
        heads = ((q @ q.mT) * 4**-0.5).softmax(-1) @ q
        z = z + heads.transpose(1, 2).flatten(2) @ w[c + "out_weight"].T + w[c + "out_bias"]
        h = nn.functional.layer_norm(z, (12,), w[s + "norm_weight"], w[s + "norm_bias"])
        dictionary = w[s + "dictionary"]
        residual = h @ dictionary.T - h
        z = (h - 0.1 * residual @ dictionary - 0.1 * 0.1).relu()
    h = nn.functional.layer_norm(z[:, 0], (12,), w["logits.norm.weight"], w["logits.norm.bias"])
    wanted = h @ w["logits.linear.weight"].T + w["logits.linear.bias"]
    assert (tiny(pictures()) - wanted).abs().max() < SINGLE


def test_weights_are_called_by_their_paths(tiny: Network) -> None:
    assert list(tiny.state_dict())[:3] == ["class_token", "tokens.linear.weight", "tokens.linear.bias"]
    assert set(tiny.state_dict()) == set(tiny.graph.slots)
    assert sum(p.numel() for p in tiny.parameters()) == tiny.graph.parameters


def test_the_seed_decides_the_weights() -> None:
    first, same, other = network(TINY), network(TINY), network(TINY, seed=1)
    x = pictures()
    assert torch.equal(first(x), same(x))
    assert not torch.equal(first(x), other(x))
    renamed = network(TINY.replace("encoder", "trunk"))
    assert torch.equal(first(x), renamed(x))


def test_initial_values_are_those_declared() -> None:
    net = network(TINY.replace("normal(1)", "uniform(0.5)").replace("dim = 12", "dim = 1200"))
    token = net.class_token
    assert isinstance(token, Tensor)
    assert token.abs().max() <= 0.5 and abs(token.abs().mean() - 0.25) < 0.025


def test_it_copies_pickles_and_moves(tiny: Network) -> None:
    x = pictures()
    wanted = tiny(x)
    duplicate, restored = copy.deepcopy(tiny), pickle.loads(pickle.dumps(tiny))
    assert torch.equal(duplicate(x), wanted) and torch.equal(restored(x), wanted)
    assert type(restored) is type(tiny) and restored.source == tiny.source
    with torch.no_grad():
        next(duplicate.parameters()).add_(1)
    assert torch.equal(tiny(x), wanted)
    assert tiny.double()(x.double()).dtype == torch.float64


def test_the_objective_copies_and_pickles(tiny: Network) -> None:
    objective = crate_dsl.Objective(tiny)
    wanted = objective(batch_of())
    assert torch.equal(copy.deepcopy(objective)(batch_of()), wanted)
    assert torch.equal(pickle.loads(pickle.dumps(objective))(batch_of()), wanted)
    plain = nn.functional.cross_entropy(tiny(pictures()), torch.arange(3))
    torch.testing.assert_close(wanted, plain, rtol=SINGLE, atol=0)
    assert {name.removeprefix("net.") for name in objective.state_dict()} == set(tiny.state_dict())


def test_inputs_are_taken_by_place_and_by_name(tiny: Network) -> None:
    assert torch.equal(tiny(pictures()), tiny(image=pictures()))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.zeros(2, 1, 12, 8), "`image` is [batch, 1, 8, 12], but is given [2, 1, 12, 8]"),
        (torch.zeros(1, 8, 12), "`image` is [batch, 1, 8, 12], but is given [1, 8, 12]"),
        (
            torch.zeros(2, 1, 8, 12, dtype=torch.int64),
            "`image` is a floating-point tensor, but is given torch.int64",
        ),
    ],
)
def test_inputs_that_do_not_fit(tiny: Network, value: Tensor, message: str) -> None:
    with pytest.raises(UserError, match="^" + message.replace("[", r"\[").replace("]", r"\]")):
        tiny(value)
    with pytest.raises(UserError, match="`label` is missing"):
        crate_dsl.Objective(tiny)({"image": pictures()})


def test_gradients_reach_every_weight(tiny: Network) -> None:
    crate_dsl.Objective(tiny)(batch_of()).backward()
    for name, parameter in tiny.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@pytest.mark.slow
def test_it_compiles_whole(tiny: Network) -> None:
    net = torch.compile(tiny, fullgraph=True)
    assert (net(pictures()) - tiny(pictures())).abs().max() < SINGLE
    objective = crate_dsl.Objective(tiny)
    compiled = torch.compile(objective, fullgraph=True)
    assert (compiled(batch_of()) - objective(batch_of())).abs() < SINGLE


def test_torch_exports_it_with_a_dynamic_batch(tiny: Network) -> None:
    program = torch.export.export(
        tiny.eval(), (pictures(),), dynamic_shapes={"image": {0: torch.export.Dim("batch")}}
    )
    x = pictures(5)
    assert (program.module()(x) - tiny(x)).abs().max() < SINGLE


def test_autocast_keeps_the_answer_near(tiny: Network) -> None:
    """bfloat16 has 8 bits of mantissa: a few percent after two layers."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = tiny(pictures())
    assert (half.float() - tiny(pictures())).abs().max() < 0.05


def test_a_traceback_shows_the_generated_line(tiny: Network) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("here")

    tiny.get_submodule("encoder.1.sparsify").register_forward_hook(fail)
    with pytest.raises(RuntimeError) as caught:
        tiny(pictures())
    shown = "".join(traceback.format_exception(caught.value))
    assert "z = self.sparsify(z)  # float[7, 12]" in shown


def test_the_forward_reads_like_the_spec(tiny: Network) -> None:
    assert torch_source(tiny.graph) == (
        '''class EncoderLayer(Scope):
    """A layer of `encoder`."""

    def forward(self, z):
        z = self.compress(z)  # float[7, 12]
        z = self.sparsify(z)  # float[7, 12]
        return z


class Encoder(Scope):
    """`encoder`."""

    def forward(self, z):
        for layer in self.layers:  # 2 layers
            z = layer(z)  # float[7, 12]
        return z


class Tiny(Network):
    """`tiny`."""

    def forward(self, image):
        image = self.accept("image", image)  # float[1, 8, 12]
        tokens = self.tokens.patchify(image)  # float[6, 16]
        tokens = self.tokens.linear(tokens)  # float[6, 12]
        tokens = self.tokens.prepend(tokens, tokens=self.class_token)  # float[7, 12]
        tokens = self.tokens.position(tokens)  # float[7, 12]
        logits = self.encoder(tokens)  # float[7, 12]
        logits = self.logits.select(logits)  # float[12]
        logits = self.logits.norm(logits)  # float[12]
        logits = self.logits.linear(logits)  # float[5]
        return logits
'''
    )


READER = """
model reader(dim = 8, vocab = 11) {
    input ids   : index(vocab)[n <= 6]
    input kept  : bool[n]
    input noise : float[n, dim] = normal(0.5)
    target next : index(vocab)[n]
    learn speed : float = 0.25

    stage embedding = embed(dim)
    stage trunk = {
        input z
        input kept : bool[m <= 6]
        input shift : float[n, dim]
        learn gate : float[dim] = ones
        branch = (z + shift) -> norm
        output gate * (z -> compress(2, rank = 4, mask = kept, step = speed)) + branch
    }
    stage twice = residual { linear(dim) -> gelu }

    words  = ids -> embedding
    first  = words -> position(learned, length = 6) -> trunk(kept = kept, shift = noise)
    second = first -> twice -> twice -> repeat(2) { residual { linear(dim) } } -> frozen(twice)
    scores = second -> transpose(embedding)

    output scores, second
    objective cross_entropy(scores, next) + 0.5 * mse(second, words)
}
"""


@pytest.fixture
def reader() -> Network:
    return network(READER)


def words(batch: int, length: int) -> dict[str, Tensor]:
    ids = torch.randint(0, 11, (batch, length))
    return {"ids": ids, "kept": torch.ones(batch, length, dtype=torch.bool)}


def test_stages_share_and_lengths_are_free(reader: Network) -> None:
    for length in (1, 4, 6):
        given = words(2, length)
        noise = torch.randn(2, length, 8)
        results = reader(**given, noise=noise)
        assert results["scores"].shape == (2, length, 11) and results["second"].shape == (2, length, 8)
    with pytest.raises(UserError, match="but is given"):
        reader(**words(2, 7), noise=torch.randn(2, 7, 8))
    assert "twice.linear.weight" in reader.state_dict()
    assert not any("twice" in name and "_2" in name for name in reader.state_dict())


def test_draws_stand_in_for_inputs_that_nobody_gives(reader: Network) -> None:
    given = words(2, 4)
    torch.manual_seed(0)
    first = reader(**given)["second"]
    second = reader(**given)["second"]
    torch.manual_seed(0)
    assert torch.equal(reader(**given)["second"], first)
    assert not torch.equal(first, second)


def test_frozen_uses_give_no_gradient(reader: Network) -> None:
    """`twice` is trained by its own uses and not by its frozen one: gradients equal those with the last use
    detached.
    """
    objective = crate_dsl.Objective(reader)
    batch = {**words(2, 4), "noise": torch.zeros(2, 4, 8), "next": torch.randint(0, 11, (2, 4))}
    objective(batch).backward()
    trained = reader.get_parameter("twice.linear.weight").grad
    assert trained is not None
    plain = network(READER.replace("frozen(twice)", "twice"))
    crate_dsl.Objective(plain)(batch).backward()
    whole = plain.get_parameter("twice.linear.weight").grad
    assert whole is not None and not torch.allclose(whole, trained)


def test_a_stage_used_frozen_alone_is_not_trained() -> None:
    net = network(TINY.replace("tokens -> encoder ->", "tokens -> frozen(encoder) ->"))
    assert not any(p.requires_grad for name, p in net.named_parameters() if name.startswith("encoder."))
    assert all(p.requires_grad for name, p in net.named_parameters() if not name.startswith("encoder."))
    assert net.graph.parameters == sum(p.numel() for p in net.parameters() if p.requires_grad)


def test_the_larger_network_copies_pickles_compiles_and_exports(reader: Network) -> None:
    given = {**words(2, 4), "noise": torch.randn(2, 4, 8)}
    wanted = reader(**given)["scores"]
    assert torch.equal(pickle.loads(pickle.dumps(reader))(**given)["scores"], wanted)
    assert torch.equal(copy.deepcopy(reader)(**given)["scores"], wanted)
    batch, length = torch.export.Dim("batch"), torch.export.Dim("n", max=6)
    shape = {0: batch, 1: length}
    shapes = {"ids": shape, "kept": shape, "noise": shape}
    program = torch.export.export(reader.eval(), (), given, dynamic_shapes=shapes)
    other = {**words(3, 5), "noise": torch.randn(3, 5, 8)}
    assert (program.module()(**other)["scores"] - reader(**other)["scores"]).abs().max() < SINGLE


def test_a_spec_without_objective_has_none() -> None:
    net = network(
        TINY.replace("    objective cross_entropy(logits, label)\n", "").replace(
            "    target label : index(classes)\n", ""
        )
    )
    with pytest.raises(UserError, match="has no objective"):
        crate_dsl.Objective(net)


def _train_distributed(rank: int, world: int, store: str, results: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    objective = crate_dsl.Objective(network(TINY))
    parallel = nn.parallel.DistributedDataParallel(objective)
    batch = batch_of(4)
    parallel({name: value[rank::world] for name, value in batch.items()}).backward()
    if rank == 0:
        torch.save({name: p.grad for name, p in objective.net.named_parameters()}, results)
    # Whoever leaves first must not take the other's connection with it.
    torch.distributed.barrier()
    del parallel
    torch.distributed.destroy_process_group()
    # torch's own threads may still be ending, and an interpreter that is torn down around them aborts now and then.
    os._exit(0)


@pytest.mark.slow
def test_the_objective_trains_distributed(tmp_path: Path) -> None:
    """Two processes, each with half of a batch, find the gradient of the whole batch."""
    results = tmp_path / "gradients.pt"
    torch.multiprocessing.spawn(_train_distributed, args=(2, str(tmp_path / "store"), str(results)), nprocs=2)
    objective = crate_dsl.Objective(network(TINY))
    objective(batch_of(4)).backward()
    for name, gradient in torch.load(results, weights_only=True).items():
        whole = objective.net.get_parameter(name).grad
        assert whole is not None and (whole - gradient).abs().max() < SINGLE, name


def test_weights_larger_than_the_machine_are_refused() -> None:
    with pytest.raises(UserError, match="and this machine has"):
        network(TINY.replace("dim = 12", "dim = 12_000_000".replace("_", "")))


def test_a_frozen_use_trains_nothing_that_the_stage_reads() -> None:
    """Neither a `learn` nor the stage that a tied inverse borrows from."""
    net = network("""
model m(dim = 8) {
    input z : float[5, dim]
    learn token : float[dim] = normal(1)
    stage encoder = prepend(token) -> repeat(2) { compress(2, rank = 4, out = tied, norm = none) }
    stage decoder = inverse(encoder, mode = tied)
    code = z -> encoder
    first = code -> decoder
    y = z -> frozen(encoder)
    again = code -> frozen(decoder)
    output first, y, again
}
""")
    z = torch.randn(3, 5, 8)
    net(z)["first"].sum().backward()
    assert all(weight.grad is not None for name, weight in net.named_parameters())
    assert not net(z)["y"].requires_grad
    # The code is trained, and the way back from it is not.
    out = net(z)
    (gradient,) = torch.autograd.grad(out["again"].sum(), net.encoder[0].compress.subspaces)
    fixed = copy.deepcopy(net)
    for weight in fixed.encoder.parameters():
        weight.requires_grad_(False)
    code = net.encoder(z, net.token)
    (wanted,) = torch.autograd.grad(
        fixed.decoder(code, fixed.encoder).sum(), net.encoder[0].compress.subspaces
    )
    assert (gradient - wanted).abs().max() < SINGLE
