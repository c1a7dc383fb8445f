"""The networks that are measured: CRATE in three sizes, and beside each two plain ViTs, of equal width and of equal
parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import crate_dsl
from crate_dsl.compiler.graph import ModelGraph

SPECS = Path(__file__).resolve().parent.parent / "specs"
#: 32-pixel images in 64 patches: small enough that overheads rule.
MICRO = {"size": 32, "patch": 4, "depth": 6, "classes": 10}
#: Settings by network: of CRATE, of the ViT of equal width (and heads), of the ViT of about equal parameters.
NETWORKS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "tiny": (
        {"dim": 384, "depth": 12, "subspaces": 6},
        {"dim": 384, "depth": 12, "heads": 6},
        {"dim": 192, "depth": 12, "heads": 3},
    ),
    "base": (
        {"dim": 768, "depth": 12, "subspaces": 12},
        {"dim": 768, "depth": 12, "heads": 12},
        {"dim": 384, "depth": 12, "heads": 6},
    ),
    "micro": (
        {**MICRO, "dim": 192, "subspaces": 3},
        {**MICRO, "dim": 192, "heads": 3},
        {**MICRO, "dim": 96, "heads": 3},
    ),
    # For `--quick` and the tests: it shows that everything runs, and nothing else.
    "least": (
        {**MICRO, "size": 8, "depth": 2, "dim": 48, "subspaces": 3},
        {**MICRO, "size": 8, "depth": 2, "dim": 48, "heads": 3},
        {**MICRO, "size": 8, "depth": 2, "dim": 24, "heads": 3},
    ),
}


def crate(name: str, changes: Mapping[str, Any] = {}) -> ModelGraph:
    """CRATE in one of the sizes, some of its settings changed."""
    return crate_dsl.load(str(SPECS / "crate.crate"), set={**NETWORKS[name][0], **changes})


def vit_of_equal_width(name: str) -> ModelGraph:
    return crate_dsl.load(str(SPECS / "vit.crate"), set=NETWORKS[name][1])


def vit_of_equal_parameters(name: str) -> ModelGraph:
    return crate_dsl.load(str(SPECS / "vit.crate"), set=NETWORKS[name][2])


def sizes(graph: ModelGraph) -> dict[str, int]:
    """The settings as whole numbers."""
    return {name: int(value) for name, value in graph.settings.items()}
