"""What can go on with a text: a run in torch, or an exported file in onnxruntime."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from crate_dsl.generation.predictors import Cached, Predictor, Whole
from crate_dsl.generation.text_network import TextNetwork, text_network
from crate_dsl.language.diagnostics import UserError
from crate_dsl.training.vocabulary import Vocabulary, from_json

if TYPE_CHECKING:
    import torch

    from crate_dsl.compiler.network import Network

Provider = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True)
class Source:
    """A network that goes on with texts, by the name that a user gave it.

    `proved_error` is how far an exported file's scores were from torch's in its proof. Runs have none, and neither have
    files in fewer bits.
    """

    name: str
    runtime: Literal["torch", "onnxruntime"]
    predictor: Predictor
    vocabulary: Vocabulary
    proved_error: float | None = None

    @property
    def cached(self) -> bool:
        return isinstance(self.predictor, Cached)


def open_source(path: str, *, cache: bool = True, provider: Provider = "auto") -> Source:
    """A run's folder, or a file that `export` wrote, with the vocabulary that it carries.

    Args:
        path: The folder or the file.
        cache: Whether each token is computed once. Of a file: if it was exported so, else each is computed anew.
        provider: `cuda` computes on the GPU or fails, `cpu` on the CPU; `auto` takes the GPU where there is one.

    Raises:
        UserError: it is not there, damaged, without weights or vocabulary, or no network that goes on with texts.
        SpecError: this version reads the file's spec otherwise than the one that exported.
    """
    return _file(path, cache, provider) if path.endswith(".onnx") else _run(path, cache, provider)


def _file(path: str, cache: bool, provider: Provider) -> Source:
    from crate_dsl.compiler.runtime import open_session
    from crate_dsl.generation import in_onnxruntime
    from crate_dsl.workspace import load_exported

    session = open_session(path, provider)
    network = text_network(load_exported(session.metadata))
    text = session.metadata.extra.get("vocabulary")
    if text is None:
        raise UserError(
            f"`{path}` does not say what its tokens stand for",
            "files of runs on text do: crate-dsl train … --data text:PATH, then crate-dsl export",
        )
    vocabulary = from_json(text, f"the vocabulary of `{path}`")
    _check_size(path, vocabulary, network)
    held = in_onnxruntime.cache_of(session)
    predictor: Predictor
    if held is None:
        predictor = Whole(in_onnxruntime.Whole(session, network), network.context)
    else:
        stepping = in_onnxruntime.stepping(session, network, held)
        predictor = Cached(stepping, network.context) if cache else Whole(stepping.scores_of, network.context)
    # The parity of a file in fewer bits is that of the network before it had fewer.
    proof = session.metadata.proof if session.precision == "float32" else None
    error = in_onnxruntime.proved_error(proof, network.scores)
    return Source(path, "onnxruntime", predictor, vocabulary, error)


def _run(folder: str, cache: bool, provider: Provider) -> Source:
    from crate_dsl.training.run import open_run

    if Path(folder).is_file():
        raise UserError(f"`{folder}` is neither a run's folder nor an .onnx file")
    run = open_run(folder)
    vocabulary = run.vocabulary()
    if vocabulary is None:
        raise UserError(f"{folder} was trained on images: it knows no text")
    from crate_dsl.training.train import chosen_device

    return of_network(run.net(), vocabulary, folder, cache=cache, device=chosen_device(provider))


def of_network(
    net: Network, vocabulary: Vocabulary, name: str, *, cache: bool = True, device: torch.device | None = None
) -> Source:
    """A built network that goes on with texts, in torch; on the CPU where no device is named.

    Raises:
        UserError: it goes on with none; it cannot hold what was before.
    """
    from crate_dsl.generation import in_torch

    network = text_network(net.graph)
    _check_size(name, vocabulary, network)
    if not cache:
        predictor = Whole(in_torch.Whole(net, network, device), network.context)
        return Source(name, "torch", predictor, vocabulary)
    try:
        stepping = in_torch.stepping(net, network, device)
    except UserError as problem:
        help = "--no-cache: the whole text is computed for each token"
        raise UserError(problem.message, *problem.help, help) from problem
    return Source(name, "torch", Cached(stepping, network.context), vocabulary)


def _check_size(name: str, vocabulary: Vocabulary, network: TextNetwork) -> None:
    if vocabulary.size > network.vocabulary:
        raise UserError(
            f"`{name}` is damaged: its vocabulary has {vocabulary.size:,} tokens, and its network knows "
            f"{network.vocabulary:,}"
        )
