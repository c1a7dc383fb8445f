"""What `check` and its like must not load, and how long they may take to start."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from time import perf_counter

import pytest

from tests.cli.conftest import FASHION

#: A check may take so many times as long as loading the libraries that it stands on.
BUDGET = 2.5
#: Best of so many interleaved runs.
RUNS = 12
HEAVY = {"torch", "onnx", "onnxruntime", "numpy", "rich", "lightning", "matplotlib", "PIL"}
COMMANDS = [
    ["check", FASHION.partition("@")[0]],
    ["fmt", "--check", FASHION.partition("@")[0]],
    ["show", FASHION],
    ["show", FASHION, "--stage", "tree"],
    ["show", FASHION, "--stage", "torch"],
    ["show", FASHION, "--format", "svg"],
    ["explain", "E0001"],
]


def environment(cache: Path) -> dict[str, str]:
    """Every module compiled to bytecode once, as an installed package is, wherever the tests run from."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {
        **kept,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "PYTHONPYCACHEPREFIX": str(cache),
    }


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_nothing_heavy_is_loaded(command: list[str], tmp_path: Path) -> None:
    program = (
        "import sys\nfrom crate_dsl.cli import main\n"
        f"try: main({command!r})\n"
        f"finally: print('loaded:', *sorted(set(sys.modules) & {HEAVY!r}), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=environment(tmp_path),
        check=False,
    )
    assert done.stderr.splitlines()[-1].split() == ["loaded:"]


def test_check_starts_within_its_budget(tmp_path_factory: pytest.TempPathFactory) -> None:
    cache = tmp_path_factory.mktemp("bytecode")
    programs = {
        "libraries": ["-c", "import lark, pydantic, networkx"],
        "check": ["-c", "from crate_dsl.cli import main; main()", "check", FASHION.partition("@")[0]],
    }
    best = dict.fromkeys(programs, float("inf"))
    for _ in range(1 + RUNS):  # the first fills the cache, and is never the best
        for name, program in programs.items():
            began = perf_counter()
            subprocess.run(
                [sys.executable, *program], env=environment(cache), check=True, stdout=subprocess.DEVNULL
            )
            best[name] = min(best[name], perf_counter() - began)
    assert best["check"] < BUDGET * best["libraries"], best
