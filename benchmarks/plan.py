"""What is measured, in how many processes, and how long in each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks import inference, training


@dataclass(frozen=True)
class Plan:
    """The whole of it, as it stands; `QUICK` is the smallest."""

    #: Inference and training: in how many processes, of which the median is told.
    processes: int = 1
    networks: tuple[str, ...] = ("base", "tiny", "micro")
    batches: tuple[int, ...] = (1, 8)
    compiled: tuple[str, ...] = tuple(inference.COMPILED)
    trained: str = "tiny"
    trained_batches: tuple[int, ...] = (8, 32)
    trained_variants: tuple[str, ...] = tuple(training.VARIANTS)
    emitted: str = "tiny"
    emitted_depths: tuple[int, ...] = (12, 100)
    checked_depths: tuple[int, ...] = (10, 100, 1_000, 10_000)
    #: Images of 112 to 896 pixels in patches of 16: 49 to 3,136 tokens. Four layers, since all are alike.
    grown_wide: str = "tiny"
    image_sizes: tuple[int, ...] = (112, 224, 448, 896)
    image_changes: Mapping[str, int] = field(default_factory=lambda: {"depth": 4})
    grown_deep: str = "micro"
    depths: tuple[int, ...] = (6, 12, 24, 48, 96)
    #: By benchmark, the arguments of `Effort`.
    effort: Mapping[str, Mapping[str, Any]] = field(
        default_factory=lambda: {
            "inference": {"seconds": 8.0},
            "training": {"seconds": 8.0, "least": 3},
            "emission": {"seconds": 8.0, "least": 1},
            "check": {"seconds": 8.0, "least": 3},
            "growth": {"seconds": 4.0},
        }
    )


#: Everything once, at the smallest sizes: it shows that everything runs, and nothing else.
QUICK = Plan(
    networks=("least",),
    batches=(2,),
    compiled=("crate-dsl, torch.compile bf16",),
    trained="least",
    trained_batches=(2,),
    trained_variants=(training.REFERENCE, "crate-dsl, float32", "crate-dsl, bf16"),
    emitted="least",
    emitted_depths=(1,),
    checked_depths=(2,),
    grown_wide="least",
    image_sizes=(8, 16),
    image_changes={},
    grown_deep="least",
    depths=(1, 2),
    effort={name: {"seconds": 0.0, "least": 1, "most": 1} for name in Plan().effort},
)
