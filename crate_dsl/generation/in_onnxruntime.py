"""Exported files that score the next token, in onnxruntime. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from pydantic import ValidationError

from crate_dsl.compiler.graph import Cache
from crate_dsl.compiler.runtime import DTYPES, ONNXRUNTIME_ERRORS, Session
from crate_dsl.generation.predictors import Ids, Scores, States, Stepping
from crate_dsl.generation.text_network import TextNetwork
from crate_dsl.language.diagnostics import UserError

#: Numbers of a state before the first token, or for each: files may be anybody's.
MOST_HELD = 2**28


def cache_of(session: Session) -> Cache | None:
    """How a file holds what was before; None where it does not.

    Raises:
        UserError: what it says of that is damaged.
    """
    text = session.metadata.extra.get("cache")
    if text is None:
        return None
    try:
        cache = Cache.model_validate_json(text)
    except ValidationError as problem:
        raise UserError(f"`{session.name}` is damaged: what it says of its cache cannot be read") from problem
    states = [taken for taken, _ in cache.states]
    takes = {cache.tokens, cache.past, *states}
    gives = {cache.scores, *(given for _, given in cache.states)}
    if takes != set(session.inputs) or not gives <= set(session.outputs):
        raise UserError(
            f"`{session.name}` is damaged: what it says of its cache is not what it takes and gives"
        )
    if any(prod(dim.static or 1 for dim in session.inputs[name].shape) > MOST_HELD for name in states):
        raise UserError(f"`{session.name}` is damaged: it would hold more of a text than any network does")
    return cache


class Whole:
    """A file without a cache: tokens (N,) -> the scores behind the last one, (V,)."""

    def __init__(self, session: Session, network: TextNetwork) -> None:
        self.session, self.network = session, network

    def __call__(self, ids_n: Ids) -> Scores:
        feeds: dict[str, NDArray[Any]] = {self.network.ids: ids_n[None]}
        if self.network.kept is not None:
            feeds[self.network.kept] = np.ones((1, len(ids_n)), np.bool_)
        scores: Scores = self.session(**feeds)[self.network.scores][0, -1]
        return scores


def stepping(session: Session, network: TextNetwork, cache: Cache) -> Stepping:
    """A file with a cache. What is held of the tokens before stays where the file runs."""
    device = session.provider
    native = session.native

    def nothing() -> States:
        return tuple(
            onnxruntime.OrtValue.ortvalue_from_numpy(_empty(session, name), device, 0)
            for name, _ in cache.states
        )

    def advance(ids_m: Ids, past: int, states: States) -> tuple[Scores, States]:
        binding = native.io_binding()
        binding.bind_cpu_input(cache.tokens, ids_m[None])
        binding.bind_cpu_input(cache.past, np.array([past], np.int64))
        for (taken, _), state in zip(cache.states, states, strict=True):
            binding.bind_ortvalue_input(taken, state)
        binding.bind_output(network.scores)
        for _, given in cache.states:
            binding.bind_output(given, device)
        try:
            native.run_with_iobinding(binding)
        except ONNXRUNTIME_ERRORS as problem:
            raise UserError(f"`{session.name}` cannot go on behind {past:,} tokens: {problem}") from problem
        scores, *held = binding.get_outputs()
        return scores.numpy()[0, -1], tuple(held)

    return Stepping(advance, nothing)


def _empty(session: Session, name: str) -> NDArray[Any]:
    """A state before the first token: no rows where it grows, and zeros where it does not."""
    wanted = session.inputs[name]
    return np.zeros((1, *(dim.static or 0 for dim in wanted.shape)), DTYPES[wanted.kind])


def proved_error(proof: Mapping[str, Any] | None, scores: str) -> float | None:
    """How far these scores were from torch's in the file's own proof, at the file's weights; None without a proof."""
    if proof is None:
        return None
    try:
        rows = [row for row in proof["rows"] if row["weights"] == "given" and row["output"] == scores]
        return max(float(row["error"]) for row in rows)
    except (KeyError, TypeError, ValueError):
        return None
