"""Runs on texts."""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

import crate_dsl
from crate_dsl.compiler.judge import ReducedProof
from crate_dsl.language.diagnostics import UserError
from crate_dsl.training.batches import Batches
from crate_dsl.training.real import Reduction
from crate_dsl.training.run import Run, evaluate, export_run, open_run
from crate_dsl.training.sources import open_data
from crate_dsl.training.supply import Texts
from crate_dsl.training.text import PARTS, Corpus, open_corpus
from crate_dsl.training.train import resume, train
from crate_dsl.training.vocabulary import from_json
from tests.cli.conftest import call
from tests.training.texts import HIDDEN, NOTHING, TINY, words


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, plain: Path) -> Run:
    """A run that was never cut off. Tests must leave it as it is."""
    return train(TINY, f"text:{plain}", tmp_path_factory.mktemp("runs") / "trained", progress=False)


def rows(run: Run) -> list[dict[str, str]]:
    """The metrics without what a clock says."""
    with (run.folder / "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if not k.startswith("se")} for row in csv.DictReader(file)]


def without_clock(run: Run) -> list[dict[str, str]]:
    return [{k: v for k, v in row.items() if k != "steps_per_second"} for row in rows(run)]


# ------------------------------------------------------------------ a run


def test_a_run_learns_and_says_so(trained: Run, plain: Path) -> None:
    test, found = trained.test(), rows(trained)
    assert test is not None
    assert float(found[0]["val_loss"]) > float(found[-1]["val_loss"])
    assert test["loss"] < 0.9 * NOTHING
    assert test["perplexity"] == math.exp(test["loss"])
    assert test["bits_per_character"] == pytest.approx(test["loss"] / math.log(2), rel=1e-12)
    assert test["windows"] == len(plain.read_bytes()) // 20 // 16
    for row in found:
        assert float(row["val_perplexity"]) == math.exp(float(row["val_loss"]))
    files = {path.name for path in trained.folder.iterdir()}
    assert files == {
        "spec", "run.json", "vocabulary.json", "tokens", "metrics.csv", "model.safetensors", "last.safetensors",
        "test.json",
    }  # fmt: skip
    assert {path.name for path in (trained.folder / "tokens").iterdir()} == {f"{part}.npy" for part in PARTS}
    vocabulary = trained.vocabulary()
    assert vocabulary is not None
    ids = [np.load(trained.folder / "tokens" / f"{part}.npy") for part in PARTS]
    assert vocabulary.decode(np.concatenate(ids)) == plain.read_text()


def test_the_loss_is_nats_per_token(trained: Run, plain: Path) -> None:
    """-log p of every token but the first of each window, the mean, in float64 from the network's logits."""
    vocabulary, net = trained.vocabulary(), trained.net()
    assert vocabulary is not None
    size = len(plain.read_bytes())
    ids = vocabulary.encode(plain.read_text()[size - size // 20 :])
    ids_bn = torch.from_numpy(ids[: len(ids) // 16 * 16].reshape(-1, 16))
    with torch.no_grad():
        logits = net(ids=ids_bn).double()
    p = logits.softmax(-1)
    nats = [-math.log(p[b, i - 1, ids_bn[b, i]]) for b in range(len(ids_bn)) for i in range(1, 16)]
    scores = evaluate(trained)
    assert scores.loss == pytest.approx(np.mean(nats), rel=1e-6)
    assert scores.samples == len(ids_bn)
    assert (scores.accuracy, scores.predictions_n) == (None, None)
    assert evaluate(trained, f"text:{plain}").loss == scores.loss


def test_bits_are_those_of_a_character_whatever_the_tokens_are(tmp_path: Path) -> None:
    text = words(1500)
    (tmp_path / "a.txt").write_text(text)
    settings = {"vocab": 300}
    run = train(
        TINY,
        f"text:{tmp_path}/a.txt",
        tmp_path / "run",
        set=settings,
        recipe={"epochs": "1"},
        vocabulary="bpe:290",
        progress=False,
    )
    supply, test = run.supply(), run.test()
    assert isinstance(supply, Texts)
    assert test is not None
    test_text = "".join(open_corpus(f"text:{tmp_path}/a.txt").portions("test"))
    share = len(supply.vocabulary.encode(test_text)) / len(test_text)
    assert share < 0.8
    assert test["bits_per_character"] == pytest.approx(test["loss"] / math.log(2) * share, rel=1e-12)
    assert run.manifest.vocabulary == "bpe:290"


def test_hidden_tokens_have_a_perplexity_and_no_bits(tmp_path: Path, plain: Path) -> None:
    run = train(HIDDEN, f"text:{plain}", tmp_path / "run", progress=False)
    test = run.test()
    assert test is not None
    assert test["perplexity"] == math.exp(test["loss"])
    assert "bits_per_character" not in test
    assert list(rows(run)[0])[-1] == "val_perplexity"


def test_the_same_seed_gives_the_same_run(trained: Run, plain: Path, tmp_path: Path) -> None:
    again = train(TINY, f"text:{plain}", tmp_path / "again", progress=False)
    assert without_clock(again) == without_clock(trained)
    other = train(TINY, f"text:{plain}", tmp_path / "other", seed=1, progress=False)
    assert without_clock(other) != without_clock(trained)


def test_a_run_that_was_cut_off_goes_on_from_its_folder_alone(
    trained: Run, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "plain.txt"
    shutil.copy(plain, copy)
    whole = Batches.__iter__

    def interrupted(self: Batches) -> Iterator[dict[str, torch.Tensor]]:
        for number, batch in enumerate(whole(self)):
            if self.epoch == 1 and number == 3:
                raise KeyboardInterrupt
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(Batches, "__iter__", interrupted)
        with pytest.raises(UserError, match="interrupted; epoch 1 is kept"):
            train(TINY, f"text:{copy}", tmp_path / "run", progress=False)
    copy.unlink()
    run = resume(tmp_path / "run", progress=False)
    assert without_clock(run) == without_clock(trained)
    for name in ("model.safetensors", "last.safetensors"):
        one, other = load_file(run.folder / name), load_file(trained.folder / name)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert run.test() == trained.test()


def test_a_resumed_run_must_be_the_same_run(trained: Run, plain: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(trained.folder, out)
    assert train(TINY, f"text:{plain}", out, resume=True, progress=False).test() == trained.test()
    copy = tmp_path / "other.txt"
    copy.write_text(plain.read_text().replace("fox", "dog"))
    for said, asked in {
        "vocabulary was characters, now it is bytes": {"vocabulary": "bytes"},
        "limit was None, now it is 5": {"limit": 5},
    }.items():
        with pytest.raises(UserError, match=said):
            train(TINY, f"text:{plain}", out, resume=True, progress=False, **asked)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"data was text:.*, now it is text:"):
        train(TINY, f"text:{copy}", out, resume=True, progress=False)
    with pytest.raises(UserError, match=r"is another run: data was text:.*plain.txt, now it is digits"):
        train(TINY, "digits", out, resume=True, progress=False)
    manifest = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps({**manifest, "data": f"text:{copy}"}))
    with pytest.raises(UserError, match=r"the texts of text:.*other\.txt are others than they were"):
        train(TINY, f"text:{copy}", out, resume=True, progress=False)


def test_a_limit_takes_the_first_windows(plain: Path, tmp_path: Path) -> None:
    said = Console(record=True, width=200, file=io.StringIO())
    run = train(TINY, f"text:{plain}", tmp_path / "run", limit=32, recipe={"epochs": "1"}, console=said)
    assert [row["steps"] for row in rows(run)] == ["2"]
    supply = run.supply()
    assert isinstance(supply, Texts)
    np.testing.assert_array_equal(supply.windows("train").ids_t, supply.tokens["train"][: 32 * 16])
    text = said.export_text()
    assert f"text:{plain}: 1 file" in text
    assert "windows of 16: 32 training, 19 validation, 19 test" in text
    assert "the network knows 40 tokens: 13 are never seen" in text
    assert "bits/char" in text


def test_weights_to_begin_with_bring_their_vocabulary(trained: Run, plain: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text(plain.read_text().replace("quick", "lazy")[:4000])
    run = train(
        TINY, f"text:{other}", tmp_path / "run", start=trained.folder, recipe={"epochs": "1"}, progress=False
    )
    assert run.vocabulary() == trained.vocabulary()
    with pytest.raises(UserError, match=r"know the vocabulary of .*, characters, and no bytes"):
        train(TINY, f"text:{other}", tmp_path / "b", start=trained.folder, vocabulary="bytes", progress=False)
    other.write_text("QUICK " * 1000)
    with pytest.raises(UserError, match=r"`Q` \(U\+0051\) is none of the 27 characters"):
        train(TINY, f"text:{other}", tmp_path / "c", start=trained.folder, progress=False)


# ------------------------------------------------------------------ what does not fit


def test_what_does_not_fit_a_network(plain: Path, tmp_path: Path) -> None:
    images = str(Path(__file__).parent / "tiny.crate")
    for target, said, asked in [
        (TINY, "(`ids` : index(20)[n]), but text:{} has 27\nhelp: --set vocab=27, if", {"set": {"vocab": 20}}),
        (HIDDEN, "has 27\nhelp: --set vocab=28 --set fill=27, if", {"set": {"vocab": 12, "fill": 11}}),
        (HIDDEN, "hides tokens behind token 3, which stands for `c` in text:{}", {"set": {"fill": 3}}),
        (TINY, "help: --set vocab=256", {"vocabulary": "bytes"}),
        (TINY, "is too short", {"set": {"context": 4000}}),
        (TINY, "there is no vocabulary `words`", {"vocabulary": "words"}),
        (TINY, "the limit is 0", {"limit": 0}),
        (images, "must have one input of tokens, to be trained on text; its inputs are: image : float[1, 8, 8]", {}),
    ]:  # fmt: skip
        with pytest.raises(UserError) as caught:
            train(target, f"text:{plain}", tmp_path / "run", progress=False, **asked)  # type: ignore[arg-type]
        assert said.format(plain) in str(caught.value)
    with pytest.raises(
        UserError, match=r"to be trained on images; its inputs .*\nhelp: it reads text: --data text:"
    ):
        train(TINY, "digits", tmp_path / "run", progress=False)
    with pytest.raises(UserError, match="a vocabulary is one of text, but digits has images"):
        train(images, "digits", tmp_path / "run", vocabulary="bytes", progress=False)
    with pytest.raises(UserError, match="is text, but images are wanted here"):
        open_data(f"text:{plain}")


@pytest.fixture
def copied(trained: Run, tmp_path: Path) -> Path:
    shutil.copytree(trained.folder, tmp_path / "copied")
    return tmp_path / "copied"


def test_what_lies_in_a_folder_may_be_anything(copied: Path) -> None:
    def said() -> str:
        with pytest.raises(UserError) as caught:
            evaluate(open_run(copied))
        return str(caught.value)

    vocabulary, tokens = copied / "vocabulary.json", copied / "tokens" / "test.npy"
    whole, ids_t = vocabulary.read_text(), np.load(tokens)
    for content, wanted in {
        "": "vocabulary.json is damaged",
        '{"kind": "bytes"}': "vocabulary.json is another run's: it has 256 tokens, and not 27",
        '{"kind": "characters", "characters": "abc"}': "it has 3 tokens, and not 27",
    }.items():
        vocabulary.write_text(content)
        assert wanted in said()
    vocabulary.unlink()
    assert "vocabulary.json could not be read" in said()
    vocabulary.write_text(whole)
    np.save(tokens, np.full_like(ids_t, 40))
    assert "40 is no token, there are 27" in said()
    np.save(tokens, ids_t.astype(np.float32))
    assert "it holds float32" in said()
    np.save(tokens, np.array([{}], object), allow_pickle=True)
    assert "test.npy is cut off or damaged" in said()
    np.save(tokens, ids_t)
    tokens.write_bytes(tokens.read_bytes()[:-100])
    assert "test.npy is cut off or damaged" in said()
    tokens.unlink()
    assert "test.npy is cut off or damaged" in said() or "could not be read" in said()
    path = copied / "run.json"
    manifest = json.loads(path.read_text())
    for change in (
        {"vocabulary": None},
        {"tokens": None},
        {"characters": {"train": 1}},
        {"characters": {"all": 1}},
    ):
        path.write_text(json.dumps({**manifest, **change}))
        assert "run.json is damaged" in said()


def test_an_exported_file_has_the_vocabulary(trained: Run, tmp_path: Path) -> None:
    path = tmp_path / "text.onnx"
    assert export_run(trained.folder, path).passed
    session = crate_dsl.open_session(str(path))
    found = from_json(session.metadata.extra["vocabulary"])
    assert found == trained.vocabulary()
    assert "scaling" not in session.metadata.extra


def test_fewer_bits_are_judged_by_the_next_token(trained: Run, tmp_path: Path) -> None:
    proof = export_run(
        trained.folder, tmp_path / "text.onnx", reduction=Reduction("int8", agreement=0.5), lower="all"
    )
    assert isinstance(proof, ReducedProof)
    (row,) = proof.judged
    assert (row.output, row.accuracy, proof.samples) == ("logits", None, 19)
    assert 0.5 < row.agreement <= 1
    test = trained.test()
    assert test is not None and proof.losses is not None
    assert proof.losses[0] == pytest.approx(test["loss"], rel=1e-4)
    one = export_run(trained.folder, tmp_path / "one.onnx", reduction=Reduction("float16", images=1))
    assert isinstance(one, ReducedProof)
    assert one.samples == 1


def test_the_command_line(
    trained: Run,
    plain: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    data = f"text:{plain}"

    def said(*arguments: object, code: int = 0) -> str:
        found = call(capsys, *arguments)
        assert found.code == code, found.err
        return found.out if not code else found.err

    text = said(
        "train", TINY, "--data", data, "-o", "run", "--epochs", 1, "--limit", 32, "--vocabulary", "characters"
    )
    test = open_run("run").test()
    assert test is not None
    assert text == (
        f"loss {test['loss']:.4f} on 19 test windows, perplexity {test['perplexity']:.2f}, "
        f"{test['bits_per_character']:.3f} bits per character (weights of epoch 1)\n"
        f"next: crate-dsl generate run --prompt {open_run('run').texts().word()}\n"
    )
    assert open_run("run").texts().word() in plain.read_text().split()
    text = said("train", HIDDEN, "--data", data, "-o", "hidden", "--limit", 32)
    assert text.endswith("next: crate-dsl export hidden --out hidden.onnx\n")
    assert "give --resume and --out alone" in said(
        "train", "--resume", "--vocabulary", "bytes", "--out", "run", code=2
    )
    assert said("train", "--resume", "--out", "run").startswith(f"loss {test['loss']:.4f}")

    said("export", trained.folder, "--out", "text.onnx")
    test = trained.test()
    assert test is not None
    facts = json.loads(said("run", "text.onnx", "--data", data, "--format", "json"))
    for name, value in facts.items():
        assert value == (data if name == "data" else pytest.approx(test[name], rel=1e-5))
    assert said("run", "text.onnx", "--data", data).startswith(
        f"loss {test['loss']:.4f} on 19 test windows of {data}"
    )
    for arguments in (["digits"], ["--data", "digits"], [plain]):
        (tmp_path / "digits").touch()
        text = said("run", "text.onnx", *arguments, code=1)
        assert "`text.onnx` reads text, and no pictures\nhelp: crate-dsl generate text.onnx --prompt" in text
    said("export", "hidden", "--out", "hidden.onnx")
    assert "was not trained to tell the next token" in said("run", "hidden.onnx", "--data", data, code=1)


def test_what_reads_an_exported_file_needs_no_torch() -> None:
    program = "import sys, crate_dsl.answers, crate_dsl.training.vocabulary; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout == "False\n"


def test_what_is_about_images_says_so(trained: Run) -> None:
    with pytest.raises(UserError, match="`tiny` was trained on text, but this needs a network of images"):
        trained.data()


def test_a_corpus_prints_well(plain: Path) -> None:
    assert str(Corpus("text:a", (plain,), (plain.stat().st_size,))) == "1 file, 0.01 MB"
