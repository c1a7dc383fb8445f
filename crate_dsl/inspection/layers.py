"""The layers of a network: groups of steps, told apart by what their steps let one see.

A step counts by its taps, whatever it is called: `projection` (tokens in subspaces), `code` (a sparse code) and
`attention`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from crate_dsl.compiler.graph import ModelGraph, Node, Value
from crate_dsl.compiler.types import Segment
from crate_dsl.inspection.pairs import undoing

#: The taps that make a group of steps a layer; a layer has at most one step with each of the first two.
TELLING = ("projection", "code", "attention")
#: The taps that stand for a token where tokens are compared: the first that a step has.
FEATURES = ("projection", "key")


@dataclass(frozen=True)
class Layer:
    """Consecutive steps of one owner. `tokens` is what leaves the layer; `decodes` says that it undoes another one."""

    name: str
    nodes: tuple[Node, ...]
    tokens: Value
    decodes: bool

    @property
    def stage(self) -> str:
        """Whose layer it is: `encoder` for `encoder.3`."""
        head, _, last = self.name.rpartition(".")
        return head if head and last.partition("@")[0].isdigit() else self.name

    def with_tap(self, *taps: str) -> Node | None:
        """The step that has one of these taps."""
        return next((node for node in self.nodes if set(taps) & set(node.operator.taps)), None)

    @property
    def features(self) -> tuple[Node, str] | None:
        """The step, and the tap of it, by which tokens are compared."""
        node = self.with_tap(*FEATURES)
        if node is None:
            return None
        return node, next(tap for tap in FEATURES if tap in node.operator.taps)


def layers(graph: ModelGraph) -> tuple[Layer, ...]:
    """Every layer that the outputs depend on, in order. Iterations that undo a residual are no layers."""
    decoders = {pair.step for pair in graph.pairs}
    inside = {node.name for pair in graph.pairs for node in undoing(graph, pair)[:-1]}
    found: list[Layer] = []
    for name, group in _groups(node for node in graph.nodes if node.name in graph.exported - inside):
        telling = [node for node in group if set(TELLING) & set(node.operator.taps)]
        if telling:
            # What leaves the layer is the last thing of the kind that its own steps make.
            like = telling[-1].typing.output
            last = [node for node in group if node.typing.outputs == (like,)][-1]
            decodes = any(node.name in decoders for node in group)
            found.append(Layer(name, tuple(group), Value(last.name), decodes))
    return tuple(found)


def _groups(nodes: Iterable[Node]) -> list[tuple[str, list[Node]]]:
    """Consecutive nodes of one owner and use; a second step with a telling tap begins another group."""
    groups: list[tuple[str, list[Node]]] = []
    count = 1
    for node in nodes:
        owner = node.path.rpartition(".")[0] or node.path
        key = owner + node.name[len(node.path) :]
        telling = {tap for tap in TELLING[:2] if tap in node.operator.taps}
        same = bool(groups) and groups[-1][0].partition(" ")[0] == key
        full = same and any(telling & set(other.operator.taps) for other in groups[-1][1])
        if not same or full:
            count = count + 1 if full else 1
            groups.append((key if count == 1 else f"{key} ({count})", []))
        groups[-1][1].append(node)
    return groups


# ------------------------------------------------------------------ the token axis


@dataclass(frozen=True)
class Axis:
    """Where a picture's patches stand among the tokens of a step, and the single token beside them, if there is one."""

    patches: slice
    rows: int
    columns: int
    class_token: tuple[str, int] | None


def axis(graph: ModelGraph, node: Node) -> Axis | None:
    """The token axis of a step's result, where it has the whole grid of a picture at a place that is known."""
    layout = node.typing.output.layout
    if layout is None:
        return None
    found: dict[str, tuple[Segment, int]] = {}
    for segment in layout:
        start = layout.start(segment.name).static
        if start is not None:
            found[segment.name] = segment, start
    for segment, start in found.values():
        if segment.grid is not None and segment.length.static == segment.grid.rows * segment.grid.columns:
            stop = start + segment.grid.rows * segment.grid.columns
            return Axis(
                slice(start, stop), segment.grid.rows, segment.grid.columns, _class_token(graph, found)
            )
    return None


def _class_token(graph: ModelGraph, found: dict[str, tuple[Segment, int]]) -> tuple[str, int] | None:
    """A single token beside the grid: the one that the network selects, else the first."""
    read = [node.operator.tokens.name for node in graph.nodes if node.word == "select"]  # type: ignore[attr-defined]
    single = [(name, at) for name, (one, at) in found.items() if one.length.static == 1 and one.grid is None]
    return min(single, key=lambda token: token[0] not in read, default=None)
