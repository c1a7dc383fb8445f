"""The networks that the tests of generation are made with: the shipped ones, small, all sizes different."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

TARGETS = ("crate_gpt", "tost_gpt", "gpt")
#: The most tokens that each reads.
CONTEXT = 11
SIZES: dict[str, dict[str, Any]] = {
    "crate_gpt": {"dim": 12, "depth": 2, "subspaces": 3, "context": CONTEXT, "vocab": 31},
    "tost_gpt": {
        "dim": 12,
        "depth": 2,
        "subspaces": 3,
        "context": CONTEXT,
        "vocab": 31,
        "scale_at_start": 1,
    },
    "gpt": {"dim": 12, "depth": 2, "heads": 3, "context": CONTEXT, "vocab": 31},
}
TEXT = "the quick brown fox jumps over the lazy dog.\n"


def spec(name: str) -> str:
    """The shipped spec of this name as a target."""
    return f"{files('crate_dsl.specs') / 'text.crate'}:{name}"
