"""Going on with a text: the same tokens in torch and in onnxruntime, and networks and prompts that do not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import crate_dsl
from crate_dsl.compiler.network import Network
from crate_dsl.generation.sampling import Sampler
from crate_dsl.generation.source import Source, of_network, open_source
from crate_dsl.generation.text_network import text_network
from crate_dsl.generation.writing import Tail, Written, write
from crate_dsl.language.diagnostics import UserError
from crate_dsl.language.source import Source as Text
from crate_dsl.training.vocabulary import Bytes, Characters
from crate_dsl.workspace import Target, load_source
from tests.generation.conftest import LETTERS, exported
from tests.generation.spec import CONTEXT

SAMPLERS = [
    Sampler(temperature=0),
    Sampler(seed=3),
    Sampler(temperature=0.7, top_k=5, top_p=0.9, seed=4),
]


def tokens(source: Source, sampler: Sampler, count: int, prompt: str = "the") -> list[Written]:
    return list(write(source, prompt, count, sampler))


# ------------------------------------------------------------------ the same tokens


@pytest.fixture(scope="module")
def sources(net: Network, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Source]:
    """A network in both runtimes, with a cache and without, and a file with a cache that is asked for none."""
    folder = tmp_path_factory.mktemp("files")
    whole, stepped = (str(exported(net, folder / name)) for name in ("whole.onnx", "cache.onnx"))
    return {
        "torch": of_network(net, LETTERS, "net", cache=False),
        "torch, cached": of_network(net, LETTERS, "net"),
        "file": open_source(whole, provider="cpu"),
        "cached file": open_source(stepped, provider="cpu"),
        "cached file, uncached": open_source(stepped, provider="cpu", cache=False),
    }


def test_both_runtimes_choose_the_same_tokens_with_a_cache_and_without(sources: dict[str, Source]) -> None:
    assert {name for name, source in sources.items() if source.cached} == {"torch, cached", "cached file"}
    errors = [source.proved_error for source in sources.values() if source.proved_error is not None]
    assert len(errors) == 3 and 0 < max(errors) < 1e-4
    for sampler in SAMPLERS:
        for prompt in ("t", "the dog"):
            wanted = tokens(sources["torch"], sampler, 25, prompt)
            for source in sources.values():
                count = CONTEXT - len(prompt) + 1 if source.cached else 25
                found = tokens(source, sampler, count, prompt)
                assert len(found) == count
                for one, other in zip(wanted, found, strict=False):
                    if one.token != other.token:  # from here on the texts are others
                        assert min(one.margin, other.margin) <= max(errors)
                        break


def test_a_source_can_begin_again(sources: dict[str, Source]) -> None:
    for source in sources.values():
        first = tokens(source, SAMPLERS[1], 8)
        assert tokens(source, SAMPLERS[1], 5, "dog") != first[:5]
        assert tokens(source, SAMPLERS[1], 8) == first


def test_with_a_cache_a_text_ends_with_the_context(sources: dict[str, Source]) -> None:
    for name in ("torch, cached", "cached file"):
        assert len(tokens(sources[name], Sampler(), CONTEXT - 2)) == CONTEXT - 2
        with pytest.raises(UserError) as problem:
            write(sources[name], "the", CONTEXT - 1, Sampler())
        assert problem.value.help[0] == f"--tokens {CONTEXT - 2}"
        assert "--no-cache" in problem.value.help[1]
        with pytest.raises(UserError) as problem:
            write(sources[name], "the quick brown", 1, Sampler())
        assert len(problem.value.help) == 1


def test_each_token_is_that_of_the_whole_text(net: Network) -> None:
    """The reference: for each token the network's own forward, and its end alone where the text has outgrown it."""
    source, ids = of_network(net, LETTERS, "net", cache=False), list(LETTERS.encode("the"))
    for written in tokens(source, Sampler(temperature=0), 25):
        with torch.no_grad():
            logits = net(ids=torch.tensor([ids[-CONTEXT:]]))[0, -1, : LETTERS.size]
        assert written.token == int(logits.argmax())
        top = logits.sort().values[-2:]
        assert written.margin == pytest.approx(float(top[1] - top[0]) / 2, rel=1e-4, abs=1e-6)
        ids.append(written.token)
    assert len(ids) == 3 + 25 > CONTEXT


def test_tokens_without_a_meaning_are_never_chosen(net: Network) -> None:
    assert net.graph.inputs["ids"].type.classes > LETTERS.size
    found = tokens(of_network(net, LETTERS, "net", cache=False), Sampler(temperature=50.0), 200)
    assert {written.token for written in found} == set(range(LETTERS.size))
    assert LETTERS.decode([w.token for w in found]) == "".join(w.text for w in found)


# ------------------------------------------------------------------ text as it comes


@pytest.mark.parametrize("seed", range(6))
def test_pieces_of_text_put_together_are_the_whole(seed: int) -> None:
    generator = np.random.default_rng(seed)
    ids = [*"schöne 🌍".encode(), *generator.integers(0, 256, 60), *"€".encode()[:2]]
    tail = Tail(Bytes())
    pieces = [tail.take(int(token), last=at + 1 == len(ids)) for at, token in enumerate(ids)]
    assert "".join(pieces) == Bytes().decode(ids)
    assert pieces[:14] == ["s", "c", "h", "", "ö", "n", "e", " ", "", "", "", "🌍", pieces[12], pieces[13]]


# ------------------------------------------------------------------ what cannot be gone on with


def graph(text: str) -> crate_dsl.compiler.graph.ModelGraph:  # type: ignore[name-defined]
    return load_source(Text("m.crate", text), Target("m.crate"))


MODEL = """model m {{
    input ids : index(7)[{length}]
    {more}
    stage embedding = embed(6)
    hidden = ids -> embedding
    logits = {hidden} -> transpose(embedding)
    output {output}
    {objective}
}}"""
GOOD = {
    "length": "n <= 9",
    "more": "",
    "hidden": "hidden",
    "output": "logits",
    "objective": "objective next_token(logits, ids)",
}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"objective": ""}, "its objective does not tell the next token"),
        ({"output": "hidden"}, "by what is no output"),
        ({"length": "9"}, "reads texts of 9 tokens, and no shorter ones"),
        (
            {"more": "input w : float[6]", "hidden": "(hidden + w)"},
            "also needs `w` : float.6., which no text tells",
        ),
    ],
)
def test_networks_that_go_on_with_nothing(changed: dict[str, str], message: str) -> None:
    assert text_network(graph(MODEL.format(**GOOD))).context == 9
    with pytest.raises(UserError, match=message):
        text_network(graph(MODEL.format(**{**GOOD, **changed})))


def test_prompts_that_are_none(net: Network) -> None:
    source = of_network(net, LETTERS, "net", cache=False)
    with pytest.raises(UserError, match="the prompt is empty"):
        write(source, "", 3, Sampler())
    with pytest.raises(UserError, match=r"`Q` .* is none of the 29 characters"):
        write(source, "the Queen", 3, Sampler())


def test_what_cannot_be_stepped_is_told_with_the_way_out() -> None:
    text = MODEL.format(**{**GOOD, "hidden": "hidden -> compress(2, rank = 3)"})
    net, letters = crate_dsl.build(graph(text)), Characters(characters="abc")
    with pytest.raises(UserError, match=r"`logits.compress` .m.crate:6.") as problem:
        of_network(net, letters, "net")
    assert "--no-cache" in problem.value.help[-1]
    assert of_network(net, letters, "net", cache=False).predictor.context == 9
