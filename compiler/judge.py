"""What fewer bits cost, measured on real data: the file in fewer bits against the one in float32.

Random inputs say little of it: a network that was never trained tells few inputs apart, and no input that it was
trained for lies at its edges by chance.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from crate_dsl.compiler.build import Objective
from crate_dsl.compiler.graph import Node, Value
from crate_dsl.compiler.lower.precision import Precision
from crate_dsl.compiler.network import Network
from crate_dsl.compiler.prove import Proof
from crate_dsl.compiler.runtime import open_session
from crate_dsl.compiler.trace import call_step

if TYPE_CHECKING:
    from rich.table import Table

#: The least share of test samples for which both files must say the same.
AGREEMENT = 0.99
#: Samples that are run at once.
BATCH = 100


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """Real data that a file in fewer bits is made with and judged by: arrays by input name, scaled as in training.

    `calibration` tells between what numbers lie, and is taken from the training data; `test` is what is judged by, and
    never seen before. Inputs that are drawn may be left out. `scores` is the output that scores the classes, `labels`
    (N,) are the classes of the test samples, where there are such; `targets` are what the objective takes beside inputs
    and outputs. `source` is what the data are called.
    """

    calibration: Mapping[str, NDArray[Any]]
    test: Mapping[str, NDArray[Any]]
    targets: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    scores: str | None = None
    labels: NDArray[np.int64] | None = None
    source: str = "the test data"

    @property
    def count(self) -> int:
        """How many test samples there are."""
        return min((len(array) for array in self.test.values()), default=0)

    def batches(self) -> Iterator[dict[str, torch.Tensor]]:
        """The calibration data as torch takes them."""
        for batch in _batches(self.calibration):
            yield {name: torch.from_numpy(array) for name, array in batch.items()}


@dataclass(frozen=True, slots=True)
class Judgement:
    """One output in fewer bits against float32.

    `error` is the largest difference in parts of the largest number, `rms` the root mean square of the differences in
    parts of that of the numbers. `agreement` is the share of samples with the same best class where the output scores
    classes; of other outputs it is 1 - rms², the share of the numbers' energy, and of whole numbers the share that is
    equal. The accuracies are None where there are no labels.
    """

    output: str
    error: float
    rms: float
    agreement: float
    accuracy_float32: float | None = None
    accuracy: float | None = None


@dataclass(frozen=True, slots=True)
class ReducedProof(Proof):
    """The proof of a file in fewer bits: parity of the network in float32, and what fewer bits cost on real data.

    `losses` are the objective's, in float32 and in fewer bits, where the outputs tell it.
    """

    precision: Precision = "float32"
    samples: int = 0
    source: str = ""
    wanted: float = AGREEMENT
    judged: tuple[Judgement, ...] = field(default=())
    losses: tuple[float, float] | None = None

    @property
    def agrees(self) -> bool:
        return all(row.agreement >= self.wanted for row in self.judged)

    @property
    def agreement(self) -> float:
        """That of the output with the least."""
        return min((row.agreement for row in self.judged), default=1.0)

    @property
    def complaint(self) -> str:
        """What was measured, where it is too little."""
        least = min(self.judged, key=lambda row: row.agreement)
        return (
            f"in {self.precision}, `{least.output}` agrees with float32 in {percent(least.agreement)} of "
            f"{self.samples:,} samples of {self.source}, and {percent(self.wanted)} are asked for"
        )

    @property
    def remedy(self) -> str:
        """What writes the file all the same."""
        return f"agreement {np.floor(1000 * self.agreement) / 1000:g} accepts that (`--agreement` on the command line)"

    def as_data(self) -> dict[str, Any]:
        real = {
            "precision": self.precision,
            "samples": self.samples,
            "source": self.source,
            "agreement_wanted": self.wanted,
            "rows": [asdict(row) for row in self.judged],
        }
        if self.losses is not None:
            real |= {"loss_float32": self.losses[0], "loss": self.losses[1]}
        return Proof.as_data(self) | {"real_data": real}

    def judged_table(self) -> Table:
        """What fewer bits cost, for a terminal of 80 columns."""
        from rich.box import SIMPLE_HEAD
        from rich.table import Table

        table = Table(
            box=SIMPLE_HEAD,
            title=f"{self.precision} against float32, {self.samples:,} samples of {self.source}",
            title_justify="left",
            pad_edge=False,
            padding=(0, 1),
        )
        if self.losses is not None:
            table.caption = f"loss {self.losses[1]:.5g}, of float32 {self.losses[0]:.5g}"
            table.caption_justify = "left"
        table.add_column("output", overflow="fold")
        for head in ("error", "rms", "agreement", "accuracy", "of float32"):
            table.add_column(head, justify="right", no_wrap=True)
        table.add_column("", no_wrap=True)
        for row in self.judged:
            accuracies = (row.accuracy, row.accuracy_float32)
            table.add_row(
                row.output,
                f"{row.error:.1e}",
                f"{row.rms:.1e}",
                percent(row.agreement),
                *("-" if share is None else percent(share) for share in accuracies),
                "ok" if row.agreement >= self.wanted else "FAIL",
            )
        return table

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(width=80, color_system=None)
        with console.capture() as capture:
            console.print(self.judged_table())
        lines = "\n".join(line.rstrip() for line in capture.get().splitlines()).rstrip()
        return f"{Proof.__str__(self)}\n\n{lines}"


def percent(share: float) -> str:
    """A share, such as `99.53 %`."""
    return f"{100 * share:.2f} %"


def judge(
    net: nn.Module, exact: str | PathLike[str], file: str | PathLike[str], samples: Samples
) -> tuple[tuple[Judgement, ...], tuple[float, float] | None]:
    """Run both files on the test samples, on the CPU, and compare every output, and the losses where these tell them.

    Inputs that are drawn are the same for both.
    """
    sessions = [open_session(path, provider="cpu", seed=0) for path in (exact, file)]
    found: list[dict[str, list[NDArray[Any]]]] = [{name: [] for name in s.outputs} for s in sessions]
    losses: list[list[float | None]] = [[], []]
    objective = Objective(net) if isinstance(net, Network) and net.graph.objective is not None else None
    for batch in _batches({**samples.targets, **samples.test}):
        given = {name: batch[name] for name in samples.test}
        for session, outputs, lost in zip(sessions, found, losses, strict=True):
            results = session(**given)
            for name, array in results.items():
                outputs[name].append(array)
            lost.append(None if objective is None else loss(objective, batch, results))
    wanted, actual = ({name: np.concatenate(parts) for name, parts in outputs.items()} for outputs in found)
    rows = tuple(
        compared(name, wanted[name], actual[name], classes=name == samples.scores, labels=samples.labels)
        for name in wanted
    )
    sizes = [min(BATCH, samples.count - start) for start in range(0, samples.count, BATCH)]
    means = [
        float(np.average([one for one in lost if one is not None], weights=sizes))
        for lost in losses
        if None not in lost
    ]
    return rows, (means[0], means[1]) if len(means) == 2 else None


def loss(
    objective: Objective, given: Mapping[str, NDArray[Any]], outputs: Mapping[str, NDArray[Any]]
) -> float | None:
    """The objective of one batch, where inputs, targets and outputs tell it; None where it looks inside the network."""
    net = objective.net
    graph = net.graph
    assert graph.objective is not None
    values = {Value(name): torch.from_numpy(array) for name, array in given.items()}
    values |= {value: torch.from_numpy(outputs[name]) for name, value in graph.outputs.items()}
    needed: dict[str, Node] = {}
    pending = [graph.objective]
    while pending:
        value = pending.pop()
        if value in values or value.node in needed:
            continue
        node = graph.item(value.node)
        if not isinstance(node, Node) or node.weights:
            return None
        needed[node.name] = node
        pending += [*node.inputs, *node.ports.values()]
    with torch.inference_mode():
        for node in graph.nodes:
            if node.name in needed:
                piped = [values[value] for value in node.inputs]
                ports = {name: values[value] for name, value in node.ports.items()}
                if type(node.operator).kind == "objective":
                    step = objective.get_submodule(node.path.removeprefix("objective."))
                    results: tuple[torch.Tensor, ...] = (step(*piped, **ports),)
                else:
                    results, _ = call_step(net, node, piped, ports)
                values |= {Value(node.name, index): result for index, result in enumerate(results)}
    return float(values[graph.objective])


def compared(
    output: str,
    wanted: NDArray[Any],
    actual: NDArray[Any],
    classes: bool = False,
    labels: NDArray[np.int64] | None = None,
) -> Judgement:
    """One output as both files give it: (N, …). What is not finite agrees with nothing."""
    a, b = wanted.astype(np.float64), actual.astype(np.float64)
    if not np.isfinite(b).all():
        return Judgement(output, float("inf"), float("inf"), 0.0)
    size = np.abs(a).max(initial=0.0) or 1.0
    error = float(np.abs(a - b).max(initial=0.0) / size)
    rms = float(np.sqrt(np.square(a - b).mean() / (np.square(a).mean() or 1.0)))
    if wanted.dtype.kind != "f":
        return Judgement(output, error, rms, float((wanted == actual).mean()))
    if not classes:
        return Judgement(output, error, rms, 1 - rms**2)
    best, chosen = a.argmax(-1), b.argmax(-1)
    agreement = float((best == chosen).mean())
    if labels is None:
        return Judgement(output, error, rms, agreement)
    accuracies = [float((which == labels).mean()) for which in (best, chosen)]
    return Judgement(output, error, rms, agreement, *accuracies)


def _batches(arrays: Mapping[str, NDArray[Any]]) -> Iterator[dict[str, NDArray[Any]]]:
    count = min((len(array) for array in arrays.values()), default=0)
    for start in range(0, count, BATCH):
        yield {name: array[start : start + BATCH] for name, array in arrays.items()}
