"""Token statistics: what the published networks count, prefixes, padding, chunks, long sequences, laws of pairs.

That both faces are the formula is held by `test_compress`.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import crate_dsl
from crate_dsl.compiler.graph import ModelGraph
from crate_dsl.compiler.masks import CAUSAL as CAUSAL_RULE
from crate_dsl.compiler.masks import Rule
from crate_dsl.compiler.operators import (
    CertifiedInverse,
    FixedPoint,
    Inverse,
    Mistake,
    NoInverse,
    Ones,
    Port,
    Stepped,
    TiedInverse,
    Weight,
    Zeros,
)
from crate_dsl.compiler.steps.compress.operator import Compress, Relative
from crate_dsl.compiler.steps.compress.statistics import next_so_far, so_far
from crate_dsl.compiler.types import Dim, Symbol, TensorType, floats
from crate_dsl.language.source import Source
from crate_dsl.workspace import Target, load_source
from tests.steps.compress_formulas import CAUSAL, EXACT, SINGLE, STATISTICS, TOKENS, D, K, N, P
from tests.steps.harness import Step, step

#: Float32 sums of 16,384 terms, relative to the largest result: sixteen roundings, of which one to five are seen.
SUMS = 1e-6
LONG = 16_384

TOST_GPT = """model tost_gpt(dim = 768, depth = 12, subspaces = 12, context = 1024, vocab = 50304) {
    input ids : index(vocab)[n <= context]

    stage embedding = embed(dim)
    stage encoder = repeat(depth) {
        compress(subspaces, rank = dim / subspaces, gradient = statistics, mask = causal, length = context,
                 step = learn(1e-5, shape = [dim]))
        residual { norm -> linear(4 * dim) -> gelu -> linear(dim) -> scale(learn(1e-5, shape = [dim])) }
    }

    logits = ids -> embedding -> encoder -> norm -> transpose(embedding)

    output logits
}
"""


def loaded(text: str, **settings: int) -> ModelGraph:
    return load_source(Source("example.crate", text), Target("example.crate"), settings)


@pytest.mark.parametrize(
    ("dim", "depth", "subspaces", "published"),
    [(768, 12, 12, 109_681_296), (1024, 24, 16, 303_884_672), (1280, 36, 20, 655_552_720)],
)
def test_the_language_model_has_the_published_parameters(
    dim: int, depth: int, subspaces: int, published: int
) -> None:
    """Without positions, as nanoGPT counts."""
    graph = loaded(TOST_GPT, dim=dim, depth=depth, subspaces=subspaces)
    assert graph.parameters == published


def test_the_two_forms_learn_what_the_published_ones_do() -> None:
    vision, causal = Compress(**STATISTICS).infer(TOKENS).slots, Compress(**CAUSAL).infer(TOKENS).slots
    published = {"norm_weight": (D,), "norm_bias": (D,), "subspaces": (K * P, D), "temperature": (K,)}
    published["projection_bias"] = (K * P,)
    out = {"out_weight": (D, K * P), "out_bias": (D,)}
    assert {name: slot.shape for name, slot in vision.items()} == published | out
    added = {"energy_bias": (K, N)}
    assert {name: slot.shape for name, slot in causal.items()} == published | added | out
    assert vision["temperature"].initial == causal["temperature"].initial == Ones()
    assert causal["energy_bias"].initial == Zeros()
    assert Compress(**CAUSAL, length=N + 4).infer(TOKENS).slots["energy_bias"].shape == (K, N + 4)


# ------------------------------------------------------------------ which tokens a token knows of


def test_tokens_of_the_vision_form_have_no_order() -> None:
    item, order = step(Compress(**STATISTICS), TOKENS), torch.randperm(N)
    item.module.double()
    z = torch.randn(2, N, D, dtype=torch.double)
    assert (item.module(z[:, order]) - item.module(z)[:, order]).abs().max() < EXACT


def test_the_memberships_of_a_token_sum_to_one() -> None:
    for arguments in (STATISTICS, CAUSAL):
        taps = step(Compress(**arguments), TOKENS).module.explain(torch.randn(2, N, D))
        assert taps["membership"].shape == (2, K, N)
        assert (taps["membership"].sum(1) - 1).abs().max() < SINGLE


def test_a_prefix_of_the_language_form_is_the_prefix() -> None:
    item = step(Compress(**CAUSAL), TOKENS)
    item.module.double()
    z = torch.randn(2, N, D, dtype=torch.double)
    for n in range(1, N + 1):
        assert (item.module(z[:, :n]) - item.module(z)[:, :n]).abs().max() < EXACT


def test_nothing_leads_from_a_token_to_an_earlier_one() -> None:
    item = step(Compress(**CAUSAL), TOKENS)
    item.module.double()
    z = torch.randn(N, D, dtype=torch.double)
    jacobian = torch.autograd.functional.jacobian(lambda x: item.module(x[None])[0], z)
    reached = jacobian.abs().amax((1, 3))  # (which token comes out, which went in)
    later = torch.ones(N, N).triu(1).bool()
    assert (reached[later] == 0).all()
    assert (reached[~later] > 0).all()


def test_padding_takes_no_part() -> None:
    """What counts is what it is without the padding, whatever stands there; padding gets the branch's bias alone."""
    kept_type = Port(TensorType("bool", (Dim(N),)))
    item = step(Compress(**STATISTICS, mask=kept_type), TOKENS)
    item.module.double()
    z, kept = torch.randn(2, N, D, dtype=torch.double), torch.tensor([[True] * 4 + [False] * (N - 4)] * 2)
    short = item.module(z[:, :4], mask=kept[:, :4])
    for filler in (z[:, 4:], 1e6 * z[:, 4:], torch.zeros(2, N - 4, D, dtype=torch.double)):
        padded = torch.cat([z[:, :4], filler], 1)
        found = item.module(padded, mask=kept)
        assert (found[:, :4] - short).abs().max() < EXACT
        assert torch.equal(found[:, 4:], filler + item.module.out_bias)


def test_nothing_that_counts_is_no_number_lost() -> None:
    item = step(Compress(**STATISTICS, mask=Port(TensorType("bool", (Dim(N),)))), TOKENS)
    z, none = torch.randn(2, N, D), torch.zeros(2, N, dtype=torch.bool)
    assert torch.equal(item.module(z, mask=none), z + item.module.out_bias)
    (exported,) = item.onnx(z, mask=none)
    assert np.abs(exported - (z + item.module.out_bias).detach().numpy()).max() < SINGLE


KEPT_SO_FAR = Rule((), "causal and kept", ((CAUSAL_RULE,),), TensorType("bool", (Dim(N),)))


def test_tokens_so_far_that_count_are_those_without_the_others() -> None:
    """Sums over the tokens that count are sums over these alone, each with the bias of its own place."""
    item = step(Compress(**(CAUSAL | {"mask": KEPT_SO_FAR})), TOKENS)
    alone = step(Compress(**CAUSAL), TOKENS)
    alone.module.load_state_dict(item.module.state_dict())
    for module in (item.module, alone.module):
        module.double()
    z = torch.randn(2, N, D, dtype=torch.double)
    kept = torch.arange(N) % 3 != torch.tensor([[0], [1]])
    found, bias = item.module(z, mask=kept), item.module.energy_bias.detach()
    for sample in range(2):
        places = kept[sample].nonzero()[:, 0]
        with torch.no_grad():
            alone.module.energy_bias[:, : len(places)] = bias[:, places]
        wanted = alone.module(z[sample : sample + 1, places])[0]
        assert (found[sample, places] - wanted).abs().max() < EXACT
    assert (found - z - item.module.out_bias)[~kept].abs().max() < EXACT
    item.module.float()
    (exported,) = item.onnx(z.float(), mask=kept)
    assert np.abs(exported - found.detach().numpy()).max() < SINGLE


# ------------------------------------------------------------------ the next tokens, given the sums


def stepping(item: Step, count: int) -> Step:
    """The step of the next `count` tokens with the weights of the step on all."""
    form = item.operator.stepped(*item.inputs)
    assert isinstance(form, Stepped)
    past = TensorType("index", (), classes=N)
    one = step(form.operator, floats(count, D), past, *form.state)
    one.module.load_state_dict(item.module.state_dict())
    return one


@pytest.mark.parametrize("chunks", [[N], [1] * N, [1, 3, N - 4], [2, N - 2]])
@pytest.mark.parametrize("arguments", [{}, {"out": "tied", "step": 0.4}, {"bias": False}])
def test_folding_chunks_is_the_whole(chunks: list[int], arguments: dict[str, Any]) -> None:
    item = step(Compress(**CAUSAL, **arguments), TOKENS)
    z, batch = torch.randn(3, N, D), 3
    wanted = deepcopy(item.module).double()(z.double())
    for dtype, limit in ((torch.double, EXACT), (torch.float, SINGLE)):
        sums = torch.zeros(batch, 2, K, 2 * P + 1, dtype=dtype)
        exported_sums, past = sums, 0
        for count in chunks:
            one, before = stepping(item, count), torch.full((batch,), past)
            new = z[:, past : past + count].to(dtype)
            found, sums = one.module.to(dtype)(new, before, sums)
            part = wanted[:, past : past + count]
            assert (found - part).abs().max() < limit
            if dtype == torch.float:
                exported, after = one.onnx(new, before, exported_sums)
                assert np.abs(exported - part.detach().numpy()).max() < SINGLE
                exported_sums = torch.from_numpy(after)
            past += count


def test_what_is_learned_or_borrowed_is_the_same_one_step_at_a_time() -> None:
    whole = Compress(**CAUSAL, bases=Weight("axes", floats(K * P, D)))
    item = step(whole, TOKENS)
    one, axes, z = stepping(item, N), 0.3 * torch.randn(K * P, D), torch.randn(1, N, D)
    zero, nothing = torch.zeros(1, dtype=torch.int64), torch.zeros(1, 2, K, 2 * P + 1)
    found, _ = one.module(z, zero, nothing, subspaces=axes)
    assert (found - item.module(z, subspaces=axes)).abs().max() < SINGLE


# ------------------------------------------------------------------ long sequences


class Largest(TorchDispatchMode):
    """The most numbers that any one operation gave."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(value, Tensor):
                self.numbers = max(self.numbers, value.numel())
        return out


@pytest.mark.parametrize("arguments", [STATISTICS, CAUSAL])
def test_nothing_grows_with_the_square_of_the_length(arguments: dict[str, Any]) -> None:
    """Forwards and backwards; as it is counted, and as it is."""
    count = 400
    item, z = step(Compress(**arguments), floats(count, D)), torch.randn(1, count, D, requires_grad=True)
    with Largest() as largest:
        item.module(z).sum().backward()
    assert largest.numbers <= count * max(K * P, D) < count * count
    flops = [Compress(**arguments).infer(floats(n, D)).flops for n in (count, 2 * count)]
    assert flops[1] == 2 * flops[0]
    maps, entries = 2 * 2 * count * D * K * P, count * K * P
    assert flops[0] == 5 * count * D + maps + 9 * entries + 5 * count * K


@pytest.mark.parametrize("initial", [True, False])
@pytest.mark.parametrize("arguments", [STATISTICS, CAUSAL])
def test_sums_over_long_sequences_keep_their_digits(arguments: dict[str, Any], initial: bool) -> None:
    """Also where all tokens belong to all subspaces alike, as they do at first: then sums are rounded alike."""
    torch.manual_seed(1)
    item, z = step(Compress(**arguments), floats(LONG, D)), torch.randn(1, LONG, D)
    with torch.no_grad():
        if initial:
            item.module.temperature.fill_(1)
            if item.operator.running:
                item.module.energy_bias.zero_()
        wanted = deepcopy(item.module).double()(z.double())
        found = item.module(z)
    (exported,) = item.onnx(z)
    scale = float(wanted.abs().max())
    assert (found - wanted).abs().max() < SUMS * scale
    assert np.abs(exported - wanted.numpy()).max() < SUMS * scale


def test_sums_keep_their_digits_one_token_at_a_time() -> None:
    """Also where all tokens add nearly the same, as the memberships of a network as it is initialised do."""
    generator = torch.Generator().manual_seed(1)
    length = LONG // 4
    w, temperature = torch.randn(1, K, length, P, generator=generator), torch.ones(K)
    bias = torch.zeros(1, K, length)
    wanted, membership = so_far(w.double(), temperature.double(), bias.double())
    sums, worst = torch.zeros(1, 2, K, 2 * P + 1), 0.0
    for t in range(length):
        here = slice(t, t + 1)
        found, sums = next_so_far(w[:, :, here], temperature, bias[:, :, here], sums)
        worst = max(worst, float((found[:, :, 0] - wanted[:, :, t]).abs().max()))
    assert (sums[:, :, :, -1].sum(1) / membership.sum(-1) - 1).abs().max() < SUMS
    assert worst < SUMS * float(wanted.abs().max())


def test_sums_are_taken_in_float32_where_all_else_is_in_half_precision() -> None:
    item, z = step(Compress(**CAUSAL), floats(2048, D)), torch.randn(1, 2048, D)
    with torch.no_grad():
        wanted = item.module(z)
        with torch.autocast("cpu", torch.bfloat16):
            found = item.module(z)
        halves = deepcopy(item.module).bfloat16()(z.bfloat16())
    assert halves.dtype == torch.bfloat16
    # Eight bits of every factor; a sum of 2048 terms in bfloat16 stands still at 256.
    for values in (found, halves):
        assert (values - wanted).norm() < 0.02 * wanted.norm()


# ------------------------------------------------------------------ in a network, and undone


NETWORK = """model example(n = 9) {
    input z : float[m <= n, 8]
    y = z -> compress(2, 4, gradient = statistics, mask = causal, length = n)
          -> compress(2, 3, gradient = statistics, step = learn(0.1, shape = [8]))
    output y
}"""


def test_a_lowered_network_is_the_same() -> None:
    net = crate_dsl.build(loaded(NETWORK), seed=1)
    lowered = crate_dsl.lower(net)
    for n in (1, 5, 9):
        z = torch.randn(2, n, 8)
        assert (lowered(z) - net(z)).abs().max() < SINGLE


@pytest.mark.parametrize("arguments", [STATISTICS, CAUSAL])
def test_undone_by_the_same_weights_to_first_order(arguments: dict[str, Any]) -> None:
    """The error falls by four when the step halves; iterations come as near as float64 is."""
    torch.manual_seed(3)
    z, errors = torch.randn(2, N, D, dtype=torch.double), []
    for kappa in (0.02, 0.01):
        there = step(Compress(**arguments, step=kappa, bias=False), TOKENS)
        found = there.operator.inverse(TiedInverse(), TOKENS)
        assert isinstance(found, Inverse)
        back = step(found.operator, TOKENS)
        shared = {name: weight.double() for name, weight in there.module.named_parameters()}
        y = there.module.double()(z)
        back.module.double().load_state_dict(shared)
        errors.append(float((back.module(y) - z).norm().detach()))
        often = there.operator.inverse(FixedPoint(iterations=30), TOKENS)
        assert isinstance(often, Inverse)
        near = step(often.operator, TOKENS).module.double()
        near.load_state_dict(shared)
        assert (near(y) - z).abs().max() < EXACT
    assert 3.5 < errors[0] / errors[1] < 4.5


@pytest.mark.parametrize("arguments", [STATISTICS, CAUSAL])
def test_nothing_certifies_it(arguments: dict[str, Any]) -> None:
    operator = Compress(**arguments)
    for found in (operator.certificate(TOKENS), operator.inverse(CertifiedInverse(), TOKENS)):
        assert isinstance(found, NoInverse) and "statistics" in found.reason
    assert step(operator, TOKENS).module.bound(TOKENS).lipschitz is None


OPEN = floats(Dim.symbolic(Symbol("n", N)), D)


@pytest.mark.parametrize(
    ("arguments", "tokens", "code", "at"),
    [
        (CAUSAL, OPEN, "E0351", "mask"),
        (CAUSAL | {"length": N - 1}, OPEN, "E0352", "length"),
        (CAUSAL | {"length": N - 1}, TOKENS, "E0352", "length"),
        (STATISTICS | {"length": N}, TOKENS, "E0305", "length"),
        ({"subspaces": K, "rank": P, "mask": "causal", "length": N}, TOKENS, "E0305", "length"),
        (STATISTICS | {"scale": 0.5}, TOKENS, "E0305", "scale"),
        (STATISTICS | {"eps": 0.7}, TOKENS, "E0305", "eps"),
        (STATISTICS | {"step": Relative()}, TOKENS, "E0305", "step"),
        (STATISTICS | {"representatives": "tokens"}, TOKENS, "E0305", "representatives"),
        (STATISTICS | {"out": "tied", "bias": True}, TOKENS, "E0305", "bias"),
        (STATISTICS | {"mask": Port(floats(N))}, TOKENS, "E0406", "mask"),
        (STATISTICS | {"mask": replace(KEPT_SO_FAR, kept=floats(N))}, TOKENS, "E0406", "mask"),
        (STATISTICS | {"mask": Rule(((CAUSAL_RULE,),), "")}, TOKENS, "E0305", "mask"),
    ],
)
def test_mistakes(arguments: dict[str, Any], tokens: TensorType, code: str, at: str) -> None:
    with pytest.raises(Mistake) as caught:
        Compress(**arguments).infer(tokens)
    assert (caught.value.code, caught.value.at) == (code, at)
