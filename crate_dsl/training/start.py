"""Where a run begins: weights of another run, or of a file, matched by their spec paths.

A weight is taken where the network has one of the same path (`encoder.3.compress.subspaces`) and shape. What the file
lacks is drawn anew, what the network lacks is left out, and both are told. The same path with another shape is a
mistake. Slow copies (`ema(student)`) begin equal to what they follow, wherever that came from.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from math import prod
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from safetensors import SafetensorError, safe_open

import crate_dsl
from crate_dsl.compiler.constraints import violated
from crate_dsl.compiler.graph import ModelGraph, Node, Value
from crate_dsl.compiler.network import Network
from crate_dsl.compiler.weights import SHOWN
from crate_dsl.language.diagnostics import Diagnostic, Label, Remark, UserError, did_you_mean
from crate_dsl.training.manifest import Manifest, ScalingEntry
from crate_dsl.training.run import WEIGHTS, Run, open_run

Shape = tuple[int, ...]
#: How wide a table may be, in characters.
WIDTH = 80


@dataclass(frozen=True)
class Start:
    """Weights to begin with, not read yet.

    `text` is how they were asked for; `stages` are the paths of what is taken, everything if there are none; `run` is
    the run that they are of, if they are of one.
    """

    text: str
    path: Path
    stages: tuple[str, ...] = ()
    run: Run | None = None

    @property
    def fingerprint(self) -> str:
        """A hash of the file."""
        try:
            with self.path.open("rb") as file:
                digest = blake2b(digest_size=16)
                while chunk := file.read(2**20):
                    digest.update(chunk)
        except OSError as problem:
            raise UserError(f"{self.path} could not be read: {problem.strerror or problem}") from problem
        return digest.hexdigest()


@dataclass(frozen=True)
class Started:
    """A network with its first weights, and what became of each weight of the file and of the network, with its shape.

    `matched` are taken from the file, `new` are drawn, `follows` are slow copies, `left_out` are of no use here.
    """

    start: Start
    net: Network
    fingerprint: str
    matched: Mapping[str, Shape]
    new: Mapping[str, Shape]
    follows: Mapping[str, Shape]
    left_out: Mapping[str, Shape]

    def tell(self, console: Console, manifest: Manifest) -> None:
        """Print which stages are taken, drawn anew and left out, with their layers, weights and numbers."""
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for name in ("", "stage"):
            table.add_column(name, overflow="fold")
        for name in ("weights", "numbers"):
            table.add_column(name, justify="right")
        rows = {
            "taken": self.matched,
            "drawn anew": self.new,
            "slow copies": self.follows,
            "left out": self.left_out,
        }
        for title, weights in rows.items():
            for owner, shapes in _by_owner(weights).items():
                numbers = sum(prod(shape) for shape in shapes)
                table.add_row(title, owner, f"{len(shapes)}", f"{numbers:,}")
                title = ""
        console.print(Text(f"starts from {self.start.text}"), soft_wrap=True)
        console.print(table, width=WIDTH, highlight=False)
        if self._scaling(manifest) is not None:
            console.print(Text("pixels are scaled as there"))

    def recorded(self, manifest: Manifest) -> Manifest:
        """The manifest of a run that begins so: pixels are what they were to the weights that are taken."""
        scaling = self._scaling(manifest) or manifest.scaling
        return manifest.model_copy(update={"start_fingerprint": self.fingerprint, "scaling": scaling})

    def _scaling(self, manifest: Manifest) -> ScalingEntry | None:
        """How pixels were scaled for the weights that are taken, where that can be said of these pixels."""
        own, run = manifest.scaling, self.start.run
        theirs = run.manifest.scaling if run is not None else None
        if own is None or theirs is None or len(own.mean) != len(theirs.mean):
            return None
        return own.model_copy(update={"mean": theirs.mean, "std": theirs.std})


def start_of(graph: ModelGraph, asked: str | Path | None) -> str | None:
    """The weights to begin with: what was asked for, or what the spec's `train` block says, relative to the spec."""
    if asked is not None:
        return str(asked)
    written: str | None = graph.train.get("start")
    folder = os.path.dirname(graph.sources[0].name)
    return None if written is None else os.path.join(folder, written)


def open_start(text: str) -> Start:
    """Weights to begin with, from `RUN` or `FILE.safetensors`, or of some stages alone: `RUN:front,encoder`.

    Raises:
        UserError: there is no such run or file, or the run has no weights yet.
    """
    file, stages = text, ""
    if not os.path.exists(text) and ":" in text:
        file, _, stages = text.rpartition(":")
    names = tuple(name.strip() for name in stages.split(",")) if stages else ()
    if "" in names or (file != text and not names):
        raise UserError(f"`{text}` names no stage behind the colon", "for instance: RUN:front,encoder")
    path = Path(file)
    if path.is_dir():
        run = open_run(path)
        if not (path / WEIGHTS).is_file():
            raise UserError(
                f"{path} has no weights yet: no epoch was completed", "crate-dsl train … --resume"
            )
        return Start(text, path / WEIGHTS, names, run)
    if not path.is_file():
        help = "a run's folder, or a .safetensors file, perhaps with stages: RUN:front,encoder"
        raise UserError(f"there is no `{file}` to start from", help)
    return Start(text, path, names)


def started_from(text: str | None, graph: ModelGraph, seed: int) -> Started | None:
    """The network with its first weights; None where nothing is said of them, and all are drawn.

    Raises:
        UserError: as `open_start` and `begin_with`.

    Warns:
        Remark: what is frozen begins at random, or what begins cannot do what is asked of it.
    """
    start = None if text is None else open_start(text)
    started = None if start is None else begin_with(crate_dsl.build(graph, seed=seed), start)
    for remark in remarks(graph, started):
        warnings.warn(Remark(remark), stacklevel=2)
    return started


@torch.no_grad()
def begin_with(net: Network, start: Start) -> Started:
    """Give a network, as it was built, the weights that it shares with a file by path and shape.

    Raises:
        UserError: the file is damaged; a weight has the path of one of the network's and another shape, is not finite,
            or off its constraint; a stage that was named is not in both; nothing matches.
    """
    graph = net.graph
    ours = {path: slot.shape for path, slot in graph.slots.items() if path not in graph.averages}
    try:
        with safe_open(start.path, "pt") as file:
            theirs = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            _check_stages(start, ours, theirs)
            wanted = {path: shape for path, shape in theirs.items() if _inside(path, start.stages)}
            matched = {path: shape for path, shape in ours.items() if path in wanted}
            if not matched:
                raise _nothing_matches(start, ours, wanted)
            _check_shapes(start, matched, wanted)
            weights = {path: file.get_tensor(path) for path in matched}
    except (SafetensorError, OSError) as problem:
        raise UserError(f"{start.path} is cut off or damaged: {problem}") from problem
    for path, found in weights.items():
        where, slot = f"`{path}` of {start.path}", graph.slots[path]
        if not found.is_floating_point():
            raise UserError(f"{where} is {str(found.dtype).removeprefix('torch.')}, no float")
        weight = found.to(torch.float32)
        if not weight.isfinite().all():
            raise UserError(f"{where} holds NaN, infinity, or what is too large for float32")
        if (off := violated(weight, slot)) is not None:
            raise UserError(f"{where} must be {slot.constraint}, and is off by {off:.1e}")
        net.get_parameter(path).copy_(weight)
    net.average_(momentum=0)
    return Started(
        start=start,
        net=net,
        fingerprint=start.fingerprint,
        matched=matched,
        new={path: shape for path, shape in ours.items() if path not in matched},
        follows={path: graph.slots[path].shape for path in graph.averages},
        left_out={path: shape for path, shape in theirs.items() if path not in matched},
    )


# ------------------------------------------------------------------ what works, and should be known


def remarks(graph: ModelGraph, started: Started | None) -> Iterator[Diagnostic]:
    """What there is to say of a network that begins so; with None, all its weights are drawn."""
    matched = started.matched if started is not None else ()
    held = {p for p in graph.frozen if graph.slots[p].trained and p not in graph.averages}
    if random := {path: () for path in graph.slots if path in held and path not in matched}:
        owners = list(_by_owner(random))
        names = f"`{'`, `'.join(owners[:-1])}` and `{owners[-1]}` are" if owners[1:] else f"`{owners[0]}` is"
        stages = (graph.scopes.get(owner) for owner in _by_owner(random, layers=False))
        labels = tuple(Label(span=stage.span) for stage in stages if stage is not None)
        yield Diagnostic(
            code="W0816",
            message=f"{names} frozen without a start: what was drawn at random stays so",
            where=labels[0] if labels else None,
            also=labels[1:],
            help=('--start RUN, or `start = "file.safetensors"` in the train block',),
        )
    run = started.start.run if started is not None and not held.isdisjoint(matched) else None
    prompts = _prompts(graph, held)
    if run is not None and prompts is not None and _losses(run.graph()) == {"rotation"}:
        yield Diagnostic(
            code="W0817",
            message=f"{run.folder} learned to tell rotations, and prompts alone can ask for little else",
            where=Label(span=prompts.span),
            help=("train its stages too, or begin with a pretext that tells pictures apart",),
        )


def _prompts(graph: ModelGraph, held: Collection[str]) -> Node | None:
    """Where learned tokens enter what is frozen, if nothing else is trained before it or inside it."""
    detached = [node for node in graph.nodes if any(ref.slot in held for ref in node.weights.values())]
    before = graph.reached(Value(node.name) for node in detached)
    enters = None
    for node in graph.nodes:
        trained = [
            r.slot for r in node.weights.values() if r.slot not in graph.frozen and r.view != "detached"
        ]
        if node.name in before and trained:
            if not all(slot in graph.learns for slot in trained):
                return None
            enters = node
    return enters


def _losses(graph: ModelGraph) -> set[str]:
    """The words of what is minimised, arithmetic aside."""
    reached = graph.reached([graph.objective]) if graph.objective is not None else ()
    return {
        node.word
        for node in graph.nodes
        if node.name in reached and node.path.startswith("objective.") and node.operator.kind != "expression"
    }


# ------------------------------------------------------------------ what does not fit


def _inside(path: str, stages: Sequence[str]) -> bool:
    """Whether a weight is of one of these stages, layers or steps; of no stages is every weight."""
    return not stages or any(path == stage or path.startswith(f"{stage}.") for stage in stages)


def _check_stages(start: Start, ours: Iterable[str], theirs: Iterable[str]) -> None:
    """Every stage that was named is in the network and in the file."""
    for stage in start.stages:
        for what, paths in (("the network", ours), (str(start.path), theirs)):
            if not any(_inside(path, [stage]) for path in paths):
                known = list(_by_owner(dict.fromkeys(paths, ()), layers=False))
                near = did_you_mean(stage, known)
                help = f"did you mean `{near}`?" if near else f"it has {', '.join(known)}"
                raise UserError(f"{what} has no `{stage}`", help)


def _check_shapes(start: Start, ours: Mapping[str, Shape], theirs: Mapping[str, Shape]) -> None:
    wrong = [path for path, shape in ours.items() if theirs[path] != shape]
    if not wrong:
        return
    shown = [f"`{path}` is {list(ours[path])}, and there {list(theirs[path])}" for path in wrong[:SHOWN]]
    more = f"; and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
    stages = list(_by_owner(dict.fromkeys((p for p in ours if p not in wrong), ()), layers=False))
    help = ["what is to be drawn anew has a name of its own in the spec"]
    if stages := [stage for stage in stages if not any(_inside(path, [stage]) for path in wrong)]:
        source = start.run.folder if start.run else start.path
        help.append(f"or only some stages are taken: --start {source}:{','.join(stages)}")
    raise UserError(f"{start.path} has other shapes: {'; '.join(shown)}{more}", *help)


def _nothing_matches(start: Start, ours: Mapping[str, Shape], theirs: Mapping[str, Shape]) -> UserError:
    """No weight of the file has a path that the network has."""
    here, there = (list(_by_owner(dict.fromkeys(paths, ()), layers=False)) for paths in (ours, theirs))
    near = [
        f"`{name}` here is perhaps `{other}` there" for name in here if (other := did_you_mean(name, there))
    ]
    owns = [f"the network has {', '.join(here)}", f"the file has {', '.join(there) or 'nothing'}"]
    message = f"no weight of {start.path} has the name of one of the network's, so none is taken"
    return UserError(message, *owns, *near)


def _by_owner(weights: Mapping[str, Shape], layers: bool = True) -> dict[str, list[Shape]]:
    """The shapes of weights by whose they are: a stage or binding, with its layers: `encoder.0-3`; a `learn` itself."""
    found: dict[str, list[Shape]] = {}
    numbers: dict[str, set[int]] = {}
    for path, shape in weights.items():
        owner, _, rest = path.partition(".")
        found.setdefault(owner, []).append(shape)
        layer = rest.partition(".")[0]
        if layer.isdigit():
            numbers.setdefault(owner, set()).add(int(layer))
    if not layers:
        return found
    return {_with_layers(owner, numbers.get(owner, ())): shapes for owner, shapes in found.items()}


def _with_layers(owner: str, layers: Iterable[int]) -> str:
    """`encoder` and 0, 1, 2, 5 -> `encoder.0-2,5`."""
    spans: list[list[int]] = []
    for layer in sorted(layers):
        if spans and layer == spans[-1][1] + 1:
            spans[-1][1] = layer
        else:
            spans.append([layer, layer])
    text = ",".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)
    return f"{owner}.{text}" if text else owner
