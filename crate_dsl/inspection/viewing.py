"""A few images or texts through a network once more: what their tokens attend to, and which of them are alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from crate_dsl.compiler.network import Network
from crate_dsl.inspection.layers import Axis, Layer, axis
from crate_dsl.inspection.measuring import steps
from crate_dsl.inspection.views import Floats, Marks, attention_maps, cut, principal_components


@dataclass(frozen=True, eq=False)
class Maps:
    """Attention of a layer's heads over the patches, (images, heads, rows, columns). `query` says whose it is.

    Of a text, a row is a token that attends, and a column one that it may attend to.
    """

    layer: str
    step: str
    query: str
    maps_bhrc: Floats


@dataclass(frozen=True, eq=False)
class Features:
    """A layer's tokens in their principal components, (images, rows, columns, components), and objects cut out."""

    layer: str
    tap: str
    components_brck: Floats
    explained: tuple[float, ...]
    objects: tuple[tuple[Marks, ...], ...]


def view(
    net: Network,
    mapped: Sequence[Layer],
    compared: Layer | None,
    images: dict[str, Tensor],
    size: int,
    *,
    pairs: bool = False,
) -> tuple[tuple[Maps, ...], Features | None]:
    """Attention maps of some layers, and the tokens of one.

    Args:
        net: in evaluation mode.
        mapped: layers whose attention is mapped; those without a picture's grid are passed over.
        compared: the layer whose tokens are compared, by the first tap of `layers.FEATURES` that it has.
        images: by the names of the network's inputs.
        size: how many images go in at once.
        pairs: map the attention between all tokens, instead of passing over what has no picture's grid.
    """
    graph = net.graph
    attending = {
        step.name: (layer, None if pairs else axis(graph, step))
        for layer in mapped
        if (step := layer.with_tap("attention")) and (pairs or axis(graph, step))
    }
    chosen = compared.features if compared is not None else None
    along = axis(graph, chosen[0]) if chosen is not None else None
    globs = [path for name in attending for path in (f"{name}.attention", name)]
    if chosen is not None and along is not None:
        globs += [f"{chosen[0].name}.{chosen[1]}", chosen[0].name]
    maps: dict[str, list[Floats]] = {name: [] for name in attending}
    features: list[Floats] = []
    count = len(next(iter(images.values())))
    for start in range(0, count if globs else 0, size):
        batch = {name: tensor[start : start + size] for name, tensor in images.items()}
        for node, seen in steps(net, globs, batch):
            if node.name in attending:
                where = attending[node.name][1]
                attention = _array(seen["attention"])
                if where is not None:
                    query = where.class_token and where.class_token[1]
                    attention = attention_maps(attention, where.patches, (where.rows, where.columns), query)
                maps[node.name].append(attention)
            if chosen is not None and along is not None and node.name == chosen[0].name:
                # All subspaces or heads of a token side by side: (B, K, N, p) -> (B, N, K p).
                features_bnm = seen[chosen[1]].transpose(1, 2).flatten(2)
                features.append(_array(features_bnm[:, along.patches]))
    made = tuple(
        Maps(layer.name, name, _query(where), np.concatenate(maps[name]))
        for name, (layer, where) in attending.items()
    )
    if compared is None or chosen is None or along is None:
        return made, None
    return made, _features(compared.name, chosen[1], np.concatenate(features), (along.rows, along.columns))


def _features(layer: str, tap: str, features_bgm: Floats, shape: tuple[int, int]) -> Features:
    components_bgk, explained = principal_components(features_bgm)
    objects = tuple(tuple(cut(features_gm, shape)) for features_gm in features_bgm)
    components_brck = components_bgk.reshape(len(features_bgm), *shape, -1)
    return Features(layer, tap, components_brck, tuple(float(share) for share in explained), objects)


def _query(where: Axis | None) -> str:
    if where is None:
        return "each token"
    return where.class_token[0] if where.class_token is not None else "the mean of all patches"


def _array(tensor: Tensor) -> Floats:
    array: Floats = tensor.detach().double().cpu().numpy()
    return array
