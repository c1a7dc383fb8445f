"""Masked completion on Fashion-MNIST: CRATE-MAE against simple guesses, on patches that neither was shown.

    python benchmarks/completion.py --data idx:/usr/share/datasets/fashion-mnist [--seeds 1] [--out runs/completion]

Trains, exports with a proof, and measures the exported file in onnxruntime on the test images: the same masks for
everyone, hidden patches only. Runs that are there already are not repeated, one that was cut off goes on. Writes
`completion.json` beside this file and the picture `docs/completion.png`.

Axes: n images, t patches of m numbers, k = t m pixels in the order of the patches.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from numpy.typing import NDArray

import crate_dsl
from crate_dsl.compiler.runtime import Session
from crate_dsl.training.data import Data, Scaling, on_unit_scale
from crate_dsl.training.run import METRICS, Run, export_run
from crate_dsl.training.sources import open_data
from crate_dsl.training.train import train

ROOT = Path(__file__).resolve().parent.parent
#: Where the masks of the test images come from.
MASK_SEED = 0
#: Images at once.
BATCH = 200
#: Chosen by the validation images, among 2, 4, 6, 8 and among 1e-4, 1e-3, 3e-3, 1e-2.
POWER, RIDGE = 4, 1e-3
#: Of the picture: images, and how it draws what is hidden, and text.
SHOWN, HIDDEN_GREY, TEXT_GREY = 8, 0.5, "#808080"

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


# ------------------------------------------------------------------ patches


def in_patches(images_nchw: NDArray[Any], patch: int) -> Array:
    """Pictures (n, C, H, W) as patches (n, t, m): row by row, in each row, column, channel, as `patchify` does it."""
    n, channels, height, width = images_nchw.shape
    cut = images_nchw.reshape(n, channels, height // patch, patch, width // patch, patch)
    return cut.transpose(0, 2, 4, 3, 5, 1).reshape(n, -1, patch * patch * channels).astype(np.float64)


def in_pictures(patches_ntm: Array, patch: int, columns: int) -> Array:
    """The way back: (n, t, m) -> (n, C, H, W)."""
    n, patches, width = patches_ntm.shape
    cut = patches_ntm.reshape(n, patches // columns, columns, patch, patch, -1).transpose(0, 5, 1, 3, 2, 4)
    return cut.reshape(n, width // patch**2, patches // columns * patch, columns * patch)


# ------------------------------------------------------------------ guesses, from what is visible


def nearest_visible(patches_ntm: Array, hidden_nt: Mask, columns: int) -> Array:
    """For each hidden patch the visible one whose centre is nearest; of several, the first row by row."""
    at_t2 = np.stack(np.divmod(np.arange(hidden_nt.shape[1]), columns), axis=-1)
    distance_tt = np.square(at_t2[:, None] - at_t2).sum(-1).astype(float)
    source_nt = np.where(hidden_nt[:, None], np.inf, distance_tt).argmin(
        -1
    )  # a visible patch is nearest to itself
    return np.take_along_axis(patches_ntm, source_nt[..., None], axis=1)


def between_pixels(pixels_nk: Array, hidden_nk: Mask, at_k2: Array, power: float) -> Array:
    """For each hidden pixel the mean of all visible ones, by their distance to the minus `power`."""
    distance_kk = np.linalg.norm(at_k2[:, None] - at_k2, axis=-1)
    np.fill_diagonal(distance_kk, 1)
    weight_kk = distance_kk**-power
    visible_nk = (~hidden_nk).astype(float)
    guess_nk = (visible_nk * pixels_nk) @ weight_kk / (visible_nk @ weight_kk)
    return np.where(hidden_nk, guess_nk, pixels_nk)


def gaussian(pixels_nk: Array, hidden_nk: Mask, mean_k: Array, covariance_kk: Array, ridge: float) -> Array:
    """The best linear guess: E[hidden | visible] of a normal distribution with this mean and covariance."""
    guess_nk = pixels_nk.copy()
    regular_kk = covariance_kk + ridge * np.eye(len(mean_k))
    for pixels_k, hidden_k, guess_k in zip(pixels_nk, hidden_nk, guess_nk, strict=True):
        told = ~hidden_k
        surprise = np.linalg.solve(regular_kk[np.ix_(told, told)], (pixels_k - mean_k)[told])
        guess_k[hidden_k] = mean_k[hidden_k] + covariance_kk[np.ix_(hidden_k, told)] @ surprise
    return guess_nk


def guesses(
    train_nk: Array, pixels_ntm: Array, hidden_nt: Mask, patch: int, columns: int
) -> dict[str, Array]:
    """Every guess, (n, t, m), by name. Only the training images are known to them in advance."""
    n, patches, width = pixels_ntm.shape
    pixels_nk, hidden_nk = pixels_ntm.reshape(n, -1), hidden_nt.repeat(width, axis=1)
    sizes = (patches // columns * patch, columns * patch)
    channels = width // patch**2
    at_2chw = np.broadcast_to(np.indices(sizes)[:, None], (2, channels, *sizes))
    at_k2 = in_patches(at_2chw, patch).reshape(2, -1).T
    mean_k = train_nk.mean(0)
    found = {
        "mean image": np.broadcast_to(mean_k, pixels_nk.shape),
        "nearest visible patch": nearest_visible(pixels_ntm, hidden_nt, columns),
        "between visible pixels": between_pixels(pixels_nk, hidden_nk, at_k2, POWER),
        "best linear guess": gaussian(pixels_nk, hidden_nk, mean_k, np.cov(train_nk.T), RIDGE),
    }
    return {name: guess.reshape(pixels_ntm.shape) for name, guess in found.items()}


# ------------------------------------------------------------------ the network


def trained(target: str, data: str, out: Path, seed: int, limit: int | None, epochs: int | None) -> Run:
    """One run, whole."""
    recipe = {} if epochs is None else {"epochs": epochs}
    begun = (out / "run.json").is_file()
    return train(target, data, out, seed=seed, limit=limit, recipe=recipe, resume=begun)


def completed(session: Session, pixels_ntm: Array, hidden_nt: Mask, scaling: Scaling, columns: int) -> Array:
    """What an exported network makes of pictures that are blank where they are hidden, in pixels: (n, t, m)."""
    patch = int(session.metadata.target.settings["patch"])
    blank_nchw = in_pictures(np.where(hidden_nt[..., None], 0, pixels_ntm), patch, columns)
    image_nchw = scaling.apply(blank_nchw.astype(np.float32))
    (name,) = session.outputs
    found = [
        session(image=image_nchw[start : start + BATCH], hidden=hidden_nt[start : start + BATCH])[name]
        for start in range(0, len(image_nchw), BATCH)
    ]
    mean_m, std_m = (np.tile(values, patch**2) for values in (scaling.mean, scaling.std))
    return np.concatenate(found) * std_m + mean_m


def errors(guess_ntm: Array, pixels_ntm: Array, hidden_nt: Mask, scaling: Scaling) -> dict[str, float]:
    """Mean squared error on hidden patches: of pixels from 0 to 1, and as the network's loss has it."""
    difference_hm = (guess_ntm - pixels_ntm)[hidden_nt]
    std_m = np.tile(scaling.std, difference_hm.shape[-1] // len(scaling.std))
    return {
        "pixels": float(np.square(difference_hm).mean()),
        "scaled": float(np.square(difference_hm / std_m).mean()),
    }


# ------------------------------------------------------------------ the picture


def picture(rows: Mapping[str, Array], path: Path) -> None:
    """Pictures (n, C, H, W) from 0 to 1 in rows, each row with its name; what lies between them is transparent."""
    colours_rnhw3 = np.stack(
        [np.broadcast_to(row.transpose(0, 2, 3, 1), (*row[:, 0].shape, 3)) for row in rows.values()]
    )
    r, n, height, width, _ = colours_rnhw3.shape
    opaque = np.concatenate([colours_rnhw3.clip(0, 1), np.ones((r, n, height, width, 1))], axis=-1)
    gap = max(1, width // 14)
    spaced = np.pad(opaque, ((0, 0), (0, 0), (0, gap), (0, gap), (0, 0)))
    sheet = spaced.transpose(0, 2, 1, 3, 4).reshape(r * (height + gap), n * (width + gap), 4)
    figure, axes = plt.subplots(figsize=(7.2, 0.95 * r), layout="constrained")
    axes.imshow(sheet, interpolation="nearest")
    middles = [row * (height + gap) + height / 2 for row in range(r)]
    axes.set_yticks(middles, list(rows), color=TEXT_GREY)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    look = {"dpi": 150, "transparent": True, "bbox_inches": "tight"}
    figure.savefig(path, metadata={"Software": None}, **look)
    plt.close(figure)


def rows_of(
    pixels_ntm: Array, hidden_nt: Mask, network: Array, named: Mapping[str, Array], patch: int, columns: int
) -> dict[str, Array]:
    """The first test images, what is shown of them, and what is made of it: visible patches stay as they are."""
    some = slice(0, SHOWN)
    hidden_nt1 = hidden_nt[some, :, None]
    made = {"image": pixels_ntm[some], "visible": np.where(hidden_nt1, HIDDEN_GREY, pixels_ntm[some])}
    for name, guess in {"CRATE-MAE": network, **named}.items():
        made[name] = np.where(hidden_nt1, guess[some], pixels_ntm[some])
    return {name: in_pictures(tokens, patch, columns) for name, tokens in made.items()}


# ------------------------------------------------------------------ all of it


def measured(run: Run, data: Data, onnx: Path) -> tuple[dict[str, Any], dict[str, Array]]:
    """A run's numbers on the test images, everyone's by name, and the rows of the picture."""
    proof = export_run(run.folder, onnx)
    session = crate_dsl.open_session(onnx, provider="cpu")
    scaling = run.manifest.pixels()
    patch = int(session.metadata.target.settings["patch"])
    columns = data.shape[2] // patch
    train_nk = in_patches(on_unit_scale(data.train.images_nchw), patch).reshape(len(data.train), -1)
    pixels_ntm = in_patches(on_unit_scale(data.test.images_nchw), patch)
    lots = np.random.default_rng(MASK_SEED)
    hidden_nt = session.draws["hidden"].sample(session.inputs["hidden"], len(pixels_ntm), {}, lots)
    network = completed(session, pixels_ntm, hidden_nt, scaling, columns)
    others = guesses(train_nk, pixels_ntm, hidden_nt, patch, columns)
    found = {
        name: errors(guess, pixels_ntm, hidden_nt, scaling)
        for name, guess in {"CRATE-MAE": network, **others}.items()
    }
    test = run.test()
    assert test is not None
    with (run.folder / METRICS).open() as file:
        curve = list(csv.DictReader(file))
    numbers = {
        "seed": run.manifest.seed,
        "kept_epoch": test["epoch"],
        "validation_loss": [float(row["val_loss"]) for row in curve],
        "training_seconds": sum(float(row["seconds"]) for row in curve),
        "proof": {"passed": proof.passed, "cases": len(proof.rows)},
        "errors": found,
    }
    named = {name: others[name] for name in ("nearest visible patch", "best linear guess")}
    return numbers, rows_of(pixels_ntm, hidden_nt, network, named, patch, columns)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="idx:/usr/share/datasets/fashion-mnist")
    parser.add_argument("--target", default=str(ROOT / "specs" / "crate_mae.crate@fashion"))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "completion")
    parser.add_argument("--limit", type=int, help="train on at most so many images")
    parser.add_argument("--epochs", type=int, help="others than the recipe's")
    parser.add_argument("--numbers", type=Path, default=ROOT / "benchmarks" / "completion.json")
    parser.add_argument("--picture", type=Path, default=ROOT / "docs" / "completion.png")
    given = parser.parse_args(arguments)
    data = open_data(given.data)
    runs, rows = [], {}
    for seed in range(given.seeds):
        folder = given.out / f"crate-mae-{seed}"
        run = trained(given.target, given.data, folder, seed, given.limit, given.epochs)
        numbers, shown = measured(run, data, folder / "completion.onnx")
        runs.append(numbers)
        rows = rows or shown
    picture(rows, given.picture)
    graph = crate_dsl.load(given.target)
    results = {
        "target": Path(given.target).name,
        "parameters": graph.parameters,
        "hidden_ratio": run.manifest.settings.get("hidden_ratio"),
        "test_images": len(data.test),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "mean_errors": {
            name: {unit: mean(run["errors"][name][unit] for run in runs) for unit in ("pixels", "scaled")}
            for name in runs[0]["errors"]
        },
        "runs": runs,
    }
    given.numbers.write_text(json.dumps(results, indent=1) + "\n")
    for name, error in results["mean_errors"].items():
        print(f"{name:24} {error['pixels']:.4f} of pixels, {error['scaled']:.3f} scaled")


if __name__ == "__main__":
    main()
