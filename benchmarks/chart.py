"""The chart of the documentation: what is how many times as fast, and how time grows with tokens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

#: Bars by variant, from the top; whose they are decides the colour.
BARS = (
    "published, torch",
    "published, torch.compile",
    "published, torch.compile bf16",
    "published, onnxruntime",
    "ViT of equal width, onnxruntime",
    "ViT of equal parameters, onnxruntime",
    "crate-dsl, torch",
    "crate-dsl, torch.compile",
    "crate-dsl, onnxruntime",
    "crate-dsl, OpenVINO",
    "crate-dsl, torch.compile bf16",
    "crate-dsl, OpenVINO bf16",
)
COLOURS = {"published": "#9a9a9a", "ViT": "#b3541e", "crate-dsl": "#1f5fa8"}
LINES = {"published, torch": "#555555", "crate-dsl, onnxruntime": "#1f5fa8"}


def draw(numbers: Mapping[str, Any], path: Path) -> None:
    """A panel for each network, a pale bar for the first batch size and a full one for the last; and one for growth.

    Parts that were not measured have no panel.
    """
    plt.rcParams.update(
        {"font.size": 8, "svg.hashsalt": "crate-dsl", "axes.spines.top": False, "axes.spines.right": False}
    )
    networks, growth = numbers.get("inference", {}), numbers.get("growth")
    count = len(networks) + (growth is not None)
    figure, panels = plt.subplots(
        1, count, figsize=(2.2 + 2.2 * count, 3.4), layout="constrained", squeeze=False
    )
    for place, (axes, (network, found)) in enumerate(zip(panels[0], networks.items(), strict=False)):
        _bars(axes, found["batches"], labelled=place == 0)
        axes.set_title(network)
    if networks:
        first, last = _ends(networks)
        title = f"bars: times as fast as published in torch; pale at batch {first}, full at batch {last}"
        figure.supxlabel(title, fontsize=8)
    if growth is not None:
        _growth(panels[0][-1], growth["tokens"]["sizes"])
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _ends(networks: Mapping[str, Any]) -> tuple[str, str]:
    batches = list(next(iter(networks.values()))["batches"])
    return batches[0], batches[-1]


def _bars(axes: Any, batches: Mapping[str, Any], labelled: bool) -> None:
    tables = [batches[batch] for batch in (min(batches, key=int), max(batches, key=int))]
    names = [name for name in BARS if name in tables[0]]
    for row, name in enumerate(names):
        colour = next(colour for whose, colour in COLOURS.items() if name.startswith(whose))
        for table, shift, alpha in zip(tables, (-0.2, 0.2), (0.45, 1.0), strict=True):
            ratio = table[name]["ratio"]
            axes.barh(row + shift, ratio, height=0.38, color=colour, alpha=alpha)
            axes.annotate(f" {ratio:.1f}", (ratio, row + shift), va="center", fontsize=6)
    axes.set_yticks(range(len(names)), names if labelled else [""] * len(names))
    axes.invert_yaxis()
    axes.axvline(1, color="#555555", lw=0.6)
    axes.margins(x=0.15)


def _growth(axes: Any, sizes: Mapping[str, Any]) -> None:
    tokens = [int(size) for size in sizes]
    first = next(iter(sizes.values()))["published, torch"]["median"]
    for name, colour in LINES.items():
        axes.loglog(
            tokens,
            [row[name]["median"] / first for row in sizes.values()],
            color=colour,
            marker="o",
            ms=3,
            label=name,
        )
    axes.set(title="growth", xlabel="tokens", ylabel="time, the first point = 1", xticks=tokens)
    axes.set_xticklabels([f"{size:,}" for size in tokens])
    axes.minorticks_off()
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
