"""How fast it is: every benchmark, one after another, printed, saved and drawn.

    python -m benchmarks.run [--only inference training …] [--networks base …] [--processes 3]
    python -m benchmarks.run --quick     # shows that everything runs, and writes nothing
    python -m benchmarks.run --draw      # the chart and the tables of the docs, from the numbers that are there

Each measurement has a process of its own, and what is compared is compared within one. Writes
`benchmarks/performance.json`, the chart `docs/performance.svg` and the tables of `docs/performance.md`. With `--only`
or `--networks`, their part of the numbers is replaced.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

from rich.console import Console

from benchmarks import algebra, emission, growth, inference, tables, training
from benchmarks.machine import machine
from benchmarks.measure import over_processes
from benchmarks.plan import QUICK, Plan

ROOT = Path(__file__).resolve().parent.parent
NUMBERS = ROOT / "benchmarks" / "performance.json"
PAGE, CHART = ROOT / "docs" / "performance.md", ROOT / "docs" / "performance.svg"
#: Columns of the printed tables.
WIDTH = 80

Measured = dict[str, Any]


def fresh(function: Callable[..., Any], *arguments: Any) -> Any:
    """A function's result, computed in a new process that ends with it."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def counted(plan: Plan) -> Measured:
    return {network: fresh(algebra.counted, network) for network in plan.networks}


def inferred(plan: Plan) -> Measured:
    """By network: the peak, what was left out, and rows by batch."""
    found: Measured = {}
    with TemporaryDirectory() as folder:
        for network in plan.networks:
            arguments = (network, plan.batches, plan.effort["inference"], folder, plan.compiled)
            parts = [fresh(inference.measured, *arguments) for _ in range(plan.processes)]
            found[network] = {
                "processes": plan.processes,
                "peak": {kind: median(part["peak"][kind] for part in parts) for kind in parts[0]["peak"]},
                "left_out": parts[0]["left_out"],
                "batches": {
                    batch: over_processes([part["batches"][batch] for part in parts])
                    for batch in map(str, plan.batches)
                },
            }
    return found


def trained(plan: Plan) -> Measured:
    """Rows by batch, with the MiB of each variant."""
    found: Measured = {"network": plan.trained, "processes": plan.processes, "batches": {}}
    for batch in plan.trained_batches:
        arguments = (plan.trained, batch, plan.effort["training"], plan.trained_variants)
        table = over_processes([fresh(training.measured, *arguments) for _ in range(plan.processes)])
        for name, row in table.items():
            row |= fresh(training.memory, plan.trained, name, batch)
        found["batches"][str(batch)] = table
    return found


def emitted(plan: Plan) -> Measured:
    """Emission's rows by depth, and those of `check`."""
    found: Measured = {"network": plan.emitted, "depths": {}}
    for depth in plan.emitted_depths:
        part = fresh(emission.measured, plan.emitted, depth, plan.effort["emission"])
        for name, row in part["rows"].items():
            row |= fresh(emission.memory, plan.emitted, depth, name)
        found["depths"][str(depth)] = part["rows"]
        found["left_out"] = part["left_out"]
    found["check"] = fresh(emission.check, list(plan.checked_depths), plan.effort["check"])
    for depth, row in found["check"].items():
        row |= fresh(emission.check_memory, int(depth))
    return found


def grown(plan: Plan) -> Measured:
    effort = plan.effort["growth"]
    wide = (plan.grown_wide, "size", list(plan.image_sizes), effort, plan.image_changes)
    deep = (plan.grown_deep, "depth", list(plan.depths), effort, {})
    return {"tokens": fresh(growth.measured, *wide), "depth": fresh(growth.measured, *deep)}


#: The benchmarks by name, in the order in which they run. Each takes the plan and gives its part of the numbers.
PARTS: dict[str, Callable[[Plan], Measured]] = {
    "algebra": counted,
    "inference": inferred,
    "training": trained,
    "emission": emitted,
    "growth": grown,
}
#: Those whose numbers lie by network, so that one network's can be replaced.
BY_NETWORK = ("algebra", "inference")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--draw", action="store_true")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--networks", nargs="+", choices=Plan.networks, default=Plan.networks)
    parser.add_argument("--processes", type=int, default=Plan.processes)
    given = parser.parse_args(arguments)
    numbers: Measured = json.loads(NUMBERS.read_text()) if NUMBERS.exists() and not given.quick else {}
    if not given.draw:
        plan = QUICK if given.quick else Plan(given.processes, tuple(given.networks))
        measure(plan, [name for name in PARTS if name in given.only], numbers)
    if given.quick:
        return
    NUMBERS.write_text(json.dumps(numbers, indent=1) + "\n")
    tables.write(numbers, PAGE)
    draw(numbers)


def measure(plan: Plan, names: Sequence[str], numbers: Measured) -> None:
    """Run the benchmarks of these names, print their tables, and put what was found among the numbers."""
    console = Console(width=WIDTH)
    numbers["machine"] = fresh(machine)
    for name in names:
        console.print(f"{name} …")
        began = perf_counter()
        found = PARTS[name](plan)
        for table in tables.of({name: found}):
            console.print(table.rich())
        console.print(f"{perf_counter() - began:.0f} s for {name}\n")
        numbers[name] = {**numbers.get(name, {}), **found} if name in BY_NETWORK else found


def draw(numbers: Measured) -> None:
    from benchmarks import chart  # matplotlib takes its time

    chart.draw(numbers, CHART)


if __name__ == "__main__":
    main()
