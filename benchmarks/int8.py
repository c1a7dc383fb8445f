"""Fewer bits: what they cost on real images, and what they bring.

    python -m benchmarks.int8 --data idx:/usr/share/datasets/fashion-mnist [--run runs/int8] [--only files …]

`files`: CRATE, 768 wide, is trained on Fashion-MNIST where it is not there yet (a quarter of an hour on two cores), and
exported in each precision; agreement and accuracy are those on all test images. `times`: the files' in onnxruntime.
`torch`: the base network of 224 pixels, batch 8, in bfloat16 and compiled, against the published network in float32.
Writes `int8.json` beside this file. The page is `docs/precision.md`.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

import crate_dsl
from benchmarks import networks
from benchmarks.machine import machine
from benchmarks.measure import Effort, error, interleaved, over_processes, rows
from benchmarks.published import with_weights_of
from benchmarks.run import fresh
from benchmarks.sessions import onnxruntime_call
from crate_dsl.compiler.judge import ReducedProof
from crate_dsl.compiler.lower.precision import PRECISIONS
from crate_dsl.training.real import Reduction
from crate_dsl.training.run import METRICS, export_run, open_run
from crate_dsl.training.train import train

ROOT = Path(__file__).resolve().parent.parent
NUMBERS = ROOT / "benchmarks" / "int8.json"
RUN = ROOT / "runs" / "int8"
#: As large as two cores can train in a quarter of an hour: 10.7 M parameters, 50 tokens.
SETTINGS = {"dim": 768, "depth": 6, "subspaces": 12}
RECIPE: dict[str, object] = {"lr": "5e-4", "epochs": 3}
IMAGES = 8000
PARTS = ("files", "times", "torch")
PROCESSES = 3
EFFORT = Effort(seconds=8, least=10)


def trained(folder: Path, data: str) -> None:
    """The run, whole; one that was cut off goes on."""
    if not (folder / "test.json").is_file():
        train(
            str(ROOT / "specs" / "crate.crate@fashion"),
            data,
            folder,
            set=SETTINGS,
            recipe=RECIPE,
            precision="bf16",
            limit=IMAGES,
            resume=(folder / "run.json").is_file(),
        )


def described(folder: Path) -> dict[str, Any]:
    """What was trained, and for how long."""
    manifest = open_run(folder).manifest
    with (folder / METRICS).open() as file:
        epochs = len(list(csv.DictReader(file)))
    return {
        "settings": manifest.settings,
        "parameters": manifest.parameters,
        "training_images": manifest.limit,
        "epochs": epochs,
    }


def files(run: Path, folder: Path, images: int | None) -> dict[str, Any]:
    """Every precision: bytes, and what it costs. Nothing is refused: what it costs is what is to be known."""
    found: dict[str, Any] = {}
    for precision in PRECISIONS:
        file = folder / f"{precision}.onnx"
        reduction = Reduction(precision, images=images, agreement=0.0)
        proof = export_run(run, file, reduction=reduction)
        found[precision] = {"bytes": file.stat().st_size}
        if isinstance(proof, ReducedProof):
            (row,) = proof.judged
            found[precision] |= {"images": proof.samples, **asdict(row)}
        print(precision, found[precision], flush=True)
    return found


def timed(folder: Path, batch: int, shape: tuple[int, ...]) -> dict[str, dict[str, Any]]:
    """Seconds of each file in one process, and ratios to float32."""
    image = np.random.default_rng(0).standard_normal((batch, *shape), dtype=np.float32)
    calls = {name: onnxruntime_call(folder / f"{name}.onnx") for name in PRECISIONS}
    runs: dict[str, Callable[[], object]] = {
        name: lambda call=call: call({"image": image}) for name, call in calls.items()
    }
    return rows(interleaved(runs, EFFORT), "float32")


def in_torch(network: str = "base", batch: int = 8) -> dict[str, dict[str, Any]]:
    """The published network eager, and ours lowered and compiled in float32 and in bfloat16."""
    from torch._inductor import config

    config.freezing = True  # weights are constants, packed once as the processor takes them
    graph = networks.crate(network)
    net = crate_dsl.build(graph, seed=0).eval()
    published = with_weights_of(net, networks.sizes(graph)).eval()
    image = torch.randn(batch, *net.graph.inputs["image"].type.sizes({}))
    variants: dict[str, Any] = {
        "published, float32, eager": published,
        "lowered, float32, compiled": torch.compile(crate_dsl.lower(net)),
        "lowered, bfloat16, compiled": torch.compile(crate_dsl.lower(net, precision="bfloat16")),
    }
    with torch.no_grad():
        wanted = published(image)
        errors = {name: error(variant(image), wanted) for name, variant in variants.items()}
        runs: dict[str, Callable[[], object]] = {
            name: lambda variant=variant: variant(image) for name, variant in variants.items()
        }
        found = rows(interleaved(runs, EFFORT), "published, float32, eager")
    for name, row in found.items():
        row["error"] = errors[name]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="idx:/usr/share/datasets/fashion-mnist")
    parser.add_argument("--run", type=Path, default=RUN, help="taken as it is")
    parser.add_argument("--images", type=int, help="judge by so many test images; all of them without")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--processes", type=int, default=PROCESSES)
    given = parser.parse_args()
    numbers = json.loads(NUMBERS.read_text()) if NUMBERS.exists() else {}
    numbers["machine"] = machine()
    folder = given.run / "files"
    if "files" in given.only:
        if given.run == RUN:
            trained(given.run, given.data)
        folder.mkdir(exist_ok=True)
        numbers["network"] = described(given.run)
        numbers["files"] = files(given.run, folder, given.images)
    if "times" in given.only:
        shape = tuple(open_run(given.run).graph().inputs["image"].type.sizes({}))
        numbers["batches"] = {
            str(batch): over_processes([fresh(timed, folder, batch, shape) for _ in range(given.processes)])
            for batch in (1, 8)
        }
    if "torch" in given.only:
        numbers["torch"] = over_processes([fresh(in_torch) for _ in range(given.processes)])
    NUMBERS.write_text(json.dumps(numbers, indent=1) + "\n")
    for batch, table in numbers.get("batches", {}).items():
        for name, row in table.items():
            print(f"batch {batch}  {name:10s} x {row['ratio']:.2f}")
    for name, row in numbers.get("torch", {}).items():
        print(f"{name:30s} x {row['ratio']:.2f}  error {row['error']:.1e}")


if __name__ == "__main__":
    main()
