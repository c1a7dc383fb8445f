"""What the authors' files call their weights, and which slot of the shipped specs each of them is.

`{i}` stands for the number of a layer. Axes: d width, P = c p q the pixels of a patch, C classes, N tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from math import isqrt
from typing import Literal

Order = Literal["pqc", "cpq"]
Shape = tuple[int, ...]

#: Where the number of a layer stands.
LAYER = "{i}"


@dataclass(frozen=True)
class Weight:
    """A key of the file, and the slot that it is.

    `lead` axes of size 1 stand before the slot's own in the file. Along the slot's axis `pixels` lie the pixels of a
    patch, in the file by row, column and channel; or in the four axes of a convolution's `kernel`, (d, c, p, q).
    """

    key: str
    slot: str
    lead: int = 0
    pixels: int | None = None
    kernel: bool = False

    @property
    def order(self) -> Order:
        """How a patch's pixels lie in the file."""
        return "cpq" if self.kernel else "pqc"


@dataclass(frozen=True)
class Table:
    """A key of the file with fixed numbers, which the network's `position(sincos)` at `step` works out itself."""

    key: str
    step: str


@dataclass(frozen=True)
class Unused:
    """A key of the file that the published network never reads."""

    key: str
    reason: str


Row = Weight | Table | Unused


@dataclass(frozen=True)
class Family:
    """A published architecture: the rows of its mapping, and the keys whose shapes tell its sizes.

    `patches` is the weight of the patch embedding, `positions` has a row for each token, `layers` is in every layer,
    `head` has a row for each class.
    """

    name: str
    spec: str
    rows: tuple[Row, ...]
    patches: str
    positions: str
    layers: str
    head: str | None = None

    def row(self, key: str) -> Row | None:
        """The row of the mapping that a key of a file belongs to."""
        return next((row for row in self.rows if layer_of(row.key, key) is not None), None)

    @property
    def weights(self) -> Iterator[Weight]:
        return (row for row in self.rows if isinstance(row, Weight))

    @property
    def tables(self) -> Iterator[Table]:
        return (row for row in self.rows if isinstance(row, Table))

    def sizes(self, shapes: Mapping[str, Shape], channels: int) -> dict[str, int]:
        """What keys and shapes tell, under the names that the shipped specs have for it.

        A flat patch of 768 numbers may be 16 x 16 x 3, or 8 x 8 x 12: `channels` are tried first, then 3 and 1.
        """
        found: dict[str, int] = {}
        if len(positions := shapes.get(self.positions, ())) == 3:
            found["dim"] = positions[2]
        if numbers := [int(number) for key in shapes if (number := layer_of(self.layers, key))]:
            found["depth"] = 1 + max(numbers)
        match shapes.get(self.patches, ()):
            case (_, deep, high, wide) if high == wide:
                found |= {"patch": high, "channels": deep}
            case (_, pixels):
                cuts = ((isqrt(pixels // deep), deep) for deep in (channels, 3, 1))
                found |= next(
                    ({"patch": p, "channels": deep} for p, deep in cuts if p * p * deep == pixels), {}
                )
        tokens = positions[1] - 1 if "dim" in found else 0
        if "patch" in found and tokens > 0 and isqrt(tokens) ** 2 == tokens:
            found["size"] = found["patch"] * isqrt(tokens)
        if self.head is not None and shapes.get(self.head):
            found["classes"] = shapes[self.head][0]
        return found


@cache
def _pattern(written: str) -> re.Pattern[str]:
    return re.compile(re.escape(written).replace(re.escape(LAYER), r"(\d+)"))


def layer_of(written: str, path: str) -> str | None:
    """The layer's number in a key or slot path that is written so; "" where it has none; None where it is another.

    >>> layer_of("blocks.{i}.norm", "blocks.7.norm"), layer_of("norm", "norm"), layer_of("norm", "blocks.7.norm")
    ('7', '', None)
    """
    found = _pattern(written).fullmatch(path)
    return None if found is None else "".join(found.groups())


def family_of(keys: Iterable[str]) -> Family | None:
    """The family that knows most of a file's keys; None where none knows more than half of them."""
    keys = list(keys)
    known = {family.name: sum(family.row(key) is not None for key in keys) for family in FAMILIES}
    best = max(FAMILIES, key=lambda family: known[family.name])
    return best if 2 * known[best.name] > len(keys) else None


# ------------------------------------------------------------------ the tables


def _affine(key: str, slot: str, pixels: int | None = None) -> tuple[Weight, Weight]:
    """The weight and bias of a norm or a linear map; `pixels` is the axis of its weight along which they lie."""
    rows = 0 if pixels == 0 else None
    return (
        Weight(f"{key}.weight", f"{slot}.weight", pixels=pixels),
        Weight(f"{key}.bias", f"{slot}.bias", pixels=rows),
    )


def _norm(key: str, step: str) -> tuple[Weight, Weight]:
    """The norm that a step begins with."""
    return Weight(f"{key}.weight", f"{step}.norm_weight"), Weight(f"{key}.bias", f"{step}.norm_bias")


def _attention(key: str, step: str, *, bias: bool = True) -> tuple[Weight, ...]:
    """MSSA: U as the rows of `qkv`, and the map out of the heads."""
    out = (Weight(f"{key}.fn.to_out.0.bias", f"{step}.out_bias"),) if bias else ()
    return (
        *_norm(f"{key}.norm", step),
        Weight(f"{key}.fn.qkv.weight", f"{step}.subspaces"),
        Weight(f"{key}.fn.to_out.0.weight", f"{step}.out_weight"),
        *out,
    )


#: White-Box Transformers via Sparse Rate Reduction (2023), arXiv 2306.01129.
CRATE = Family(
    "CRATE",
    "specs/crate.crate",
    (
        Weight("pos_embedding", "tokens.position.table", lead=1),
        Weight("cls_token", "class_token", lead=2),
        *_affine("to_patch_embedding.1", "tokens.norm", pixels=0),
        Weight("to_patch_embedding.2.weight", "tokens.linear.weight", pixels=1),
        Weight("to_patch_embedding.2.bias", "tokens.linear.bias"),
        *_affine("to_patch_embedding.3", "tokens.norm_2"),
        *_attention("transformer.layers.{i}.0", "encoder.{i}.compress"),
        *_norm("transformer.layers.{i}.1.norm", "encoder.{i}.sparsify"),
        Weight("transformer.layers.{i}.1.fn.weight", "encoder.{i}.sparsify.dictionary"),
        *_affine("mlp_head.0", "logits.norm"),
        *_affine("mlp_head.1", "logits.linear"),
    ),
    patches="to_patch_embedding.2.weight",
    positions="pos_embedding",
    layers="transformer.layers.{i}.0.fn.qkv.weight",
    head="mlp_head.1.weight",
)

#: Scaling White-Box Transformers for Vision (2024), arXiv 2405.20299.
CRATE_ALPHA = Family(
    "CRATE-alpha",
    "specs/crate_alpha.crate",
    (
        Weight("pos_embedding", "tokens.position.table", lead=1),
        Weight("cls_token", "class_token", lead=2),
        Weight("conv1.weight", "tokens.linear.weight", pixels=1, kernel=True),
        Weight("conv1.bias", "tokens.linear.bias"),
        *_attention("transformer.layers.{i}.0", "encoder.{i}.compress", bias=False),
        *_norm("transformer.layers.{i}.1.norm", "encoder.{i}.sparsify"),
        Weight("transformer.layers.{i}.1.fn.D", "encoder.{i}.sparsify.dictionary"),
        Weight("transformer.layers.{i}.1.fn.D1", "encoder.{i}.sparsify.decode"),
        *_affine("mlp_head.0", "logits.norm"),
        *_affine("mlp_head.1", "logits.linear"),
    ),
    patches="conv1.weight",
    positions="pos_embedding",
    layers="transformer.layers.{i}.0.fn.qkv.weight",
    head="mlp_head.1.weight",
)

#: Masked Completion via Structured Diffusion with White-Box Transformers (2024), arXiv 2404.02446.
CRATE_MAE = Family(
    "CRATE-MAE",
    "specs/crate_mae.crate",
    (
        Weight("cls_token", "class_token", lead=2),
        Weight("mask_token", "mask_token", lead=2),
        Unused("pos_embed", "no part of the forward pass"),
        Table("decoder_pos_embed", "code.position"),
        Weight("patch_embed.proj.weight", "code.linear.weight", pixels=1, kernel=True),
        Weight("patch_embed.proj.bias", "code.linear.bias"),
        *_attention("blocks.{i}.layers.0.0", "encoder.{i}.compress"),
        *_norm("blocks.{i}.layers.0.1.norm", "encoder.{i}.sparsify"),
        Weight("blocks.{i}.layers.0.1.fn.weight", "encoder.{i}.sparsify.dictionary"),
        *_affine("norm", "code.norm"),
        Unused("decoder_embed.weight", "no part of the forward pass"),
        Unused("decoder_embed.bias", "no part of the forward pass"),
        *_norm("decoder_blocks.{i}.layers.0.0.norm", "decoder.{i}.densify"),
        Weight("decoder_blocks.{i}.layers.0.0.fn.weight", "decoder.{i}.densify.dictionary"),
        *_attention("decoder_blocks.{i}.layers.0.1", "decoder.{i}.decompress"),
        *_affine("decoder_norm", "completed.norm"),
        *_affine("decoder_pred", "completed.linear", pixels=0),
    ),
    patches="patch_embed.proj.weight",
    positions="decoder_pos_embed",
    layers="blocks.{i}.layers.0.0.fn.qkv.weight",
)

FAMILIES = (CRATE, CRATE_ALPHA, CRATE_MAE)
