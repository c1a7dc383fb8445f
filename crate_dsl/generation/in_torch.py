"""Networks that score the next token, in torch."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from crate_dsl.compiler.network import Network
from crate_dsl.generation.predictors import Ids, Scores
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
