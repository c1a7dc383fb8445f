"""Where a run begins: weights of another run or file, by path and shape; what is told, refused and warned of."""

from __future__ import annotations

import io
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor

import crate_dsl
from crate_dsl.compiler.network import Network
from crate_dsl.language.diagnostics import Remark, UserError
from crate_dsl.language.explanations import explanation
from crate_dsl.training.batches import Batches
from crate_dsl.training.run import Run, open_run
from crate_dsl.training.start import begin_with, open_start, started_from
from crate_dsl.training.train import resume, train
from crate_dsl.workspace import check_text

HERE = Path(__file__).parent
SLOW = str(HERE / "slow.crate")
#: Of which the pages W0816 and W0817 tell.
FROZEN = """model frozen {
    input  image : float[1, 8, 8]
    target label : index(10)
    stage encoder = patchify(2) -> linear(16)

    logits = image -> frozen(encoder) -> pool -> linear(10)

    output logits
    objective cross_entropy(logits, label)
}
"""
ROTATED = """model rotated {
    input image : float[1, 8, 8]
    stage front   = patchify(2) -> linear(16)
    stage encoder = compress(2, rank = 8) -> sparsify

    turns    = image -> rotations -> each { front -> encoder -> pool -> linear(4) }
    features = image -> front -> encoder -> pool

    output features
    objective rotation(turns)
    train { epochs = 1 }
}
"""
PROMPTED = """model prompted {
    input  image : float[1, 8, 8]
    target label : index(10)
    learn  prompt : float[4, 16]
    stage front   = patchify(2) -> linear(16)
    stage encoder = compress(2, rank = 8) -> sparsify

    logits = image -> frozen(front) -> append(prompt) -> frozen(encoder) -> pool -> linear(10)

    output logits
    objective cross_entropy(logits, label)
    train { epochs = 1 }
}
"""
#: The same stages, all of them trained.
FINETUNED = PROMPTED.replace(
    "frozen(front) -> append(prompt) -> frozen(encoder)", "front -> encoder"
).replace("    learn  prompt : float[4, 16]\n", "")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with the specs."""
    monkeypatch.chdir(tmp_path)
    for name, text in {
        "frozen": FROZEN,
        "rotated": ROTATED,
        "prompted": PROMPTED,
        "finetuned": FINETUNED,
    }.items():
        Path(f"{name}.crate").write_text(text)
    return tmp_path


@pytest.fixture(scope="module")
def pretext(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `rotated.crate`. Tests leave it as it is."""
    home = tmp_path_factory.mktemp("pretext")
    (home / "rotated.crate").write_text(ROTATED)
    train(str(home / "rotated.crate"), "digits", home / "run", limit=200, progress=False)
    return home / "run"


def quick(spec: str, out: str, **options: object) -> Run:
    options = {"limit": 200, "progress": False} | options
    return train(spec, "digits", out, **options)  # type: ignore[arg-type]


def weights(path: Path | str) -> dict[str, Tensor]:
    return load_file(path)


def net_of(spec: str, seed: int = 0) -> Network:
    return crate_dsl.build(crate_dsl.load(spec), seed=seed)


# ------------------------------------------------------------------ what is taken


def test_weights_of_the_same_path_are_taken_and_no_others(pretext: Path) -> None:
    net, drawn = net_of("prompted.crate", seed=3), net_of("prompted.crate", seed=3).state_dict()
    started = begin_with(net, open_start(str(pretext)))
    theirs = weights(pretext / "model.safetensors")
    taken = {path for path in theirs if path.startswith(("front.", "encoder."))}
    assert set(started.matched) == taken and len(taken) == 10
    assert set(started.new) == {"prompt", "logits.linear.weight", "logits.linear.bias"}
    assert set(started.left_out) == {"turns.linear.weight", "turns.linear.bias"}
    for path, weight in net.state_dict().items():
        assert torch.equal(weight, theirs[path] if path in taken else drawn[path]), path


def test_only_some_stages(pretext: Path) -> None:
    net = net_of("prompted.crate")
    assert set(begin_with(net, open_start(f"{pretext}:front")).matched) == {
        "front.linear.weight",
        "front.linear.bias",
    }
    step = begin_with(net, open_start(f"{pretext}:front.linear.bias, encoder.sparsify"))
    assert sorted(step.matched) == [
        "encoder.sparsify.dictionary",
        "encoder.sparsify.norm_bias",
        "encoder.sparsify.norm_weight",
        "front.linear.bias",
    ]


def test_a_slow_copy_begins_equal_to_what_it_follows() -> None:
    """Even where the file has another teacher."""
    net, file = net_of(SLOW, seed=1), net_of(SLOW, seed=2)
    generator = torch.Generator().manual_seed(0)
    state = {
        name: value + 0.1 * torch.randn(value.shape, generator=generator)
        for name, value in file.state_dict().items()
    }
    save_file(state, "file.safetensors")
    started = begin_with(net, open_start("file.safetensors"))
    now = net.state_dict()
    assert set(started.follows) == set(net.graph.averages)
    for path, average in net.graph.averages.items():
        assert torch.equal(now[path], now[average.source]) and not torch.equal(now[path], state[path])
        assert torch.equal(now[average.source], state[average.source])


def test_frozen_stages_stay_as_they_began_and_pixels_are_scaled_as_there(pretext: Path) -> None:
    with pytest.warns(Remark):
        run = quick("prompted.crate", "run", start=pretext, limit=50)
    before, after = weights(pretext / "model.safetensors"), weights("run/model.safetensors")
    first = weights("run/start.safetensors")
    for path in after:
        frozen = path.startswith(("front.", "encoder."))
        assert torch.equal(after[path], before[path] if frozen else after[path])
        assert torch.equal(after[path], first[path]) == frozen, path
    theirs = open_run(pretext).manifest.scaling
    assert run.manifest.scaling == theirs
    assert quick("finetuned.crate", "other", limit=50).manifest.scaling != theirs
    assert run.manifest.start == str(pretext)
    assert run.manifest.start_fingerprint == open_start(str(pretext)).fingerprint


def test_the_train_block_says_it_relative_to_the_spec_and_the_option_wins(
    pretext: Path, folder: Path
) -> None:
    deep = folder / "deep"
    deep.mkdir()
    shutil.copy(pretext / "model.safetensors", deep / "weights.safetensors")
    entry = 'train { start = "weights.safetensors", epochs = 1 }'
    (deep / "spec.crate").write_text(FINETUNED.replace("train { epochs = 1 }", entry))
    run = quick("deep/spec.crate", "run")
    assert run.manifest.start == "deep/weights.safetensors" and "start" not in run.manifest.recipe
    other = net_of("rotated.crate", seed=5).state_dict()
    save_file(other, "other.safetensors")
    quick("deep/spec.crate", "option", start="other.safetensors")
    path = "encoder.sparsify.dictionary"
    assert torch.equal(weights("option/start.safetensors")[path], other[path])
    assert torch.equal(weights("run/start.safetensors")[path], weights(deep / "weights.safetensors")[path])


# ------------------------------------------------------------------ going on


@pytest.mark.parametrize("epoch", [0, 1])
def test_a_run_that_was_cut_off_goes_on_without_the_other_one(
    epoch: int, pretext: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first epoch is whole, and after it: bit for bit what a run never cut off gives."""
    shutil.copytree(pretext, "pretext")
    recipe = {"epochs": 3, "batch": 50}
    quick("finetuned.crate", "whole", start="pretext", recipe=recipe)
    whole = Batches.__iter__

    def interrupted(self: Batches) -> Iterator[dict[str, Tensor]]:
        for number, batch in enumerate(whole(self)):
            if (self.epoch, number) == (epoch, 1):
                raise KeyboardInterrupt
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(Batches, "__iter__", interrupted)
        with pytest.raises(UserError, match="interrupted"):
            quick("finetuned.crate", "cut", start="pretext", recipe=recipe)
    shutil.rmtree("pretext")
    with pytest.raises(UserError, match="start was pretext, now it is None"):
        quick("finetuned.crate", "cut", recipe=recipe, resume=True)
    if epoch:
        quick("finetuned.crate", "cut", start="pretext", recipe=recipe, resume=True)
    else:
        resume("cut", progress=False)
    ours, theirs = weights("cut/model.safetensors"), weights("whole/model.safetensors")
    assert all(torch.equal(ours[path], theirs[path]) for path in theirs)


# ------------------------------------------------------------------ what is told


def test_what_became_of_each_stage_is_told(pretext: Path) -> None:
    said = io.StringIO()
    console = Console(file=said, width=200)
    with pytest.warns(Remark):
        quick("prompted.crate", "run", start=pretext, progress=True, console=console)
    lines = said.getvalue().splitlines()
    assert lines[0] == f"starts from {pretext}"
    assert [line.split() for line in lines[2:7]] == [
        ["taken", "front", "2", "80"],
        ["encoder", "8", "848"],
        ["drawn", "anew", "prompt", "1", "64"],
        ["logits", "2", "170"],
        ["left", "out", "turns", "2", "68"],
    ]
    assert max(map(len, lines[1:7])) <= 80
    assert lines[7] == "pixels are scaled as there"


def test_pixels_of_other_channels_are_scaled_by_themselves(pretext: Path) -> None:
    """The encoder is one of grey pictures, and these have colours."""
    text = FINETUNED.replace("float[1, 8, 8]", "float[3, 8, 8]")
    Path("colours.crate").write_text(text)
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (40, 8, 8, 3), np.uint8), np.arange(40) % 10
    np.savez("colours.npz", x=x, y=y, x_test=x, y_test=y)
    said = io.StringIO()
    run = train(
        "colours.crate", "npz:colours.npz", "run", start=f"{pretext}:encoder", console=Console(file=said)
    )
    assert run.manifest.scaling is not None
    assert run.manifest.scaling.mean == pytest.approx((x / 255).mean((0, 1, 2)), abs=1e-3)
    assert "pixels" not in said.getvalue()


def told(code: str, spec: str, start: str | None) -> None:
    """Just this remark, word for word as its page shows it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", Remark)
        started_from(start, crate_dsl.load(spec), 0)
    shown = explanation(code).output.partition("\n")[2]
    assert [str(warning.message) for warning in caught] == [shown]


def test_frozen_without_a_start() -> None:
    told("W0816", "frozen.crate", None)


def test_prompts_alone_on_rotations(pretext: Path) -> None:
    shutil.copytree(pretext, "runs/rotated")
    told("W0817", "prompted.crate", "runs/rotated")


@pytest.mark.filterwarnings("error")
def test_what_nothing_is_said_of(pretext: Path) -> None:
    started_from(str(pretext), crate_dsl.load("finetuned.crate"), 0)
    Path("probe.crate").write_text(
        PROMPTED.replace("append(prompt) -> ", "").replace("    learn  prompt", "#")
    )
    started_from(str(pretext), crate_dsl.load("probe.crate"), 0)
    Path("front.crate").write_text(PROMPTED.replace("frozen(front)", "front"))
    started_from(str(pretext), crate_dsl.load("front.crate"), 0)
    started_from(str(pretext / "model.safetensors"), crate_dsl.load("prompted.crate"), 0)


# ------------------------------------------------------------------ what is refused


def refused(spec: str, start: str) -> str:
    with pytest.raises(UserError) as caught:
        started_from(start, crate_dsl.load(spec), 0)
    return str(caught.value)


def test_the_same_path_in_another_shape(pretext: Path) -> None:
    Path("wide.crate").write_text(
        FINETUNED.replace("linear(10)", "linear(12)").replace("index(10)", "index(12)")
    )
    net = net_of("finetuned.crate")
    save_file(net.state_dict(), "ten.safetensors")
    said = refused("wide.crate", "ten.safetensors")
    assert "`logits.linear.weight` is [12, 16], and there [10, 16]" in said
    assert "--start ten.safetensors:front,encoder" in said
    assert (
        "logits.linear.bias"
        in started_from("ten.safetensors:front,encoder", crate_dsl.load("wide.crate"), 0).new
    )  # type: ignore[union-attr]


def test_nothing_matches() -> None:
    Path("other.crate").write_text(FINETUNED.replace("encoder", "encodr").replace("front", "tokens"))
    save_file({"front.linear.weight": torch.zeros(16, 4), "encoder.x": torch.zeros(2)}, "file.safetensors")
    said = refused("other.crate", "file.safetensors")
    assert "no weight of file.safetensors has the name of one of the network's" in said
    assert "the network has tokens, encodr, logits" in said and "the file has encoder, front" in said
    assert "`encodr` here is perhaps `encoder` there" in said


@pytest.mark.parametrize(
    ("start", "said"),
    [
        ("nowhere", "there is no `nowhere` to start from"),
        ("nowhere.safetensors:front", "there is no `nowhere.safetensors` to start from"),
        ("empty:front", "empty holds no run"),
        ("begun", "begun has no weights yet"),
        ("file.safetensors:", "names no stage behind the colon"),
        ("file.safetensors:front,,encoder", "names no stage behind the colon"),
        ("file.safetensors:encodr", "the network has no `encodr`\nhelp: did you mean `encoder`?"),
        ("file.safetensors:logits", "file.safetensors has no `logits`\nhelp: it has encoder, front"),
        ("cut.safetensors", "cut.safetensors is cut off or damaged"),
        ("text.safetensors", "text.safetensors is cut off or damaged"),
        (
            "nan.safetensors",
            "`front.linear.bias` of nan.safetensors holds NaN, infinity, or what is too large",
        ),
        ("whole.safetensors", "`front.linear.bias` of whole.safetensors is int64, no float"),
    ],
)
def test_what_cannot_be_begun_with(start: str, said: str, pretext: Path) -> None:
    Path("empty").mkdir()
    shutil.copytree(pretext, "begun")
    Path("begun/model.safetensors").unlink()
    found = weights(pretext / "model.safetensors")
    found = {path: weight for path, weight in found.items() if not path.startswith("turns")}
    save_file(found, "file.safetensors")
    save_file(found | {"front.linear.bias": torch.full((16,), torch.nan)}, "nan.safetensors")
    save_file(found | {"front.linear.bias": torch.arange(16)}, "whole.safetensors")
    Path("cut.safetensors").write_bytes(Path("file.safetensors").read_bytes()[:-40])
    Path("text.safetensors").write_text("no weights")
    assert said in refused("finetuned.crate", start)


def test_a_text_is_what_a_block_takes() -> None:
    text = FINETUNED.replace("epochs = 1", "start = 5")
    (found,) = check_text("spec.crate", text)
    assert (found.code, found.message) == ("E0307", "`start` of `train` is a text in quotes, not 5")


def test_weights_off_their_constraint() -> None:
    Path("held.crate").write_text(FINETUNED.replace("rank = 8", "rank = 8, constraint = orthonormal"))
    held = net_of("held.crate").state_dict()
    save_file(held, "held.safetensors")
    assert started_from("held.safetensors", crate_dsl.load("held.crate"), 1)
    held["encoder.compress.subspaces"] = 2 * held["encoder.compress.subspaces"]
    save_file(held, "held.safetensors")
    said = refused("held.crate", "held.safetensors")
    assert (
        "`encoder.compress.subspaces` of held.safetensors must be orthonormal, and is off by 3.0e+00" in said
    )


def test_narrow_numbers_become_float32() -> None:
    state = {
        path: weight.to(torch.bfloat16) for path, weight in net_of("finetuned.crate").state_dict().items()
    }
    save_file(state, "narrow.safetensors")
    started = started_from("narrow.safetensors", crate_dsl.load("finetuned.crate"), 1)
    assert started is not None
    for path, weight in started.net.state_dict().items():
        assert weight.dtype == torch.float32 and torch.equal(weight, state[path].float())
