"""Networks that score the next token, in torch."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from crate_dsl.compiler.network import Network
from crate_dsl.compiler.stepping import empty, stepped
from crate_dsl.generation.predictors import Ids, Scores, States, Stepping
from crate_dsl.generation.text_network import TextNetwork


class Whole:
    """A network without a cache: tokens (N,) -> the scores behind the last one, (V,)."""

    def __init__(self, net: Network, network: TextNetwork, device: torch.device | None) -> None:
        self.network, self.device = network, device or torch.device("cpu")
        self.net = net.to(self.device).eval()

    @torch.inference_mode()
    def __call__(self, ids_n: Ids) -> Scores:
        ids_1n = torch.from_numpy(ids_n)[None].to(self.device)
        given = {self.network.ids: ids_1n}
        if self.network.kept is not None:
            given[self.network.kept] = torch.ones_like(ids_1n, dtype=torch.bool)
        result: Mapping[str, Tensor] | Tensor = self.net(**given)
        scores_1nv = result if isinstance(result, Tensor) else result[self.network.scores]
        return scores_1nv[0, -1].cpu().numpy()


def stepping(net: Network, network: TextNetwork, device: torch.device | None) -> Stepping:
    """The network for the next tokens alone, with what it holds of those before.

    Raises:
        UserError: some step takes tokens together that are not there yet.
    """
    device = device or torch.device("cpu")
    one = stepped(net).to(device)
    cache = one.graph.cache
    assert cache is not None

    def nothing() -> States:
        return tuple(empty(one.graph, 1, device).values())

    @torch.inference_mode()
    def advance(ids_m: Ids, past: int, states: States) -> tuple[Scores, States]:
        given = {cache.tokens: torch.from_numpy(ids_m)[None].to(device)}
        if cache.past is not None:
            given[cache.past] = torch.tensor([past], device=device)
        given |= {taken: state for (taken, _), state in zip(cache.states, states, strict=True)}
        found: Mapping[str, Tensor] | Tensor = one(**given)
        if isinstance(found, Tensor):  # nothing is held: no step looks back
            found = {network.scores: found}
        return found[network.scores][0, -1].cpu().numpy(), tuple(found[after] for _, after in cache.states)

    return Stepping(advance, nothing)
