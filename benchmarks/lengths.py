"""How time and memory of a causal step grow with the tokens: `attention` as their square, `statistics` as they do.

    python -m benchmarks.lengths [--lengths 256 1024 4096 16384]

One step of `lengths.crate`, batch 1, in torch (forward, and forward with gradients) and in onnxruntime. Each
measurement has a process of its own. torch's kernel of attention keeps no scores, so that its memory grows as the
tokens do, and its time as their square; onnxruntime keeps them. Prints both tables, with the exponent p of cost ~
tokens^p: by least squares of the logarithms over all lengths, and between the last two, where what every run costs
counts least. Writes `lengths.json` beside this file.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import crate_dsl
from benchmarks.exported import lowered_model
from benchmarks.machine import machine
from benchmarks.measure import Effort, exponent, interleaved, spread
from benchmarks.memory import peak_of
from benchmarks.run import WIDTH, fresh
from benchmarks.sessions import onnxruntime_call

ROOT = Path(__file__).resolve().parent
NUMBERS = ROOT / "lengths.json"
GRADIENTS = ("attention", "statistics")
WAYS = ("torch", "torch, gradients", "onnxruntime")
LENGTHS = (256, 1024, 4096, 16384)
#: What runs before memory is measured: libraries set themselves up once.
SHORT = 64
EFFORT = {"seconds": 2.0, "least": 3}
#: Seconds of a run before which none that is not timed has to come.
LONG = 1.0
#: Less is what allocators round to, and no exponent is read off it.
LEAST_MEBIBYTES = 1.0


def work(gradient: str, way: str, length: int) -> Callable[[], object]:
    """One run of a step at a length."""
    net = crate_dsl.build(crate_dsl.load(f"{ROOT / 'lengths.crate'}:{gradient}"), seed=0)
    tokens_bnd = torch.randn(1, length, int(net.graph.settings["dim"]))
    if way == "onnxruntime":
        call = onnxruntime_call(lowered_model(net).SerializeToString())
        return lambda: call({"tokens": tokens_bnd.numpy()})
    if way == "torch":
        return torch.no_grad()(lambda: net(tokens_bnd))

    def step() -> None:
        net.zero_grad()
        net(tokens_bnd).square().mean().backward()

    return step


def row(gradient: str, way: str, length: int, effort: Mapping[str, Any]) -> dict[str, float | None]:
    """Seconds, and MiB at the highest beyond what the weights, the tokens and a short run take."""
    work(gradient, way, SHORT)()
    run = work(gradient, way, length)
    began = perf_counter()
    mebibytes = peak_of(run)
    warm = perf_counter() - began < LONG
    times = interleaved({way: run}, Effort(**effort, warm=warm))[way]
    return {**spread(times), "mebibytes": mebibytes}


def measured(lengths: Sequence[int], effort: Mapping[str, Any]) -> dict[str, Any]:
    """By step and way: a row for each length, and the exponents."""
    found: dict[str, Any] = {}
    for gradient in GRADIENTS:
        for way in WAYS:
            rows = {str(length): fresh(row, gradient, way, length, effort) for length in lengths}
            found[f"{gradient}, {way}"] = {"lengths": rows, "exponents": exponents(rows)}
    return found


def exponents(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Of time (`median`) and of memory (`mebibytes`): over all lengths, and between the last two."""
    found = {}
    for cost, least in (("median", 0.0), ("mebibytes", LEAST_MEBIBYTES)):
        points = [(float(n), one[cost]) for n, one in rows.items() if one[cost] and one[cost] >= least]
        if len(points) > 1:
            sizes, costs = zip(*points, strict=True)
            found[cost] = {"all": exponent(sizes, costs), "last": exponent(sizes[-2:], costs[-2:])}
    return found


def tables(found: Mapping[str, Any], lengths: Sequence[int]) -> list[Table]:
    shown = []
    for cost, title, factor in (("median", "milliseconds", 1e3), ("mebibytes", "MiB", 1.0)):
        table = Table(title=f"{title} by tokens, and p where they are ~ tokens^p", width=WIDTH)
        table.add_column("")
        for length in lengths:
            table.add_column(f"{length:,}", justify="right")
        table.add_column("p", justify="right")
        table.add_column("p at the end", justify="right")
        for name, one in found.items():
            costs = [one["lengths"][str(length)][cost] for length in lengths]
            slopes = one["exponents"].get(cost, {})
            table.add_row(
                name,
                *("" if value is None else _three_digits(factor * value) for value in costs),
                *(f"{slopes[which]:.2f}" if slopes else "" for which in ("all", "last")),
            )
        shown.append(table)
    return shown


def _three_digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument(
        "--seconds", type=float, default=EFFORT["seconds"], help="for each row; 3 runs at least"
    )
    parser.add_argument("--numbers", type=Path, default=NUMBERS)
    given = parser.parse_args(arguments)
    found = measured(given.lengths, {**EFFORT, "seconds": given.seconds})
    console = Console(width=WIDTH)
    for table in tables(found, given.lengths):
        console.print(table)
    given.numbers.write_text(json.dumps({"machine": fresh(machine), "steps": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
