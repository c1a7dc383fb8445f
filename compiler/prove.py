"""The parity gate: an exported network computes what torch computes, or it is not written.

A proof runs torch and onnxruntime on the same inputs and compares every output: at the given weights and at perturbed
ones, at several batch sizes and lengths, with inputs of several sizes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import isfinite, sqrt
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import nn

from crate_dsl.compiler.constraints import constrain_
from crate_dsl.compiler.draws import DrawForm
from crate_dsl.compiler.graph import Cache, Entry, ModelGraph, Value
from crate_dsl.compiler.operators import Slot
from crate_dsl.compiler.runtime import ONNXRUNTIME_ERRORS, bare_session
from crate_dsl.compiler.types import Symbol
from crate_dsl.language.diagnostics import UserError

if TYPE_CHECKING:
    from rich.table import Table

#: How far onnxruntime may be from torch, relative to the largest number of the output. Both compute in float32 (spacing
#: 1.2e-7) and sum in different orders: some hundred layers stay below 1e-5, and a swapped or forgotten argument shows
#: above 1e-3.
RELATIVE_TOLERANCE = 1e-4
#: The same for outputs that are almost zero, in absolute terms: what is left of numbers around 1 that cancel.
ABSOLUTE_TOLERANCE = 1e-6

#: Where a network makes so much of rounding that the two differ by more: how many times as far from float64 as torch
#: itself onnxruntime may be. Both sum in float32, each in its own order; the largest of some thousand numbers of random
#: networks was off by up to 11 times as much in the one as in the other.
OWN_ROUNDING = 20

#: Weights of each proof, batch sizes and input sizes: every one of them meets both kinds of weights.
PLAN: tuple[tuple[Literal["given", "perturbed"], int, float], ...] = (
    ("given", 2, 1.0),
    ("given", 1, 0.01),
    ("given", 5, 10.0),
    ("perturbed", 1, 10.0),
    ("perturbed", 2, 0.01),
    ("perturbed", 5, 1.0),
)

#: What a row says beside its case.
MEASURED = ("output", "error", "largest", "tolerance")
#: The share of a drawn boolean input that is true.
TRUE_SHARE = 0.75


@dataclass(frozen=True, slots=True)
class Case:
    """One comparison: which weights, how many samples, inputs of what size, and the lengths known at run time.

    Where a network takes the next tokens alone, `portions` are those in which it is given them.
    """

    weights: Literal["given", "perturbed"]
    batch: int
    scale: float
    lengths: Mapping[str, int] = field(default_factory=dict)
    portions: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """What one case measured at one output: the largest difference, and the largest number that torch computed."""

    case: Case
    output: str
    error: float
    largest: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance and isfinite(self.largest)


@dataclass(frozen=True, slots=True)
class Proof:
    """The parity table of an export. `str()` is the table as text."""

    rows: tuple[Row, ...]

    @property
    def passed(self) -> bool:
        return all(row.passed for row in self.rows)

    @property
    def worst(self) -> float:
        """The largest error relative to its output's largest number."""
        return max((row.error / row.largest if row.largest else row.error for row in self.rows), default=0.0)

    def as_data(self) -> dict[str, Any]:
        """The table as JSON takes it; stored in the file."""
        return {
            "relative_tolerance": RELATIVE_TOLERANCE,
            "absolute_tolerance": ABSOLUTE_TOLERANCE,
            "torch": torch.__version__,
            "onnxruntime": onnxruntime.__version__,
            "rows": [asdict(row.case) | {key: getattr(row, key) for key in MEASURED} for row in self.rows],
        }

    def table(self) -> Table:
        """The table for a terminal of 80 columns."""
        from rich.box import SIMPLE_HEAD
        from rich.table import Table

        with_lengths = any(row.case.lengths for row in self.rows)
        with_portions = any(row.case.portions for row in self.rows)
        table = Table(
            box=SIMPLE_HEAD,
            title="onnxruntime against torch",
            title_justify="left",
            pad_edge=False,
            padding=0,
        )
        table.add_column("weights", no_wrap=True)
        table.add_column("batch", justify="right", no_wrap=True)
        if with_lengths:
            table.add_column("lengths", overflow="fold")
        if with_portions:
            table.add_column("portions", overflow="fold")
        table.add_column("inputs", justify="right", no_wrap=True)
        table.add_column("output", overflow="fold")
        for head in ("largest", "error", "allowed"):
            table.add_column(head, justify="right", no_wrap=True)
        table.add_column("", no_wrap=True)
        for row in self.rows:
            lengths = ", ".join(f"{name} = {size}" for name, size in row.case.lengths.items())
            table.add_row(
                row.case.weights,
                str(row.case.batch),
                *([lengths] if with_lengths else []),
                *([" + ".join(map(str, row.case.portions))] if with_portions else []),
                f"× {row.case.scale:g}",
                row.output,
                *(f"{number:.1e}" for number in (row.largest, row.error, row.tolerance)),
                "ok" if row.passed else "FAIL",
                style=None if row.passed else "bold red",
            )
        return table

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(width=80, color_system=None)
        with console.capture() as capture:
            console.print(self.table())
        return "\n".join(line.rstrip() for line in capture.get().splitlines()).rstrip()


class ProofError(UserError):
    """An export that does not compute what torch computes: no file was written. `proof` is the table, if any."""

    def __init__(self, message: str, *help: str, proof: Proof | None = None) -> None:
        super().__init__(message, *help, exit_code=3)
        self.proof = proof

    def __str__(self) -> str:
        return "\n".join([super().__str__(), *([str(self.proof)] if self.proof and self.proof.rows else [])])


# ------------------------------------------------------------------ what is tried


def cases(graph: ModelGraph) -> list[Case]:
    """The comparisons that a graph asks for: `PLAN`, with each symbolic length at its least, its bound and between."""
    symbols = symbols_of(graph)
    sizes = {name: _sizes(graph, symbol) for name, symbol in symbols.items()}
    scaled = any(
        entry.type.kind == "float" and entry.source is None for entry in graph.export_inputs.values()
    )
    return [
        Case(
            weights,
            batch,
            scale if scaled else 1.0,
            # Batch 1 meets the bound, 2 the middle, 5 the least; a second length is one further.
            {
                name: found[(batch // 2 + turn) % len(found)]
                for turn, (name, found) in enumerate(sizes.items())
            },
        )
        for weights, batch, scale in PLAN
    ]


def symbols_of(graph: ModelGraph) -> dict[str, Symbol]:
    """The lengths of the exported inputs that are known only at run time."""
    dims = [dim for entry in graph.export_inputs.values() for dim in entry.type.shape]
    return {dim.symbol.name: dim.symbol for dim in dims if dim.symbol is not None}


def _sizes(graph: ModelGraph, symbol: Symbol) -> tuple[int, int, int]:
    """The bound of a length, an odd number below it, and the least that leaves every exported tensor something."""
    values = [graph.type_of(value) for value in _exported_values(graph)]
    dims = {dim for type_ in values for dim in type_.shape if dim.symbol == symbol}
    least = next(
        (n for n in range(1, symbol.bound) if all(d.at({symbol.name: n}) > 0 for d in dims)), symbol.bound
    )
    return symbol.bound, max(least, 2 * (symbol.bound // 3) - 1), least


def _exported_values(graph: ModelGraph) -> Iterator[Value]:
    for name in graph.exported:
        item = graph.item(name)
        for index in range(1 if isinstance(item, Entry) else len(item.typing.outputs)):
            yield Value(name, index)


def drawn_inputs(graph: ModelGraph, case: Case, generator: np.random.Generator) -> dict[str, NDArray[Any]]:
    """One batch of every exported input: declared draws as declared, floats normal times the scale, the rest uniform.

    Of a boolean input the first place is true in every sample: attention over no token at all has no value.
    """
    feeds: dict[str, NDArray[Any]] = {}
    for name, entry in graph.export_inputs.items():
        shape = (case.batch, *entry.type.sizes(dict(case.lengths)))
        if isinstance(entry.source, DrawForm):
            feeds[name] = entry.source.sample(entry.type, case.batch, case.lengths, generator)
        elif entry.type.kind == "float":
            feeds[name] = generator.standard_normal(shape, dtype=np.float32) * np.float32(case.scale)
        elif entry.type.kind == "index":
            assert entry.type.classes is not None
            feeds[name] = generator.integers(entry.type.classes, size=shape)
        else:
            feeds[name] = generator.random(shape) < TRUE_SHARE
            feeds[name][..., :1] = True
    return feeds


def perturb(net: nn.Module, slots: Mapping[str, Slot] = {}, seed: int = 0) -> None:
    """Move every weight in place: a gate at zero, a scale at one and a bias at zero hide arguments that are swapped.

    Vectors and scalars get noise of 0.1, matrices noise that alone would keep the size of what they are applied to;
    both in addition to noise of a tenth of each weight. Weights that `slots` say are constrained are led back; states
    that are not trained only grow, since some of them, as variances, are never below zero.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for path, weight in net.state_dict().items():
            share, moved = (torch.randn(weight.shape, generator=generator) for _ in range(2))
            size = 0.5 / sqrt(weight.shape[-1]) if weight.dim() > 1 else 0.1
            if path in slots and not slots[path].trained:
                share, moved = share.abs(), moved.abs()
            weight.mul_(1 + 0.1 * share).add_(size * moved)
    constrain_(net.state_dict(), slots)


def portions(count: int, batch: int) -> tuple[int, ...]:
    """How so many tokens are given: many at first, then one by one, then the rest; or the other way round."""
    if count < 4:
        return (1,) * count
    first = count // 2
    found = (first, 1, 1, *([count - first - 2] if count - first > 2 else []))
    return found if batch % 2 else found[::-1]


# ------------------------------------------------------------------ comparing


def compare(
    graph: ModelGraph,
    net: nn.Module,
    file: str | PathLike[str],
    wanted: Sequence[Case],
    seed: int = 0,
    cache: Cache | None = None,
) -> Iterator[Row]:
    """Run these cases in torch and in onnxruntime (on the CPU), and measure every output.

    `net` is on the CPU, in evaluation mode, and has the file's weights. With a `cache`, the file is its network for the
    next tokens, and is given the tokens in portions, each with what it held after the last one.

    Raises:
        ProofError: onnxruntime refuses the file or its inputs, or gives another shape.
    """
    generator = np.random.default_rng(seed)
    names = list(graph.outputs)
    try:
        session = bare_session(file)
    except ONNXRUNTIME_ERRORS as problem:
        raise ProofError(f"onnxruntime refuses the exported file: {problem}") from problem
    for case in wanted:
        feeds = drawn_inputs(graph, case, generator)
        if cache is not None:
            # What says which tokens count is not asked for the next ones: all do.
            feeds = {n: np.ones_like(a) if a.dtype == np.bool_ else a for n, a in feeds.items()}
            case = replace(case, portions=portions(feeds[cache.tokens].shape[1], case.batch))
        with torch.inference_mode():
            result = net(**{name: torch.from_numpy(array) for name, array in feeds.items()})
        expected = result if isinstance(result, Mapping) else {names[0]: result}
        try:
            if cache is None:
                actual = session.run(names, feeds)
            else:
                actual = _in_portions(session, cache, names, feeds[cache.tokens], case.portions)
        except ONNXRUNTIME_ERRORS as problem:
            raise ProofError(
                f"onnxruntime cannot run the exported file ({_words(case)}): {problem}"
            ) from problem
        for name, array in zip(names, actual, strict=True):
            reference = expected[name].numpy()
            if reference.shape != array.shape:
                raise ProofError(
                    f"`{name}` is of shape {list(array.shape)} in onnxruntime, {list(reference.shape)} in torch"
                    f" ({_words(case)})"
                )
            row = measure(case, name, reference, array)
            yield row if row.passed else _held_to_float64(net, feeds, row, reference, array)


def _in_portions(
    session: onnxruntime.InferenceSession,
    cache: Cache,
    names: Sequence[str],
    tokens: NDArray[Any],
    sizes: Sequence[int],
) -> list[NDArray[Any]]:
    """The outputs of a network for the next tokens, put together from those of each portion."""
    batch, past = len(tokens), 0
    states = {
        item.name: np.zeros((batch, *(0 if isinstance(n, str) else n for n in item.shape[1:])), np.float32)
        for item in session.get_inputs()
        if item.name not in (cache.tokens, cache.past)
    }
    found = []
    for size in sizes:
        feeds = {cache.tokens: tokens[:, past : past + size], cache.past: np.full(batch, past), **states}
        results = session.run([*names, *(after for _, after in cache.states)], feeds)
        found.append(results[: len(names)])
        states = {state: array for (state, _), array in zip(cache.states, results[len(names) :], strict=True)}
        past += size
    return [np.concatenate(parts, axis=1) for parts in zip(*found, strict=True)]


def measure(case: Case, output: str, reference: NDArray[Any], array: NDArray[Any]) -> Row:
    """One row of the table. Anything that is not finite counts as an infinite error; whole numbers must be equal."""
    exact = reference.dtype.kind != "f"
    a, b = reference.astype(np.float64), array.astype(np.float64)
    largest = float(np.abs(a).max(initial=0.0))
    finite = bool(np.isfinite(a).all() and np.isfinite(b).all())
    error = float(np.abs(a - b).max(initial=0.0)) if finite else float("inf")
    tolerance = RELATIVE_TOLERANCE * largest + ABSOLUTE_TOLERANCE
    return Row(case, output, error, largest, 0.0 if exact else tolerance)


def _held_to_float64(
    net: nn.Module, feeds: Mapping[str, NDArray[Any]], row: Row, reference: NDArray[Any], array: NDArray[Any]
) -> Row:
    """A row that failed against torch in float32, whose own rounding may be as large: compared in float64 instead."""
    if reference.dtype.kind != "f" or not isfinite(row.error):
        return row
    exact = copy.deepcopy(net).double()
    given = {name: torch.from_numpy(value) for name, value in feeds.items()}
    with torch.inference_mode():
        result = exact(**{n: v.double() if v.is_floating_point() else v for n, v in given.items()})
    wanted = (result[row.output] if isinstance(result, Mapping) else result).numpy()
    own = float(np.abs(wanted - reference).max(initial=0.0))
    error = float(np.abs(wanted - array).max(initial=0.0))
    return replace(row, error=error, tolerance=max(row.tolerance, OWN_ROUNDING * own))


def _words(case: Case) -> str:
    lengths = "".join(f", {name} = {size}" for name, size in case.lengths.items())
    return f"{case.weights} weights, batch {case.batch}{lengths}, inputs × {case.scale:g}"
