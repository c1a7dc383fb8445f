"""CRATE against a ViT of equal parameters on Fashion-MNIST: one recipe, several seeds; the mean, the spread,
the curves.

    python benchmarks/fashion.py --data idx:/usr/share/datasets/fashion-mnist [--seeds 3] [--out runs/fashion]

Runs that are there already are not repeated, one that was cut off goes on. Writes `fashion.json` beside this file and
the chart `docs/fashion.svg`.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import torch

import crate_dsl
from crate_dsl.training.run import METRICS, TEST, open_run
from crate_dsl.training.train import train

ROOT = Path(__file__).resolve().parent.parent
TARGETS = {"CRATE": "crate.crate@fashion", "ViT": "vit.crate@fashion"}
COLOURS = {"CRATE": "#1f5fa8", "ViT": "#b3541e"}


def trained(target: str, data: str, out: Path, seed: int) -> dict[str, Any]:
    """One run, whole: its test accuracy and its curve."""
    if not (out / TEST).is_file():
        train(str(ROOT / "specs" / target), data, out, seed=seed, resume=(out / "run.json").is_file())
    run = open_run(out)
    test = run.test()
    assert test is not None
    with (out / METRICS).open() as file:
        rows = list(csv.DictReader(file))
    curve = [
        {key: float(row[key]) for key in ("epoch", "train_loss", "val_accuracy", "steps_per_second")}
        for row in rows
    ]
    return {"seed": seed, "test_accuracy": test["accuracy"], "kept_epoch": test["epoch"], "curve": curve}


def chart(results: dict[str, Any], path: Path) -> None:
    """Training loss and validation accuracy by epoch, a line for each seed."""
    plt.rcParams.update(
        {"font.size": 9, "svg.hashsalt": "crate-dsl", "axes.spines.top": False, "axes.spines.right": False}
    )
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.2, 2.8), layout="constrained")
    for name, result in results["models"].items():
        for index, run in enumerate(result["runs"]):
            epochs = [row["epoch"] for row in run["curve"]]
            label = f"{name}, {result['parameters']:,} parameters" if index == 0 else None
            left.plot(
                epochs,
                [row["train_loss"] for row in run["curve"]],
                color=COLOURS[name],
                alpha=0.8,
                marker="o",
                ms=3,
                label=label,
            )
            right.plot(
                epochs,
                [100 * row["val_accuracy"] for row in run["curve"]],
                color=COLOURS[name],
                alpha=0.8,
                marker="o",
                ms=3,
            )
    for axes, title in ((left, "training loss"), (right, "validation accuracy, %")):
        axes.set(title=title, xlabel="epoch", xticks=range(1, max(epochs_of(results)) + 1))
        axes.grid(alpha=0.25)
    left.legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def epochs_of(results: dict[str, Any]) -> list[int]:
    return [len(run["curve"]) for result in results["models"].values() for run in result["runs"]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="idx:/usr/share/datasets/fashion-mnist")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "fashion")
    given = parser.parse_args()
    results: dict[str, Any] = {"torch": torch.__version__, "threads": torch.get_num_threads(), "models": {}}
    for name, target in TARGETS.items():
        runs = [
            trained(target, given.data, given.out / f"{name.lower()}-{seed}", seed)
            for seed in range(given.seeds)
        ]
        accuracies = [100 * run["test_accuracy"] for run in runs]
        results["models"][name] = {
            "target": target,
            "parameters": crate_dsl.load(str(ROOT / "specs" / target)).parameters,
            "test_accuracy_mean": mean(accuracies),
            "test_accuracy_spread": stdev(accuracies) if len(accuracies) > 1 else 0.0,
            "runs": runs,
        }
        print(
            f"{name:6} {mean(accuracies):.2f} % of the test images, over {len(runs)} seeds: "
            + ", ".join(f"{a:.2f}" for a in accuracies)
        )
    (Path(__file__).parent / "fashion.json").write_text(json.dumps(results, indent=1) + "\n")
    chart(results, ROOT / "docs" / "fashion.svg")


if __name__ == "__main__":
    main()
