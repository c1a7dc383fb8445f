"""The authors' files as tests make them, and what the published networks compute, in float64, on the published keys.

Axes: B batch, N tokens, d width, h heads of p numbers; P = c p q the pixels of a patch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import crate_dsl
from crate_dsl.checkpoints.importing import Imported, import_checkpoint
from crate_dsl.compiler.graph import ModelGraph
from crate_dsl.compiler.network import Network

State = dict[str, Tensor]
Shapes = dict[str, tuple[int, ...]]
#: The tokens after each layer, by the name of the stage, and the output.
Computed = tuple[dict[str, list[Tensor]], Tensor]

SPECS = Path(str(files("crate_dsl.specs")))
#: All different, so that no axis can be taken for another.
WIDTH, HEADS, LAYERS, PATCH, SIZE, CHANNELS, CLASSES = 40, 5, 2, 4, 12, 3, 7
PIXELS, TOKENS, WIDE = PATCH**2 * CHANNELS, (SIZE // PATCH) ** 2, 4 * WIDTH
ETA = 0.1


@dataclass(frozen=True)
class Layout:
    """One family: its spec, what its files hold, and what its network computes of images (and of hidden patches)."""

    family: str
    target: str
    settings: dict[str, int]
    shapes: Shapes
    compute: Callable[..., Computed]

    def graph(self) -> ModelGraph:
        return crate_dsl.load(self.target, set=self.settings)

    def inputs(self) -> tuple[Tensor, ...]:
        """Random images, and for masked completion which of their patches are hidden."""
        generator = torch.Generator().manual_seed(1)
        images_bchw = torch.randn(3, CHANNELS, SIZE, SIZE, generator=generator)
        hidden_bn = torch.rand(3, TOKENS, generator=generator) < 0.6
        return (images_bchw, hidden_bn) if "mask_token" in self.shapes else (images_bchw,)

    def state(self) -> State:
        """Random weights that keep tokens at the size of 1; no norm and no bias is what it is at the beginning."""
        generator = torch.Generator().manual_seed(0)
        found = {}
        for key, shape in self.shapes.items():
            noise = torch.randn(shape, generator=generator)
            if key == "decoder_pos_embed":
                found[key] = sincos()
            elif len(shape) == 1:
                found[key] = 0.2 * noise + ("norm" in key and key.endswith("weight"))
            elif len(shape) == 2 or len(shape) == 4:
                found[key] = noise / noise[0].numel() ** 0.5
            else:
                found[key] = noise
        return found


def block(prefix: str, *, bias: bool = True, **others: tuple[int, ...]) -> Shapes:
    """A published layer's attention with its norm, and the other half's norm and weights."""
    d = WIDTH
    out = {f"{prefix}.0.fn.to_out.0.bias": (d,)} if bias else {}
    return {
        **affine(f"{prefix}.0.norm", d),
        f"{prefix}.0.fn.qkv.weight": (d, d),
        f"{prefix}.0.fn.to_out.0.weight": (d, d),
        **out,
        **affine(f"{prefix}.1.norm", d),
        **{f"{prefix}.1.fn.{name}": shape for name, shape in others.items()},
    }


def affine(key: str, *shape: int) -> Shapes:
    return {f"{key}.weight": shape, f"{key}.bias": shape[:1]}


# ------------------------------------------------------------------ the formulas


def norm(w: State, key: str, x_bnd: Tensor, eps: float = 1e-5) -> Tensor:
    return F.layer_norm(x_bnd, x_bnd.shape[-1:], w[f"{key}.weight"], w[f"{key}.bias"], eps)


def linear(w: State, key: str, x_bnd: Tensor) -> Tensor:
    return x_bnd @ w[f"{key}.weight"].T + w.get(f"{key}.bias", 0)


def mssa(w: State, key: str, x_bnd: Tensor) -> Tensor:
    """softmax(W W' / sqrt p) W for each head's W = X U', and the map out."""
    w_bhnp = (x_bnd @ w[f"{key}.qkv.weight"].T).unflatten(-1, (HEADS, -1)).transpose(1, 2)
    scores_bhnn = w_bhnp @ w_bhnp.mT / (WIDTH // HEADS) ** 0.5
    heads_bnd = (scores_bhnn.softmax(-1) @ w_bhnp).transpose(1, 2).flatten(2)
    return linear(w, f"{key}.to_out.0", heads_bnd)


def ista(w_dd: Tensor, h_bnd: Tensor, penalty: float) -> Tensor:
    """relu(h + η (h W - h W'W) - η λ), one row a token."""
    return torch.relu(h_bnd + ETA * (h_bnd @ w_dd - h_bnd @ w_dd.T @ w_dd) - ETA * penalty)


def convolved(w: State, key: str, images_bchw: Tensor) -> Tensor:
    tokens = F.conv2d(images_bchw, w[f"{key}.weight"], w[f"{key}.bias"], stride=PATCH)
    return tokens.flatten(2).transpose(1, 2)


def patches(images_bchw: Tensor) -> Tensor:
    """Each patch as a row: by pixel row, pixel column, channel."""
    cut_bchpwq = images_bchw.unflatten(3, (-1, PATCH)).unflatten(2, (-1, PATCH))
    return cut_bchpwq.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def with_class(w: State, x_bnd: Tensor) -> Tensor:
    return torch.cat([w["cls_token"].expand(len(x_bnd), -1, -1), x_bnd], dim=1)


def sincos() -> Tensor:
    """The fixed table: sines and cosines of the column, then of the row; zeros for the class token.

    In float32, as the authors work it out.
    """
    quarter = WIDTH // 4
    frequencies = 10000.0 ** -(torch.arange(quarter) / quarter)
    side = SIZE // PATCH
    rows = [torch.zeros(WIDTH)]
    for row in range(side):
        for column in range(side):
            halves = [(place * frequencies).sin() for place in (column, row)]
            others = [(place * frequencies).cos() for place in (column, row)]
            rows.append(torch.cat([halves[0], others[0], halves[1], others[1]]))
    return torch.stack(rows)[None]


# ------------------------------------------------------------------ the networks


def crate(w: State, images_bchw: Tensor) -> Computed:
    x = norm(w, "to_patch_embedding.1", patches(images_bchw))
    x = norm(w, "to_patch_embedding.3", linear(w, "to_patch_embedding.2", x))
    x = with_class(w, x) + w["pos_embedding"]
    layers = []
    for i in range(LAYERS):
        key = f"transformer.layers.{i}"
        x = x + mssa(w, f"{key}.0.fn", norm(w, f"{key}.0.norm", x))
        x = ista(w[f"{key}.1.fn.weight"], norm(w, f"{key}.1.norm", x), penalty=0.1)
        layers.append(x)
    return {"encoder": layers}, linear(w, "mlp_head.1", norm(w, "mlp_head.0", x[:, 0]))


def crate_alpha(w: State, images_bchw: Tensor) -> Computed:
    eps, penalty = 1e-6, 0.1
    x = with_class(w, convolved(w, "conv1", images_bchw)) + w["pos_embedding"]
    layers = []
    for i in range(LAYERS):
        key = f"transformer.layers.{i}"
        x = x + mssa(w, f"{key}.0.fn", norm(w, f"{key}.0.norm", x, eps))
        y, dictionary = norm(w, f"{key}.1.norm", x, eps), w[f"{key}.1.fn.D"]
        code = torch.relu(ETA * y @ dictionary - ETA * penalty)
        code = torch.relu(code + ETA * (y - code @ dictionary.T) @ dictionary - ETA * penalty)
        x = x + code @ w[f"{key}.1.fn.D1"].T
        layers.append(x)
    return {"encoder": layers}, linear(w, "mlp_head.1", norm(w, "mlp_head.0", x[:, 0], eps))


def crate_mae(w: State, images_bchw: Tensor, hidden_bn: Tensor) -> Computed:
    x = convolved(w, "patch_embed.proj", images_bchw)
    x = torch.where(hidden_bn[..., None], w["mask_token"], x)
    x = with_class(w, x) + w["decoder_pos_embed"]
    encoder, decoder = [], []
    for i in range(LAYERS):
        key = f"blocks.{i}.layers.0"
        x = x + mssa(w, f"{key}.0.fn", norm(w, f"{key}.0.norm", x))
        x = ista(w[f"{key}.1.fn.weight"], norm(w, f"{key}.1.norm", x), penalty=0.5)
        encoder.append(x)
    x = norm(w, "norm", x, 1e-6)
    for i in range(LAYERS):
        key = f"decoder_blocks.{i}.layers.0"
        x = norm(w, f"{key}.0.norm", x) @ w[f"{key}.0.fn.weight"].T
        x = x - mssa(w, f"{key}.1.fn", norm(w, f"{key}.1.norm", x))
        decoder.append(x)
    x = linear(w, "decoder_pred", norm(w, "decoder_norm", x, 1e-6))
    return {"encoder": encoder, "decoder": decoder}, x[:, 1:]


# ------------------------------------------------------------------ the files

CLASSIFIER: dict[str, int] = {
    "dim": WIDTH, "depth": LAYERS, "subspaces": HEADS, "patch": PATCH, "size": SIZE, "channels": CHANNELS,
    "classes": CLASSES,
}  # fmt: skip

CRATE = Layout(
    "CRATE",
    str(SPECS / "crate.crate"),
    CLASSIFIER,
    {
        "pos_embedding": (1, TOKENS + 1, WIDTH),
        "cls_token": (1, 1, WIDTH),
        **affine("to_patch_embedding.1", PIXELS),
        **affine("to_patch_embedding.2", WIDTH, PIXELS),
        **affine("to_patch_embedding.3", WIDTH),
        **block("transformer.layers.0", weight=(WIDTH, WIDTH)),
        **block("transformer.layers.1", weight=(WIDTH, WIDTH)),
        **affine("mlp_head.0", WIDTH),
        **affine("mlp_head.1", CLASSES, WIDTH),
    },
    crate,
)

CRATE_ALPHA = Layout(
    "CRATE-alpha",
    str(SPECS / "crate_alpha.crate"),
    CLASSIFIER,
    {
        "pos_embedding": (1, TOKENS + 1, WIDTH),
        "cls_token": (1, 1, WIDTH),
        **affine("conv1", WIDTH, CHANNELS, PATCH, PATCH),
        **block("transformer.layers.0", bias=False, D=(WIDTH, WIDE), D1=(WIDTH, WIDE)),
        **block("transformer.layers.1", bias=False, D=(WIDTH, WIDE), D1=(WIDTH, WIDE)),
        **affine("mlp_head.0", WIDTH),
        **affine("mlp_head.1", CLASSES, WIDTH),
    },
    crate_alpha,
)


def decoder_block(prefix: str) -> Shapes:
    """The halves of a layer change places."""
    return {
        **affine(f"{prefix}.0.norm", WIDTH),
        f"{prefix}.0.fn.weight": (WIDTH, WIDTH),
        **affine(f"{prefix}.1.norm", WIDTH),
        f"{prefix}.1.fn.qkv.weight": (WIDTH, WIDTH),
        **affine(f"{prefix}.1.fn.to_out.0", WIDTH, WIDTH),
    }


#: What a file of CRATE-MAE holds and its network never reads.
UNUSED = {"pos_embed": (1, TOKENS + 1, WIDTH), **affine("decoder_embed", WIDTH, WIDTH)}

CRATE_MAE = Layout(
    "CRATE-MAE",
    str(SPECS / "crate_mae.crate"),
    {name: CLASSIFIER[name] for name in ("dim", "depth", "subspaces", "patch", "size", "channels")},
    {
        "cls_token": (1, 1, WIDTH),
        "mask_token": (1, 1, WIDTH),
        "decoder_pos_embed": (1, TOKENS + 1, WIDTH),
        **affine("patch_embed.proj", WIDTH, CHANNELS, PATCH, PATCH),
        **block("blocks.0.layers.0", weight=(WIDTH, WIDTH)),
        **block("blocks.1.layers.0", weight=(WIDTH, WIDTH)),
        **affine("norm", WIDTH),
        **UNUSED,
        **decoder_block("decoder_blocks.0.layers.0"),
        **decoder_block("decoder_blocks.1.layers.0"),
        **affine("decoder_norm", WIDTH),
        **affine("decoder_pred", PIXELS, WIDTH),
    },
    crate_mae,
)


# ------------------------------------------------------------------ imported, and run

#: Rounding of float32 over two layers of sums of 40 to 160 terms, at tokens of size 1 to 10.
SINGLE = 1e-5


def imported(layout: Layout, state: Any, folder: Path) -> Imported:
    """A state, by way of a file."""
    path = folder / "made.pth"
    torch.save(state, path)
    return import_checkpoint(path, layout.graph())


def network(found: Imported, folder: Path) -> Network:
    """The network, its weights by way of a file."""
    found.save(folder / "weights.safetensors")
    net = crate_dsl.build(found.graph, seed=7)
    crate_dsl.load_weights(net, folder / "weights.safetensors")
    return net.eval()


def computed(layout: Layout, net: Network) -> Computed:
    """What each layer of each stage gave, and the output."""
    tokens: dict[str, list[Tensor]] = {}
    for name in ("encoder", "decoder"):
        stage = getattr(net, name, None)
        for layer in [] if stage is None else stage.layers:
            found = tokens.setdefault(name, [])
            layer.register_forward_hook(lambda *call, found=found: found.append(call[-1]))
    with torch.no_grad():
        return tokens, net(*layout.inputs())


def same_as_published(layout: Layout, state: State, net: Network) -> None:
    """The network's tokens after every layer, and its output, are those of the formulas."""
    double = {key: tensor.double() for key, tensor in state.items()}
    wanted, wanted_out = layout.compute(
        double, *(x.double() if x.is_floating_point() else x for x in layout.inputs())
    )
    ours, ours_out = computed(layout, net)
    assert {name: len(layers) for name, layers in ours.items()} == dict.fromkeys(wanted, LAYERS)
    for name, layers in wanted.items():
        for i, (one, other) in enumerate(zip(ours[name], layers, strict=True)):
            assert (one - other).abs().max() < SINGLE * max(1, other.abs().max()), f"{name}.{i}"
    assert (ours_out - wanted_out).abs().max() < SINGLE * max(1, wanted_out.abs().max())
