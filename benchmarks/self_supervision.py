"""What encoders learn of Fashion-MNIST without labels: four pretexts, one encoder, two questions to its features.

    python -m benchmarks.self_supervision --data idx:/usr/share/datasets/fashion-mnist [--out runs/self_supervision]

Trains `specs/self_supervised.crate` by its recipes, and the supervised network of the same encoder. Then counts which
of the test images the nearest neighbours and a linear map get right (`crate-dsl features`), beside a random encoder and
raw pixels. Runs that are there already are not repeated, one that was cut off goes on. Writes `self_supervision.json`
beside this file.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from crate_dsl.features import Comparison, compare
from crate_dsl.training.data import Data
from crate_dsl.training.run import METRICS, TEST, Run, open_run
from crate_dsl.training.sources import open_data
from crate_dsl.training.train import train

ROOT = Path(__file__).resolve().parent.parent
#: Networks by the names of their runs, and what is read of each: what the pretexts call features, and what the head of
#: the supervised network is given.
NETWORKS = {
    "contrastive": ("specs/self_supervised.crate:contrastive@fashion", "features"),
    "simdino": ("specs/self_supervised.crate:simdino@fashion", "features"),
    "completion": ("specs/self_supervised.crate:completion@fashion", "features"),
    "rotated": ("specs/self_supervised.crate:rotated@fashion", "features"),
    "supervised": ("specs/crate.crate@fashion", "logits.norm"),
}
#: Those whose first weights stand beside them, as a random encoder: one that reads the class token, as most do, and the
#: one that reads the mean of the patches.
RANDOM = ("contrastive", "completion")


def trained(target: str, data: str, out: Path, limit: int | None, epochs: int | None) -> Run:
    """One run, whole."""
    if (out / TEST).is_file():
        return open_run(out)
    recipe = {} if epochs is None else {"epochs": epochs}
    begun = (out / "run.json").is_file()
    return train(str(ROOT / target), data, out, limit=limit, recipe=recipe, resume=begun)


def effort(run: Run) -> dict[str, Any]:
    """What training took: epochs, images seen, seconds."""
    with (run.folder / METRICS).open() as file:
        rows = list(csv.DictReader(file))
    return {
        "parameters": run.graph().parameters,
        "recipe": run.manifest.recipe,
        "epochs": len(rows),
        "images_seen": int(rows[-1]["steps"]) * int(run.manifest.recipe["batch"]),
        "seconds": round(sum(float(row["seconds"]) for row in rows)),
        "validation_loss": [float(row["val_loss"]) for row in rows],
    }


def measured(run: Run, data: Data, output: str, neighbours: int, random: bool, pixels: bool) -> Comparison:
    """The two questions to a run's features, and to what stands beside them."""
    return compare(run, data, output=output, neighbours=neighbours, probe=True, random=random, pixels=pixels)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="idx:/usr/share/datasets/fashion-mnist")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "self_supervision")
    parser.add_argument("--neighbours", type=int, default=20)
    parser.add_argument("--limit", type=int, help="train on at most so many images")
    parser.add_argument("--epochs", type=int, help="others than the recipes'")
    parser.add_argument("--numbers", type=Path, default=ROOT / "benchmarks" / "self_supervision.json")
    given = parser.parse_args(arguments)
    data = open_data(given.data)
    if given.limit is not None:
        data = data.limited(given.limit)
    rows: dict[str, dict[str, Any]] = {}
    found = None
    for name, (target, output) in NETWORKS.items():
        run = trained(target, given.data, given.out / name, given.limit, given.epochs)
        found = measured(run, data, output, given.neighbours, name in RANDOM, pixels=found is None)
        for row in found.rows:
            called = {output: name, "untrained": f"{name}, untrained"}.get(row.source, row.source)
            rows[called] = asdict(row)
            assert row.probe is not None
            print(
                f"{called:24} {100 * row.nearest:6.2f} % by neighbours, {100 * row.probe:6.2f} % by a linear map"
            )
        rows[name] |= {"target": Path(target).name, **effort(run)}
    assert found is not None
    results = {
        "data": found.data,
        "train_images": found.train_images,
        "test_images": found.test_images,
        "neighbours": found.neighbours,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "rows": rows,
    }
    given.numbers.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
