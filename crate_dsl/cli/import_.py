"""`crate-dsl import`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from crate_dsl.cli.options import Settings, load_and_warn
from crate_dsl.language.diagnostics import UserError


def import_(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="A file of torch.save, or a .safetensors file.")
    ],
    as_: Annotated[
        str, typer.Option("--as", metavar="TARGET", help="The spec whose network it is.", show_default=False)
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE.safetensors", help="The file.", show_default=False)
    ],
    set: Settings = None,
    format: Annotated[
        Literal["table", "json"], typer.Option(help="How to say what became of each key.")
    ] = "table",
) -> None:
    """Make weights of a spec's network from a checkpoint of the authors' code.

    CRATE, CRATE-alpha and CRATE-MAE are known. Every key of the file is accounted for; one that is missing, unknown or
    of another shape is an error. Nothing in the file is run.

    crate-dsl import crate_s.pth --as specs/crate.crate@small -o small.safetensors
    crate-dsl export specs/crate.crate@small --weights small.safetensors -o s.onnx
    """
    if out.suffix != ".safetensors":
        raise UserError(f"`{out}` does not end with .safetensors", exit_code=2)
    if out.exists() and checkpoint.exists() and out.samefile(checkpoint):
        raise UserError(f"`{out}` is the checkpoint itself", exit_code=2)
    graph = load_and_warn(as_, set)
    from rich.console import Console

    from crate_dsl.checkpoints.importing import import_checkpoint
    from crate_dsl.checkpoints.report import as_data, as_table
    from crate_dsl.show.columns import listed, wrapped

    found = import_checkpoint(checkpoint, graph)
    found.save(out)
    if format == "json":
        print(json.dumps(as_data(found), ensure_ascii=False, indent=1))
        return
    sizes = [f"{name} {size}" for name, size in found.sizes.items()]
    print(listed(sizes, f"{checkpoint} is {found.family.name}: ", hanging="  "))
    for note in found.notes:
        print(wrapped(note, "  ", "    "))
    print()
    Console(highlight=False, markup=False).print(as_table(found))
    numbers = sum(weight.numel() for weight in found.weights.values())
    print(f"\n{out} is written: {len(found.weights)} weights, {numbers:,} numbers")
    settings = "".join(f" --set {text}" for text in set or ())
    print(f"next: crate-dsl export {as_}{settings} --weights {out} --out {out.stem}.onnx")
