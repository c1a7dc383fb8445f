"""Does `sparse_rate` do what it says? CRATE on Fashion-MNIST by labels alone, and with the term in several settings.

    python benchmarks/sparse_rate.py --data idx:/usr/share/datasets/fashion-mnist [--seeds 2] [--out runs/sparse_rate]

One recipe for all, short on purpose. Every layer is measured on test images, and right answers are counted. Runs that
are there already are not repeated, one that was cut off goes on. Writes `sparse_rate.json` beside this file and the
chart `docs/sparse_rate.svg`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import torch
from torch import Tensor

import crate_dsl
from crate_dsl import rates
from crate_dsl.compiler.network import Network
from crate_dsl.training.run import Run
from crate_dsl.training.train import train

ROOT = Path(__file__).resolve().parent.parent
SPEC = str(ROOT / "benchmarks" / "sparse_rate.crate")
#: What is trained: the spec, its settings, the colour in the chart.
SETTINGS: dict[str, tuple[str, dict[str, float], str]] = {
    "labels alone": (str(ROOT / "specs" / "crate.crate@fashion"), {}, "#555555"),
    "+ 0.001 term, λ = 0.1": (SPEC, {"weight": 0.001, "penalty": 0.1}, "#1f5fa8"),
    "+ 0.001 term, λ = 300": (SPEC, {"weight": 0.001, "penalty": 300}, "#2c8a57"),
    "- 0.001 term, λ = 0.1": (SPEC, {"weight": -0.001, "penalty": 0.1}, "#b3541e"),
    "+ 0.01 term, λ = 0.1": (SPEC, {"weight": 0.01, "penalty": 0.1}, "#7ba7d7"),
}
#: The short recipe.
IMAGES, EPOCHS = 12800, 3
#: How many test images the layers are measured on.
MEASURED = 1000
#: λ at which everyone's objective is told, whatever they were trained by.
PENALTY = 0.1
#: The chart's panels.
PANELS = {
    "rate_reduction": "R - Rᶜ, nats",
    "published_rate": "Rᶜ as published, nats",
    "size": "mean |Z̄|",
    "zeros": "share of zeros",
}


def layer_numbers(z_bnd: Tensor, bases_kpd: Tensor, projected_bknp: Tensor) -> dict[str, float]:
    """Of tokens (B, N, d) that leave a layer; `projected` is what its `compress` saw in its subspaces."""
    rms_bnd = rates.unit_tokens(z_bnd) * z_bnd.shape[-1] ** 0.5  # as `sparse_rate` sees them
    orthonormal_kpd = torch.linalg.qr(bases_kpd.double().mT).Q.mT  # short bases alone would lower Rᶜ
    numbers = {
        "rate": rates.coding_rate(rms_bnd),
        "subspace_rate": rates.subspace_rate(rms_bnd, bases_kpd),
        "subspace_rate_orthonormal": rates.subspace_rate(rms_bnd, orthonormal_kpd),
        "published_rate": rates.published_rate(projected_bknp),
        "size": rms_bnd.abs().mean((-2, -1)),
        "zeros": (z_bnd == 0).double().mean((-2, -1)),
        "basis_length": torch.linalg.vector_norm(bases_kpd, dim=-1),
    }
    found = {name: float(value.double().mean()) for name, value in numbers.items()}
    found["rate_reduction"] = found["rate"] - found["subspace_rate"]
    found["rate_reduction_orthonormal"] = found["rate"] - found["subspace_rate_orthonormal"]
    found["objective"] = PENALTY * found["size"] - found["rate_reduction"]
    return found


def layers_of(net: Network, images_nchw: Tensor) -> list[dict[str, float]]:
    """The numbers of every layer, each a mean over images."""
    count = int(net.graph.settings["subspaces"])
    seen = crate_dsl.trace(net, "encoder.*.compress.projection", "encoder.*.sparsify", image=images_nchw)
    found = []
    for layer in range(int(net.graph.settings["depth"])):
        path = f"encoder.{layer}.compress"
        bases_kpd = net.get_parameter(f"{path}.subspaces").detach().unflatten(0, (count, -1))
        found.append(layer_numbers(seen[f"encoder.{layer}.sparsify"], bases_kpd, seen[f"{path}.projection"]))
    return found


def measured(run: Run) -> dict[str, Any]:
    """A run's accuracy, and its layers on the first test images."""
    test = run.test()
    assert test is not None
    scaled_nchw = run.manifest.pixels().apply(run.data().test.images_nchw[:MEASURED])
    layers = layers_of(run.net(), torch.from_numpy(scaled_nchw))
    return {"seed": run.manifest.seed, "test_accuracy": test["accuracy"], "layers": layers}


def means(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Accuracy and layers of one setting, a mean over seeds; and the mean over layers."""
    layers = [
        {name: mean(layer[name] for layer in same) for name in same[0]}
        for same in zip(*(run["layers"] for run in runs), strict=True)
    ]
    return {
        "test_accuracy": mean(run["test_accuracy"] for run in runs),
        "layers": layers,
        "all_layers": {name: mean(layer[name] for layer in layers) for name in layers[0]},
    }


def chart(results: dict[str, Any], path: Path) -> None:
    """Layer by layer, a line for each setting."""
    plt.rcParams.update(
        {"font.size": 9, "svg.hashsalt": "crate-dsl", "axes.spines.top": False, "axes.spines.right": False}
    )
    figure, all_axes = plt.subplots(1, len(PANELS), figsize=(9.6, 2.9), layout="constrained")
    for axes, (number, title) in zip(all_axes, PANELS.items(), strict=True):
        for name, (_, _, colour) in SETTINGS.items():
            layers = results["settings"][name]["layers"]
            values = [layer[number] for layer in layers]
            axes.plot(range(1, len(layers) + 1), values, color=colour, marker="o", ms=3, label=name)
        axes.set(title=title, xlabel="layer", xticks=range(1, len(layers) + 1))
        axes.grid(alpha=0.25)
    handles, labels = all_axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="idx:/usr/share/datasets/fashion-mnist")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "sparse_rate")
    parser.add_argument("--limit", type=int, default=IMAGES, help="train on at most so many images")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--numbers", type=Path, default=ROOT / "benchmarks" / "sparse_rate.json")
    parser.add_argument("--chart", type=Path, default=ROOT / "docs" / "sparse_rate.svg")
    given = parser.parse_args(arguments)
    results: dict[str, Any] = {
        "torch": torch.__version__,
        "training_images": given.limit,
        "epochs": given.epochs,
        "settings": {},
    }
    for name, (target, settings, _) in SETTINGS.items():
        runs = []
        for seed in range(given.seeds):
            out = given.out / "-".join(map(str, [*settings.values(), "seed", seed]))
            begun = (out / "run.json").is_file()
            recipe = {"epochs": given.epochs}
            run = train(
                target,
                given.data,
                out,
                set=settings,
                recipe=recipe,
                seed=seed,
                limit=given.limit,
                resume=begun,
            )
            runs.append(measured(run))
        results["settings"][name] = {**settings, **means(runs), "runs": runs}
        all_layers = results["settings"][name]["all_layers"]
        print(
            f"{name:24} {results['settings'][name]['test_accuracy']:.2%} right, "
            + ", ".join(f"{number} {all_layers[number]:.3f}" for number in PANELS)
        )
    given.numbers.write_text(json.dumps(results, indent=1) + "\n")
    chart(results, given.chart)


if __name__ == "__main__":
    main()
