"""The classifier of `tost.crate` against the published code, written out in float64."""

from __future__ import annotations

from importlib.resources import files
from math import pi

import torch
from torch import Tensor
from torch.nn import functional as F

import crate_dsl
from crate_dsl.compiler.prove import perturb

#: The features of places are kept in float32.
SINGLE = 1e-6


def norm(w: dict[str, Tensor], path: str, z: Tensor) -> Tensor:
    centred = z - z.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    return scaled * w[f"{path}weight"] + w[f"{path}bias"]


def linear(w: dict[str, Tensor], path: str, z: Tensor) -> Tensor:
    return z @ w[f"{path}.weight"].T + w[f"{path}.bias"]


def stem(w: dict[str, Tensor], x: Tensor) -> Tensor:
    """`ConvPatchEmbed`, as it is once trained."""
    for path in ("front.0.", "front."):
        x = F.conv2d(x, w[f"{path}conv.weight"], stride=2, padding=1)
        mean, variance, weight, bias = (
            w[f"{path}batch_norm.{name}"][:, None, None] for name in ("mean", "variance", "weight", "bias")
        )
        x = (x - mean) / (variance + 1e-5).sqrt() * weight + bias
        x = F.gelu(x) if path == "front.0." else x
    return x


def places(w: dict[str, Tensor], rows: int, columns: int) -> Tensor:
    """`PositionalEncodingFourier`: (h w, d)."""
    i = torch.arange(32, dtype=torch.float64)
    divisor = 10000 ** (2 * (i // 2) / 32)

    def features(count: int) -> Tensor:
        angles = (torch.arange(1, count + 1, dtype=torch.float64) / count * 2 * pi)[:, None] / divisor
        return torch.stack([angles[:, 0::2].sin(), angles[:, 1::2].cos()], -1).flatten(1)

    y, x = features(rows), features(columns)
    both = torch.cat([y[:, None].expand(-1, columns, -1), x[None].expand(rows, -1, -1)], -1).flatten(0, 1)
    return both @ w["front.position.projection"].T + w["front.position.bias"]


def token_statistics(w: dict[str, Tensor], path: str, z: Tensor, heads: int) -> Tensor:
    """`AttentionTSSA`, and its place in `Block`."""
    u = norm(w, f"{path}.norm_", z) @ w[f"{path}.subspaces"].T + w[f"{path}.projection_bias"]
    u = u.unflatten(-1, (heads, -1)).transpose(1, 2)
    energies = F.normalize(u, dim=-2).square().sum(-1) * w[f"{path}.temperature"][:, None]
    membership = energies.softmax(1)
    share = membership / (membership.sum(-1, keepdim=True) + 1e-8)
    moments = share[..., None, :] @ u.square()
    out = (-u * membership[..., None] / (1 + moments)).transpose(1, 2).flatten(-2)
    return z + w[f"{path}.step"] * (out @ w[f"{path}.out_weight"].T + w[f"{path}.out_bias"])


def class_attention(w: dict[str, Tensor], path: str, z: Tensor, heads: int) -> Tensor:
    """`ClassAttentionBlock` with `tokens_norm`."""
    x = norm(w, f"{path}.seen.norm.", z)
    query = x[:, :1] @ w[f"{path}.found.cross_attend.query_weight"].T
    query = query + w[f"{path}.found.cross_attend.query_bias"]
    both = x @ w[f"{path}.found.cross_attend.key_value_weight"].T
    key, value = (both + w[f"{path}.found.cross_attend.key_value_bias"]).chunk(2, -1)
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (query, key, value))
    attention = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)
    found = (attention @ v).transpose(1, 2).flatten(-2) @ w[f"{path}.found.cross_attend.out_weight"].T
    found = found + w[f"{path}.found.cross_attend.out_bias"]
    z = z + w[f"{path}.asked.scale.factor"] * torch.cat([found, x[:, 1:]], 1)
    z = norm(w, f"{path}.next.norm.", z)
    told = linear(w, f"{path}.told.linear_2", F.gelu(linear(w, f"{path}.told.linear", z[:, :1])))
    return z + torch.cat([w[f"{path}.told.scale.factor"] * told, z[:, 1:]], 1)


def test_the_network_is_the_published_one() -> None:
    folder = files("crate_dsl.specs")
    net = crate_dsl.build(crate_dsl.load(f"{folder}/tost.crate@fashion"), seed=3).eval()
    perturb(net, net.graph.slots)
    net.double()
    w = {path: value.detach() for path, value in net.named_parameters()}
    image = torch.randn(3, 1, 28, 28, dtype=torch.float64)
    picture = stem(w, image)
    z = picture.flatten(2).transpose(1, 2) + places(w, 7, 7)
    for layer in range(4):
        path = f"encoder.{layer}"
        z = token_statistics(w, f"{path}.compress", z, 4)
        hidden = F.gelu(linear(w, f"{path}.linear", norm(w, f"{path}.norm.", z)))
        z = z + w[f"{path}.scale.factor"] * linear(w, f"{path}.linear_2", hidden)
    z = torch.cat([w["class_token"].expand(3, 1, -1), z], 1)
    for layer in range(2):
        z = class_attention(w, f"logits.{layer}", z, 4)
    wanted = linear(w, "logits.linear", norm(w, "logits.norm.", z)[:, 0])
    with torch.no_grad():
        found = net(image)
    assert (found - wanted).abs().max() < SINGLE * wanted.abs().max()
