"""How likely an exported network takes a text to be."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from crate_dsl.compiler.runtime import Session
from crate_dsl.compiler.steps.likelihood.module import LEFT_OUT, nats
from crate_dsl.language.diagnostics import UserError
from crate_dsl.training.batches import Likelihood
from crate_dsl.training.supply import open_texts
from crate_dsl.training.vocabulary import from_json
from crate_dsl.workspace import load_exported


@dataclass(frozen=True)
class Told:
    """The mean of -log p over the tokens of a text, `nats`, in so many windows; and what that comes to."""

    nats: float
    windows: int
    likelihood: Likelihood


def told(session: Session, data: str) -> Told:
    """How well a network tells each next token of the test part of `text:PATH`, in windows as it was trained on.

    Raises:
        UserError: the file does not say what its tokens are, or does not score next tokens; the text cannot be read, or
            written with the file's vocabulary.
    """
    extra = session.metadata.extra
    if "vocabulary" not in extra:
        raise UserError(f"`{session.name}` does not say what its tokens are: it is not of a run on text")
    if "cache" in extra:
        raise UserError(
            f"`{session.name}` takes one token after another, and no whole texts",
            "crate-dsl export RUN without --cache writes a file that does",
        )
    graph = load_exported(session.metadata)
    texts = open_texts(graph, data, from_json(extra["vocabulary"], session.name))
    reading, held = texts.reading, texts.held("test", torch.device("cpu"))
    if reading.predicts != "next" or reading.scores is None:
        raise UserError(f"`{session.name}` was not trained to tell the next token")
    total, count = 0.0, 0
    for start in range(0, len(held), held.portion):
        batch = held.batch(slice(start, start + held.portion))
        given = {name: tensor.numpy() for name, tensor in batch.items() if name in session.inputs}
        logits_bnv = torch.from_numpy(session(**given)[reading.scores])
        next_bn = batch[reading.ids][:, 1:]
        if reading.kept is not None:
            next_bn = next_bn.masked_fill(~batch[reading.kept][:, 1:], LEFT_OUT)
        weight = held.weight(batch)
        total += weight * float(nats(logits_bnv[:, :-1], next_bn, smoothing=0.0))
        count += weight
    loss = total / max(count, 1)
    likelihood = held.likelihood(loss)
    assert likelihood is not None  # it predicts next tokens
    return Told(loss, len(held), likelihood)
