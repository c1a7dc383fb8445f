"""One encoder that learned without labels, put to use in three ways with few labels; and the same from random weights.

    python -m benchmarks.reuse [--data idx:FOLDER] [--pretext contrastive] [--run RUN] [--labels 2000] [--seeds 1]

The pretext learns from all training images without their labels, unless `--run` names a run of it that is there. Then a
linear probe, prompts and fine-tuning learn from a few images with labels. Runs that are there already are not repeated,
one that was cut off goes on. Writes `reuse.json` beside this file.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import crate_dsl
from crate_dsl.language.diagnostics import Remark
from crate_dsl.training.run import TEST, Run, open_run
from crate_dsl.training.train import train

ROOT = Path(__file__).resolve().parent.parent
#: Of the same stages each, so that the weights of one fit another.
PRETEXTS = "self_supervised.crate:{}@fashion"
WAYS = {
    "probe": "reuse.crate:probe@fashion",
    "prompts": "self_supervised.crate:prompted@fashion",
    "fine-tuning": "reuse.crate:finetune@fashion",
}
#: Few labels are seen often, in small batches.
LABELS, EPOCHS, BATCH = 2000, 15, 32


def trained(target: str, data: str, out: Path, **options: Any) -> Run:
    """One run, whole."""
    if not (out / TEST).is_file():
        begun = (out / "run.json").is_file()
        train(str(ROOT / "specs" / target), data, out, resume=begun, **options)
    return open_run(out)


def accuracy(run: Run) -> float:
    """Of the weights that were kept, on all test images, in percent."""
    test = run.test()
    assert test is not None
    return 100 * float(test["accuracy"])


def measured(pretext: Run, data: str, out: Path, labels: int, epochs: int, seeds: int) -> dict[str, Any]:
    """Every way, from the pretext and from random weights."""
    found: dict[str, Any] = {}
    for way, target in WAYS.items():
        graph = crate_dsl.load(str(ROOT / "specs" / target))
        found[way] = {"target": target, "trained": graph.parameters, "frozen": graph.frozen_parameters}
        for name, start in (("pretrained", pretext.folder), ("random", None)):
            runs = [
                trained(
                    target,
                    data,
                    out / f"{name}-{way}-{labels}-{seed}",
                    limit=labels,
                    recipe={"epochs": epochs, "batch": BATCH},
                    seed=seed,
                    start=start,
                )
                for seed in range(seeds)
            ]
            found[way][name] = [accuracy(run) for run in runs]
    return found


def told(values: list[float]) -> str:
    """The mean, and how far single runs are from it."""
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if values[1:] else "")


def table(results: dict[str, Any]) -> Table:
    shown = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    shown.add_column("")
    for name in ("trained", "of", "pretrained, %", "random, %"):
        shown.add_column(name, justify="right")
    for way, found in results["ways"].items():
        shown.add_row(
            way,
            f"{found['trained']:,}",
            f"{found['trained'] + found['frozen']:,}",
            told(found["pretrained"]),
            told(found["random"]),
        )
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="idx:/usr/share/datasets/fashion-mnist")
    parser.add_argument("--pretext", default="contrastive")
    parser.add_argument("--run", type=Path, help="a run of a pretext that is there")
    parser.add_argument("--labels", type=int, default=LABELS)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "reuse")
    parser.add_argument("--json", type=Path, default=Path(__file__).with_suffix(".json"))
    given = parser.parse_args()
    warnings.simplefilter("ignore", Remark)  # frozen at random: that is what is compared with
    target = PRETEXTS.format(given.pretext)
    pretext = open_run(given.run) if given.run else trained(target, given.data, given.out / given.pretext)
    manifest = pretext.manifest
    results = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "data": given.data,
        "pretext": {
            "model": manifest.model,
            "epochs": manifest.recipe_in_force().epochs,
            "test": pretext.test(),
        },
        "labels": given.labels,
        "epochs": given.epochs,
        "batch": BATCH,
        "ways": measured(pretext, given.data, given.out, given.labels, given.epochs, given.seeds),
    }
    given.json.write_text(json.dumps(results, indent=1) + "\n")
    print(f"{manifest.model}, without labels; then {given.labels:,} labels, {given.epochs} epochs")
    Console(highlight=False).print(table(results))


if __name__ == "__main__":
    main()
