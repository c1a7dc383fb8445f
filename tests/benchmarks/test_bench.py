"""The benchmarks of speed: what is compared is the same network, the arithmetic of timing, and all of it, small."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import crate_dsl
from benchmarks import algebra, chart, measure, memory, networks, run, sessions, tables
from benchmarks.plan import QUICK, Plan
from benchmarks.published import PublishedObjective, counterparts, with_weights_of
from crate_dsl.compiler.network import Network

#: Rounding of float64 through two layers, in parts of the output's largest number.
EXACT = 1e-12
#: Sizes that are all different.
ODD = {"dim": 24, "depth": 2, "subspaces": 3, "patch": 2, "size": 10, "channels": 2, "classes": 7}


def odd_network() -> Network:
    """In float64, at weights that are not the initial ones."""
    net = crate_dsl.build(networks.crate("least", ODD), seed=0).double()
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in net.parameters():
            weight += 0.2 * torch.randn_like(weight)
    return net


# ------------------------------------------------------------------ what is compared


def test_the_published_network_is_ours() -> None:
    net = odd_network()
    image_bchw = torch.randn(3, 2, 10, 10, dtype=torch.float64)
    published = with_weights_of(net, ODD).double()
    # `load_state_dict` rounds to the float32 that the module was made in.
    published.load_state_dict({theirs: net.state_dict()[ours] for theirs, ours in counterparts(2).items()})
    assert measure.error(published(image_bchw).detach(), net(image_bchw).detach()) < EXACT


def test_so_are_its_gradients() -> None:
    net = odd_network()
    published = with_weights_of(net, ODD).double()
    published.load_state_dict({theirs: net.state_dict()[ours] for theirs, ours in counterparts(2).items()})
    batch = {"image": torch.randn(3, 2, 10, 10, dtype=torch.float64), "label": torch.tensor([1, 5, 6])}
    PublishedObjective(published)(batch).backward()
    crate_dsl.Objective(net)(batch).backward()
    wanted = dict(published.named_parameters())
    for theirs, ours in counterparts(2).items():
        assert measure.error(net.get_parameter(ours).grad, wanted[theirs].grad) < EXACT, ours


def test_every_weight_has_its_counterpart() -> None:
    graph = networks.crate("least")
    found = counterparts(networks.sizes(graph)["depth"])
    assert sorted(found.values()) == sorted(graph.slots)


@pytest.mark.parametrize("name", Plan.networks)
def test_vits_are_of_equal_width_and_of_about_equal_parameters(name: str) -> None:
    graph = networks.crate(name)
    wide, alike = networks.vit_of_equal_width(name), networks.vit_of_equal_parameters(name)
    for setting in ("dim", "depth", "patch", "size", "classes"):
        assert wide.settings[setting] == graph.settings[setting]
    assert wide.settings["heads"] == graph.settings["subspaces"]
    assert alike.parameters == pytest.approx(graph.parameters, rel=0.1)


def test_operations_are_those_of_the_formula() -> None:
    """Five products of d² a token and layer, and two of attention; lowering leaves about three fifths."""
    d, n, layers = 192, 65, 6
    found = algebra.counted("micro")
    every_layer = 2 * (5 * d * d * n + 2 * n * n * d)
    assert found["as published"] == layers * every_layer + 2 * (64 * 48 * d + 10 * d)
    assert found["folded, dead tokens gone"] < found["folded"] < found["trained"] < found["as published"]
    assert found["folded, dead tokens gone"] < 0.65 * found["as published"]


# ------------------------------------------------------------------ the arithmetic


def test_variants_run_in_turns_each_warmed() -> None:
    calls: list[str] = []
    variants: dict[str, Callable[[], None]] = {name: lambda name=name: calls.append(name) for name in "abc"}
    times = measure.interleaved(variants, measure.Effort(seconds=0, least=2))
    assert "".join(calls) == "abc" + "aabbcc" + "bbccaa"
    assert {name: len(found) for name, found in times.items()} == {"a": 2, "b": 2, "c": 2}
    calls.clear()
    measure.interleaved(variants, measure.Effort(seconds=100, most=3, warm=False))
    assert "".join(calls) == "abc" + "bca" + "cab"


def test_ratios_are_of_medians() -> None:
    found = measure.rows({"slow": [4.0, 9.0, 5.0], "fast": [2.0, 1.0, 100.0]}, "slow")
    assert found["slow"]["median"] == 5 and found["slow"]["ratio"] == 1
    assert found["fast"]["ratio"] == 2.5
    assert (found["slow"]["low"], found["slow"]["high"]) == (4.5, 7)


def test_processes_are_joined_by_their_own_ratios() -> None:
    parts = [measure.rows({"slow": [slow], "fast": [1.0]}, "slow") for slow in (3.0, 2.0, 7.0)]
    joined = measure.over_processes(parts)["fast"]
    assert joined["ratio"] == 3 and joined["ratios"] == [2, 3, 7]


def test_exponents() -> None:
    sizes = [49, 196, 784]
    assert measure.exponent(sizes, [3 * size**2 for size in sizes]) == pytest.approx(2)
    assert list(measure.local_exponents([1, 2, 4], [1, 2, 8])) == pytest.approx([1, 2])


def test_error_is_in_parts_of_the_largest() -> None:
    assert measure.error([1.0, -8.0], [1.0, -10.0]) == pytest.approx(0.2)


def test_peak_memory_is_what_was_held_at_once() -> None:
    size = 64 * memory.MIB
    found = memory.peak_of(lambda: [np.ones(size, np.uint8) for _ in range(2)] and None)
    if found is None:
        pytest.skip("this system does not tell a process's peak memory")
    assert 2 * 60 < found < 2 * 90


# ------------------------------------------------------------------ all of it


def test_every_benchmark_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, and without torch.compile, which takes most of the time: `make bench-quick` has both."""
    monkeypatch.setattr(run, "fresh", lambda function, *arguments: function(*arguments))
    plan = replace(QUICK, compiled=())
    numbers: dict[str, Any] = {}
    run.measure(plan, list(run.PARTS), numbers)
    assert json.loads(json.dumps(numbers)) == numbers
    found = numbers["inference"]["least"]["batches"]["2"]
    assert found["crate-dsl, onnxruntime"]["error"] < 1e-5
    assert found["crate-dsl, onnxruntime"]["flops"] < found["published, torch"]["flops"]
    assert ("published, onnxruntime" in found) == (sessions.missing("onnxscript") is None)
    assert numbers["training"]["batches"]["2"]["crate-dsl, float32"]["error"] < 1e-4

    page = tmp_path / "page.md"
    page.write_text("".join(f"<!-- {table.name} -->\nstale\n<!-- end -->\n" for table in tables.of(numbers)))
    tables.write(numbers, page)
    assert "stale" not in page.read_text() and "| crate-dsl, onnxruntime |" in page.read_text()
    page.write_text("")
    with pytest.raises(ValueError, match="no place for the table `algebra`"):
        tables.write(numbers, page)
    chart.draw(numbers, tmp_path / "chart.svg")
    assert (tmp_path / "chart.svg").read_text().startswith("<?xml")


def test_a_process_of_its_own() -> None:
    assert run.fresh(networks.sizes, networks.crate("least", ODD)) == ODD


def test_the_page_says_what_the_numbers_say(tmp_path: Path) -> None:
    page = tmp_path / run.PAGE.name
    page.write_text(run.PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    tables.write(json.loads(run.NUMBERS.read_text(encoding="utf-8")), page)
    assert page.read_text(encoding="utf-8") == run.PAGE.read_text(encoding="utf-8"), (
        "python -m benchmarks.run --draw"
    )
