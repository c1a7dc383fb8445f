"""`crate-dsl show`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from crate_dsl.cli.options import Lower, Settings, load_and_warn
from crate_dsl.cli.terminal import complain
from crate_dsl.language.diagnostics import SpecError, UserError
from crate_dsl.workspace import Target, load_exported

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray
    from onnx import ModelProto

    from crate_dsl.compiler.graph import ModelGraph
    from crate_dsl.compiler.metadata import Metadata

Format = Literal["table", "json", "mermaid", "svg"]
Stage = Literal["tree", "graph", "torch", "lowered", "onnx"]
#: The stages that `--lower` goes with.
LOWERED: tuple[Stage, ...] = ("torch", "lowered", "onnx")
#: How each stage can be shown.
FORMATS: dict[Stage, tuple[Format, ...]] = {
    "tree": ("table", "json"),
    "graph": ("table", "json", "mermaid", "svg"),
    "torch": ("table",),
    "lowered": ("table", "json"),
    "onnx": ("table",),
}


def show(
    target: Annotated[
        str,
        typer.Argument(metavar="TARGET|RUN|FILE.onnx", help="A spec, a run's folder, or an exported file."),
    ],
    set: Settings = None,
    format: Annotated[Format | None, typer.Option(help="How.  [default: table]", show_default=False)] = None,
    stage: Annotated[
        Stage | None,
        typer.Option(help="Which stage on the way from text to ONNX.  [default: graph]", show_default=False),
    ] = None,
    lower: Lower = None,
    formulas: Annotated[
        bool, typer.Option("--formulas", help="Each step's formula, source and inverse, too.")
    ] = False,
    all: Annotated[
        bool, typer.Option("--all", help="Every layer by itself; else equal ones are folded into one.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Write to a file.", show_default=False)
    ] = None,
) -> None:
    """Show what a spec computes, or draw it.

    The table has its steps with types, token layouts, parameters and operations. An exported file gives its spec
    back, unless a format or a stage is asked for. What is exported is lowered first, by exact rewrites, which
    `crate-dsl export --help` names: `--stage lowered` tells what each of them did and saved.

    crate-dsl show specs/crate.crate@tiny
    crate-dsl show specs/crate.crate@tiny --formulas
    crate-dsl show specs/vit.crate --format svg -o vit.svg
    crate-dsl show specs/vit.crate --stage torch
    crate-dsl show runs/first --stage lowered
    crate-dsl show specs/vit.crate --stage onnx --lower none
    crate-dsl show first.onnx > first.crate
    """
    shown = format or "table"
    at = stage or "graph"
    if shown not in FORMATS[at]:
        raise UserError(
            f"`--stage {at}` has no `--format {shown}`", f"formats: {', '.join(FORMATS[at])}", exit_code=2
        )
    if formulas and (at, shown) != ("graph", "table"):
        raise UserError("`--formulas` goes with the table of the graph", exit_code=2)
    if lower is not None and at not in LOWERED:
        raise UserError(f"`--lower` goes with `--stage {'`, `--stage '.join(LOWERED)}`", exit_code=2)
    if target.endswith(".onnx"):
        text = _exported(target, set, format, stage, lower, formulas, fold=not all)
    elif at == "tree":
        text = _tree(target, shown)
    else:
        run = _of_run(target, set)
        graph = run or load_and_warn(target, set)
        text = _graph(graph, shown, at, lower, formulas, target if run else None, fold=not all)
    if out is None:
        print(text)
    else:
        from crate_dsl.training.files import write_text

        write_text(out, text + "\n")


def _graph(
    graph: ModelGraph,
    format: Format,
    stage: Stage,
    lower: str | None,
    formulas: bool,
    run: str | None,
    *,
    fold: bool,
) -> str:
    if stage in ("lowered", "onnx") or lower is not None:
        return _lowered(graph, format, stage, "all" if lower is None else lower, run, fold=fold)
    if stage == "torch":
        from crate_dsl.show.torch_text import torch_text

        return torch_text(graph).rstrip("\n")
    if format == "json":
        from crate_dsl.show.as_json import as_data

        return json.dumps(as_data(graph), ensure_ascii=False, indent=1)
    if format == "mermaid":
        from crate_dsl.show.mermaid import mermaid

        return mermaid(graph, fold=fold)
    if format == "svg":
        from crate_dsl.show.svg import svg

        return svg(graph, fold=fold)
    from crate_dsl.show.table import formulas as formulas_of
    from crate_dsl.show.table import table

    return table(graph, fold=fold) + (f"\n\n{formulas_of(graph)}" if formulas else "")


def _tree(target: str, format: Format) -> str:
    from crate_dsl.language.parser import parse
    from crate_dsl.language.reading import read_source
    from crate_dsl.show.tree import as_data, outline

    parsed = parse(read_source(Target.of(target).path))
    if parsed.diagnostics:
        raise SpecError(parsed.diagnostics)
    return (
        json.dumps(as_data(parsed.tree), ensure_ascii=False, indent=1)
        if format == "json"
        else "\n".join(outline(parsed.tree))
    )


def _of_run(folder: str, set: list[str] | None) -> ModelGraph | None:
    """The graph of a run, from the texts in its folder; None where the target is no run."""
    path = Path(folder)
    if not (path / "run.json").is_file():
        return None
    if set:
        raise UserError("a run's parameters are fixed: `--set` goes with a spec", exit_code=2)
    from crate_dsl.training.manifest import Manifest

    manifest = Manifest.read(path / "run.json")
    from crate_dsl.workspace import load

    return load(str(path / manifest.target), manifest.overrides())


# ------------------------------------------------------------------ lowered


def _lowered(
    graph: ModelGraph, format: Format, stage: Stage, lower: str, run: str | None, *, fold: bool
) -> str:
    """What lowering makes of a network: with a run's trained weights, or with some where there are none yet."""
    from crate_dsl.compiler.lower import lower_graph
    from crate_dsl.show.lowered import as_data, lowered_table, some_weights

    weights = _trained(graph, run) or some_weights(graph)
    if stage == "onnx":
        from crate_dsl.compiler.export import lowered_model
        from crate_dsl.show.onnx_text import onnx_text

        return onnx_text(lowered_model(graph, weights, lower, {}), fold=fold)
    lowered = lower_graph(graph, weights, lower)
    if stage == "torch":
        from crate_dsl.show.torch_text import torch_text

        return torch_text(lowered.graph).rstrip("\n")
    if format == "json":
        return json.dumps(as_data(graph, lowered), ensure_ascii=False, indent=1)
    return lowered_table(graph, lowered, fold=fold)


def _trained(graph: ModelGraph, run: str | None) -> Mapping[str, NDArray[np.float32]] | None:
    """The weights of a run's best epoch; None before there are any."""
    from crate_dsl.training.run import WEIGHTS, open_run

    if run is None or not (Path(run) / WEIGHTS).is_file():
        return None
    from crate_dsl.compiler.weights import plain_weights

    return plain_weights(graph, open_run(run).net())


# ------------------------------------------------------------------ exported files


def _exported(
    path: str,
    set: list[str] | None,
    format: Format | None,
    stage: Stage | None,
    lower: str | None,
    formulas: bool,
    *,
    fold: bool,
) -> str:
    if set:
        raise UserError("an exported file's parameters are fixed: `--set` goes with a spec", exit_code=2)
    from crate_dsl.compiler.onnx_files import read_model

    model: ModelProto
    model, metadata = read_model(path)
    if stage == "onnx":
        if lower is not None:
            help = f"what another choice would give: crate-dsl show {path} --stage lowered --lower {lower}"
            raise UserError("an exported file shows what is in it", help, exit_code=2)
        from crate_dsl.show.onnx_text import onnx_text

        return onnx_text(model, fold=fold)
    if stage == "lowered" and lower is None:
        lower = metadata.extra.get("lowered", "none")
    if stage == "tree":
        raise UserError(
            "an exported file has a text and a graph", f"its text: crate-dsl show {path}", exit_code=2
        )
    if stage is None and format is None and not formulas:
        return _texts(path, metadata)
    graph = load_exported(metadata)
    return _graph(graph, format or "table", stage or "graph", lower, formulas, None, fold=fold)


def _texts(path: str, metadata: Metadata) -> str:
    """The spec; with a heading for each file, where it consists of several."""
    target = metadata.target
    name = target.model if target.variant is None else f"{target.model}@{target.variant}"
    precision = f" in {metadata.extra['precision']}" if "precision" in metadata.extra else ""
    complain(f"{path} is {name}{precision}, exported by crate-dsl {metadata.version}")
    if len(metadata.spec) == 1:
        return metadata.text.rstrip("\n")
    return "\n\n".join(f"# ---- {source.name}\n{source.text.rstrip()}" for source in metadata.spec)
