"""A run's folder: what was trained, and everything that is needed to go on with it, export it or count its mistakes.

================== =============================================================================================
spec/              the texts as they were when the run began
run.json           what was asked for: settings, recipe, data, seed; and the scaling of pixels, the classes' names
vocabulary.json    of a run on text: what each token stands for
tokens/            of a run on text: the tokens of each part, as arrays
start.safetensors  the weights of the first step, where they are not all drawn: `--start`
metrics.csv        a row for each epoch
model.safetensors  the weights of the best epoch by validation (the last one, where nothing was held back, or the loss
                   is held against a slow copy)
last.safetensors   everything that the next epoch needs: weights, optimiser, schedule, counters
test.json          how the kept weights do on the test images; it is there when the run is over
================== =============================================================================================

Every file is there whole or not at all, and none needs unpickling.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

import crate_dsl
from crate_dsl.compiler.graph import ModelGraph
from crate_dsl.compiler.weights import load_weights
from crate_dsl.language.diagnostics import UserError
from crate_dsl.training.batches import Scores, measure
from crate_dsl.training.data import Data
from crate_dsl.training.feed import check_reads
from crate_dsl.training.files import write_tensors
from crate_dsl.training.manifest import Manifest
from crate_dsl.training.real import FLOAT32, Reduction, samples_of
from crate_dsl.training.sources import open_data
from crate_dsl.training.supply import (
    TOKENS,
    VOCABULARY,
    Known,
    Supply,
    Texts,
    is_text,
    open_images,
    open_texts,
    read_vocabulary,
)
from crate_dsl.training.text import PARTS, open_corpus, open_tokens
from crate_dsl.training.vocabulary import Vocabulary

if TYPE_CHECKING:
    from crate_dsl.compiler.network import Network
    from crate_dsl.compiler.prove import Proof

#: The files of a run.
MANIFEST, START, METRICS, WEIGHTS, LAST, TEST = (
    "run.json",
    "start.safetensors",
    "metrics.csv",
    "model.safetensors",
    "last.safetensors",
    "test.json",
)


@dataclass(frozen=True)
class Run:
    """A run that lies in a folder."""

    folder: Path
    manifest: Manifest

    def graph(self) -> ModelGraph:
        """The network's graph, from the texts in the folder. Raises `SpecError` where they were tampered with."""
        return crate_dsl.load(str(self.folder / self.manifest.target), set=self.manifest.overrides())

    def net(self) -> Network:
        """The trained network, on the CPU and in evaluation mode.

        Raises:
            UserError: there are no weights yet, or they are damaged or another network's.
        """
        path = self.folder / WEIGHTS
        if not path.is_file():
            raise UserError(f"{path} is not there: no epoch was completed", "crate-dsl train … --resume")
        net = crate_dsl.build(self.graph(), seed=self.manifest.seed)
        load_weights(net, path)
        return net.eval()

    def data(self) -> Data:
        """The images that it was trained on, read again. Raises `UserError` where it was trained on text."""
        self.manifest.pixels()
        data = open_data(self.manifest.data)
        return data if self.manifest.limit is None else data.limited(self.manifest.limit)

    def vocabulary(self) -> Vocabulary | None:
        """What its tokens stand for; None where it was trained on images.

        Raises:
            UserError: `vocabulary.json` is not there, damaged, or another run's.
        """
        if self.manifest.vocabulary is None:
            return None
        path, tokens = self.folder / VOCABULARY, self.manifest.tokens
        vocabulary = read_vocabulary(path)
        if vocabulary.size != tokens:
            raise UserError(f"{path} is another run's: it has {vocabulary.size:,} tokens, and not {tokens:,}")
        return vocabulary

    def supply(self, data: Data | str | None = None) -> Supply:
        """What its network takes: the data that it was trained on, or others.

        Texts are those in the folder, wherever they came from; images are read again.

        Raises:
            UserError: the data are not there, damaged, or do not fit the network.
        """
        graph, vocabulary = self.graph(), self.vocabulary()
        if vocabulary is None:
            return open_images(graph, self.data() if data is None else data, self.manifest.pixels())
        if data is not None:
            if not (isinstance(data, str) and is_text(data)):
                raise UserError(f"`{graph.model}` was trained on text: text:PATH")
            return open_texts(graph, data, vocabulary)
        return self.texts()

    def texts(self) -> Texts:
        """The texts in the folder.

        Raises:
            UserError: it was trained on images, or they are damaged.
        """
        manifest, vocabulary = self.manifest, self.vocabulary()
        if vocabulary is None or manifest.vocabulary is None or manifest.characters is None:
            raise UserError(f"`{manifest.model}` was trained on images, but this needs a network of text")
        return Texts(
            manifest.data,
            manifest.fingerprint,
            vocabulary,
            manifest.vocabulary,
            check_reads(self.graph(), manifest.data, vocabulary),
            {part: open_tokens(self.folder / TOKENS / f"{part}.npy", vocabulary) for part in PARTS},
            {part: manifest.characters[part] for part in PARTS},
            manifest.limit,
        )

    def asked_again(self, data: str, vocabulary: str | None) -> Texts:
        """The texts in the folder, called as they are now asked for, to be compared with what was asked for then."""
        texts, fingerprint = self.texts(), open_corpus(data).fingerprint()
        return replace(texts, text=data, asked=vocabulary or texts.asked, fingerprint=fingerprint)

    def known(self) -> Known | None:
        """The vocabulary, for a run that begins with this one's weights; None where it was trained on images."""
        vocabulary = self.vocabulary()
        if vocabulary is None or self.manifest.vocabulary is None:
            return None
        return Known(str(self.folder), self.manifest.vocabulary, vocabulary)

    def test(self) -> dict[str, Any] | None:
        """What `test.json` says; None before the run is over.

        `images` or `windows`, `loss`, `epoch`, and `accuracy`, `perplexity`, `bits_per_character` where there are such.
        """
        path = self.folder / TEST
        if not path.is_file():
            return None
        try:
            scores = json.loads(path.read_text("utf-8"))
        except ValueError as problem:
            raise UserError(f"{path} is damaged: {problem}") from problem
        if not isinstance(scores, dict):
            raise UserError(f"{path} is damaged: it holds no scores")
        return scores

    def metadata(self) -> dict[str, str]:
        """What an exported file must say of the pixels and the classes, or the tokens, by the keys of its metadata."""
        vocabulary = self.vocabulary()
        if vocabulary is not None:
            return {"crate_dsl.vocabulary": vocabulary.to_json()}
        assert self.manifest.scaling is not None
        entries: dict[str, Any] = {"crate_dsl.scaling": self.manifest.scaling.model_dump(mode="json")}
        if self.manifest.classes:
            entries["crate_dsl.classes"] = list(self.manifest.classes)
        return {key: json.dumps(value, ensure_ascii=False) for key, value in entries.items()}


def open_run(folder: str | Path) -> Run:
    """Read a run's folder.

    Raises:
        UserError: it holds no run, or its `run.json` is damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(
            f"there is no run at {folder}", "crate-dsl train TARGET --data … --out " + str(folder)
        )
    return Run(folder, Manifest.read(folder / MANIFEST))


def export_run(
    folder: str | Path,
    path: str | Path,
    *,
    lower: str = "all",
    reduction: Reduction = FLOAT32,
    cache: bool = False,
) -> Proof:
    """Export a run's network, proved, with the scaling of its pixels and the names of its classes, or its vocabulary.

    `lower` are the exact rewrites that the file is made with: `all`, `none`, `fold,norm`, `-demand`. In fewer bits it
    is judged by the test part of its own data, or of others. With `cache` it is the network for the next tokens.

    Raises:
        UserError: there is no run, or its weights are damaged; the data do not fit the network; there is no such
            rewrite; the network is not causal.
    """
    run = open_run(folder)
    net = run.net()
    samples = None
    if reduction.precision != "float32":
        samples = samples_of(net.graph, run.supply(reduction.data), reduction.images)
    return crate_dsl.export(
        net.graph,
        net,
        path,
        metadata=run.metadata(),
        lower=lower,
        precision=reduction.precision,
        samples=samples,
        agreement=reduction.agreement,
        cache=cache,
    )


def evaluate(run: Run, data: Data | str | None = None, *, device: str = "cpu") -> Scores:
    """How a run's network does on the test part: that of its own data, or of others.

    Raises:
        UserError: the data do not fit the network, or the weights are damaged.
    """
    held = run.supply(data).held("test", torch.device(device))
    net = run.net().to(device)
    objective = crate_dsl.Objective(net) if net.graph.objective is not None else None
    return measure(net.graph, net, objective, held)


# ------------------------------------------------------------------ weights


def save_weights(net: nn.Module, path: Path) -> None:
    """Write a network's weights by their spec paths, whole or not at all."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in net.state_dict().items()}
    write_tensors(path, weights, {"format": "pt"})
