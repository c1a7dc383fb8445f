"""The CRATE classifier as published, plainly in torch: what everything is compared with.

Five matrix products a layer: the projection, its way out, and three for the dictionary's gradient. The softmax exists
as a tensor. Parameters are named after what they are; `counterparts` says which of ours each one is.

White-Box Transformers via Sparse Rate Reduction (2023), arXiv 2306.01129, eqs. 7-8 and 17, and the authors' code.
Axes: B batch, N tokens, d width, h heads, p width of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: The step η and the penalty λ of the published networks.
STEP = PENALTY = 0.1


class Attention(nn.Module):
    """MSSA with a free way out: q = k = v."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (dim // heads) ** -0.5
        self.u = nn.Linear(dim, dim, bias=False)
        self.out = nn.Linear(dim, dim)

    def forward(self, x_bnd: Tensor) -> Tensor:
        w_bhnp = self.u(x_bnd).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        scores_bhnn = torch.matmul(w_bhnp, w_bhnp.transpose(-1, -2)) * self.scale
        heads_bhnp = torch.matmul(scores_bhnn.softmax(dim=-1), w_bhnp)
        return self.out(heads_bhnp.transpose(1, 2).flatten(-2))


class Ista(nn.Module):
    """ReLU(X + η D'(X - D X) - ηλ)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dictionary = nn.Parameter(nn.init.kaiming_uniform_(torch.empty(dim, dim)))

    def forward(self, x_bnd: Tensor) -> Tensor:
        d_x_bnd = F.linear(x_bnd, self.dictionary)
        gradient_bnd = F.linear(d_x_bnd, self.dictionary.t())
        ascent_bnd = F.linear(x_bnd, self.dictionary.t())
        return F.relu(x_bnd + (STEP * (ascent_bnd - gradient_bnd) - STEP * PENALTY))


class Layer(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm_1, self.attention = nn.LayerNorm(dim), Attention(dim, heads)
        self.norm_2, self.ista = nn.LayerNorm(dim), Ista(dim)

    def forward(self, z_bnd: Tensor) -> Tensor:
        z_bnd = z_bnd + self.attention(self.norm_1(z_bnd))
        return self.ista(self.norm_2(z_bnd))


class Published(nn.Module):
    """(B, channels, size, size) -> (B, classes), at the settings of `specs/crate.crate`."""

    def __init__(
        self, dim: int, depth: int, subspaces: int, patch: int, size: int, channels: int, classes: int
    ) -> None:
        super().__init__()
        self.patch = patch
        pixels = channels * patch**2
        self.embed = nn.Sequential(nn.LayerNorm(pixels), nn.Linear(pixels, dim), nn.LayerNorm(dim))
        self.class_token = nn.Parameter(torch.randn(dim))
        self.position = nn.Parameter(torch.randn((size // patch) ** 2 + 1, dim))
        self.layers = nn.Sequential(*(Layer(dim, subspaces) for _ in range(depth)))
        self.head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, classes))

    def forward(self, image_bchw: Tensor) -> Tensor:
        cut_bcrpsq = image_bchw.unflatten(3, (-1, self.patch)).unflatten(2, (-1, self.patch))
        z_bnd = self.embed(cut_bcrpsq.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2))
        class_b1d = self.class_token.expand(image_bchw.shape[0], 1, -1)
        z_bnd = torch.cat([class_b1d, z_bnd], dim=1) + self.position
        return self.head(self.layers(z_bnd)[:, 0])


class PublishedObjective(nn.Module):
    """Cross-entropy of a batch by input and target names, as `crate_dsl.Objective` takes it."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(self.net(batch["image"]), batch["label"])


def counterparts(depth: int) -> dict[str, str]:
    """Spec paths of our weights by the names of the published network's."""
    found = {"class_token": "class_token", "position": "tokens.position.table"}
    for ours, theirs in [
        ("tokens.norm", "embed.0"),
        ("tokens.linear", "embed.1"),
        ("tokens.norm_2", "embed.2"),
        ("logits.norm", "head.0"),
        ("logits.linear", "head.1"),
    ]:
        found |= {f"{theirs}.{kind}": f"{ours}.{kind}" for kind in ("weight", "bias")}
    for i in range(depth):
        compress, sparsify, layer = f"encoder.{i}.compress", f"encoder.{i}.sparsify", f"layers.{i}"
        found |= {
            f"{layer}.norm_1.weight": f"{compress}.norm_weight",
            f"{layer}.norm_1.bias": f"{compress}.norm_bias",
            f"{layer}.attention.u.weight": f"{compress}.subspaces",
            f"{layer}.attention.out.weight": f"{compress}.out_weight",
            f"{layer}.attention.out.bias": f"{compress}.out_bias",
            f"{layer}.norm_2.weight": f"{sparsify}.norm_weight",
            f"{layer}.norm_2.bias": f"{sparsify}.norm_bias",
            f"{layer}.ista.dictionary": f"{sparsify}.dictionary",
        }
    return found


def with_weights_of(net: nn.Module, settings: dict[str, int]) -> Published:
    """The published network with the weights of one that was built from `specs/crate.crate` at these settings."""
    published = Published(**settings)
    ours = net.state_dict()
    published.load_state_dict(
        {theirs: ours[path] for theirs, path in counterparts(settings["depth"]).items()}
    )
    return published
