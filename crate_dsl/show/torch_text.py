"""The torch classes of a network as text, without torch."""

from __future__ import annotations

from crate_dsl.compiler.graph import ModelGraph
from crate_dsl.compiler.write_torch import TorchWriter


def torch_text(graph: ModelGraph) -> str:
    """The generated classes, each once: the network's, those of its stages and layers, the objective's."""
    writer = TorchWriter(graph)
    written = [writer.network()]
    written += [
        writer.scope(path)
        for path, scope in graph.scopes.items()
        if path not in ("", "objective") and scope.results
    ]
    if graph.objective is not None:
        written.append(writer.objective())
    return "\n\n".join(dict.fromkeys(item.source for item in written))
