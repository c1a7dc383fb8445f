"""What lowering makes of a network: what each rewrite did and saved, and the steps that are left."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from crate_dsl.compiler.graph import ModelGraph
from crate_dsl.compiler.lower import Lowered
from crate_dsl.show.columns import columns
from crate_dsl.show.steps import rows_of, short, steps_of, title_of

#: How wide the columns of steps may be: name, repeats, step, type, operations; 80 with the gaps between them.
MOST = (32, 3, 11, 20, 6)


def some_weights(graph: ModelGraph) -> dict[str, NDArray[np.float32]]:
    """Weights as training may leave them, positive numbers and vectors, for a network that has not been trained.

    At first many weights are equal, and more steps than later compute the same.
    """
    generator = np.random.default_rng(0)
    return {
        path: np.asarray(
            generator.standard_normal(slot.shape)
            if len(slot.shape) > 1
            else generator.uniform(1, 2, slot.shape),
            np.float32,
        )
        for path, slot in graph.slots.items()
    }


def lowered_table(graph: ModelGraph, lowered: Lowered, *, fold: bool = True) -> str:
    """The rewrites with what they saved, and the steps of the lowered network.

    Args:
        graph: the network as it is written.
        lowered: what became of it.
        fold: equal layers are one line, `encoder.0-2.sparsify`, with how many they are.
    """
    written = sum(node.name in graph.exported for node in graph.nodes)
    done = [("rewrite", "steps", "operations", "saved", "of all")]
    done.append(("as written", str(written), short(graph.flops), "", ""))
    for effect in lowered.effects:
        saved = effect.flops[0] - effect.flops[1]
        share = saved / graph.flops if graph.flops else 0.0
        told = (_signed(saved), f"{100 * share:.1f} %") if saved else ("", "")
        done.append((effect.rewrite, str(effect.steps[1]), short(effect.flops[1]), *told))
    rows = rows_of(lowered.graph, fold=fold)
    steps = [("step", "", "", "type", "flop")]
    steps += [
        (
            row.name,
            f"×{row.count}" if row.count > 1 else "",
            row.first.node.word,
            row.first.type,
            short(row.flops),
        )
        for row in rows
    ]
    ends = [
        ("output", name, str(graph.type_of(graph.outputs[name])), value.node)
        for name, value in lowered.graph.outputs.items()
    ]
    after = lowered.graph.flops
    less = f", {100 * (1 - after / graph.flops):.1f} % less" if after < graph.flops else ""
    return "\n".join(
        [
            f"{title_of(graph)} of {graph.sources[0].name}, lowered",
            "",
            *columns(done, "lrrrr"),
            "",
            *columns(steps, "lrllr", MOST),
            "",
            *columns(ends, "llll"),
            "",
            f"{short(after)} operations a sample instead of {short(graph.flops)}{less}",
        ]
    )


def _signed(number: int) -> str:
    return short(number) if number >= 0 else f"-{short(-number)}"


def as_data(graph: ModelGraph, lowered: Lowered) -> dict[str, Any]:
    """A lowering as JSON takes it: steps and operations of one sample, before and after each rewrite and in all."""
    return {
        "model": graph.model,
        "variant": graph.variant,
        "flops": [graph.flops, lowered.graph.flops],
        "rewrites": [
            {"rewrite": effect.rewrite, "steps": list(effect.steps), "flops": list(effect.flops)}
            for effect in lowered.effects
        ],
        "nodes": [
            {
                "name": step.name,
                "step": step.node.word,
                "type": step.type,
                "flops": step.flops,
                "line": step.line,
            }
            for step in steps_of(lowered.graph)
        ],
        "outputs": {name: value.node for name, value in lowered.graph.outputs.items()},
    }
