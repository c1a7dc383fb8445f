"""`crate-dsl demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="The run's folder.")] = Path("runs/demo"),
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where to train.")] = "auto",
) -> None:
    """Go the whole way once, on images that come along.

    A spec, a trained network, a proved ONNX file, and what it sees. Takes some minutes on two cores. A demo that was
    cut off goes on where it was.

    crate-dsl demo
    """
    from crate_dsl.demo import demo as tell

    tell(out, device=device)
