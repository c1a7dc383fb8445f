"""What tokens show of pictures: attention maps, principal components, cuts.

Axes: B images, h heads, N tokens, g tokens of the grid (r rows x c columns of patches), m width of a feature.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Marks = NDArray[np.bool_]

#: Principal components that are kept: the first often tells the object from the ground, the next three are colours.
COMPONENTS = 4
#: Patches whose features have a larger cosine are joined; the others hardly (both as in MaskCut).
TAU, FAINT = 0.2, 1e-5
#: How many objects are cut out at most, how much of a picture is too little, and how much overlap is too much.
OBJECTS, LEAST_SHARE, MOST_OVERLAP = 3, 0.01, 0.5


def attention_maps(attention_bhnn: Floats, grid: slice, shape: tuple[int, int], query: int | None) -> Floats:
    """How much each patch is attended to, head by head: (B, h, N, N) -> (B, h, r, c).

    `query` is the row of the token that attends; without it, the mean over the rows of the patches.
    """
    rows_bhn = attention_bhnn[:, :, query] if query is not None else attention_bhnn[:, :, grid].mean(2)
    found: Floats = rows_bhn[..., grid].reshape(*rows_bhn.shape[:2], *shape)
    return found


def principal_components(features_bgm: Floats) -> tuple[Floats, Floats]:
    """The first components of all images' tokens together, each from 0 to 1, (B, g, k); their shares of the variance.

    A component's sign is such that its largest weight is positive.
    """
    rows = features_bgm.reshape(-1, features_bgm.shape[-1])
    centred = rows - rows.mean(0)
    _, sizes, directions = np.linalg.svd(centred, full_matrices=False)
    count = min(COMPONENTS, len(sizes))
    directions = directions[:count]
    largest = np.abs(directions).argmax(1)
    directions = directions * np.where(directions[np.arange(count), largest] < 0, -1, 1)[:, None]
    scores = centred @ directions.T
    low, high = scores.min(0), scores.max(0)
    spread = np.where(high > low, high - low, 1)
    total = float((sizes**2).sum()) or 1.0
    return ((scores - low) / spread).reshape(*features_bgm.shape[:2], count), sizes[:count] ** 2 / total


def cut(features_gm: Floats, shape: tuple[int, int]) -> list[Marks]:
    """The objects of a picture by repeated normalised cuts, MaskCut-style: marks of shape (r, c), at most three.

    The affinity of two patches is 1 where the cosine of their features is above τ, else nearly 0. Where the second
    eigenvector of (E - W) x = λ E x is above its mean is one side; the object is the side of its largest entry, unless
    that side has three corners of the picture; of it, the connected part with that entry. Then these patches are
    taken out, and the rest is cut again. Source: Wang et al. 2023 (CutLER), arXiv 2301.11320, section 3.2; without
    its conditional random field, which would refine the border in pixels.
    """
    found: list[Marks] = []
    left_gm = features_gm.astype(np.float64)
    for _ in range(OBJECTS):
        mark = _object(left_gm, shape)
        if mark is None:
            break
        if mark.mean() <= LEAST_SHARE or any(_overlap(mark, other) > MOST_OVERLAP for other in found):
            break
        found.append(mark)
        left_gm = np.where(mark.reshape(-1, 1), 0.0, left_gm)
    return found


def _object(features_gm: Floats, shape: tuple[int, int]) -> Marks | None:
    """One cut; None where all patches are alike, so that there is nothing to cut."""
    from scipy.linalg import eigh
    from scipy.ndimage import label

    lengths = np.linalg.norm(features_gm, axis=1, keepdims=True)
    unit_gm = features_gm / np.where(lengths > 0, lengths, 1)
    affinity_gg = np.where(unit_gm @ unit_gm.T > TAU, 1.0, FAINT)
    if affinity_gg.min() == affinity_gg.max():
        return None
    degrees_g = affinity_gg.sum(1)
    _, vectors = eigh(np.diag(degrees_g) - affinity_gg, np.diag(degrees_g), subset_by_index=[1, 1])
    vector_g = vectors[:, 0]
    side_g = vector_g > vector_g.mean()
    seed = int(np.abs(vector_g).argmax())
    if not side_g[seed]:
        side_g = ~side_g
    side = side_g.reshape(shape)
    corners = side[[0, 0, -1, -1], [0, -1, 0, -1]].sum()
    if corners >= 3:
        side = ~side
        # The seed of the other side: its most extreme entry.
        seed = int(np.where(side.reshape(-1), np.abs(vector_g - vector_g.mean()), -1).argmax())
    if not side.any():
        return None
    parts, _ = label(side)
    mark: Marks = parts == parts.reshape(-1)[seed]
    return mark


def _overlap(first: Marks, second: Marks) -> float:
    union = int((first | second).sum())
    return float((first & second).sum() / union) if union else 0.0
