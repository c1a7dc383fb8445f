"""`crate-dsl features`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from crate_dsl.features import Comparison

#: How wide the table may be, in characters.
WIDTH = 80


def features(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.")],
    data: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE", help="Images with labels.  [default: the run's own]", show_default=False
        ),
    ] = None,
    output: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="What is read: an output, a named value, or a step's path, of type float[d]."
        ),
    ] = "features",
    neighbours: Annotated[
        int, typer.Option(min=1, metavar="K", help="How many nearest training images vote.")
    ] = 20,
    probe: Annotated[bool, typer.Option("--probe", help="Fit a linear map of the features, too.")] = False,
    random: Annotated[
        bool, typer.Option("--random", help="Beside it the same network, its weights drawn at random.")
    ] = False,
    pixels: Annotated[bool, typer.Option("--pixels", help="Beside it the pixels themselves.")] = False,
    limit: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Fit on at most N training images.", show_default=False),
    ] = None,
    device: Annotated[
        Literal["auto", "cpu", "cuda"], typer.Option(help="Where features are computed.")
    ] = "auto",
    format: Annotated[Literal["table", "json"], typer.Option(help="How to say it.")] = "table",
) -> None:
    """Count what a network's features tell of classes that nobody told it.

    Neighbours: the class of a test image is that of most of its nearest training images, by the cosine of features.
    Linear map: fitted on the features of training images and their labels. Neither changes the network.

    crate-dsl features runs/simdino --data mnist5k
    crate-dsl features runs/simdino --probe --random --pixels
    crate-dsl features runs/first --output logits.norm
    """
    from crate_dsl.features import compare
    from crate_dsl.inspection.terminal import progress
    from crate_dsl.training.run import open_run
    from crate_dsl.training.sources import open_data, required_module
    from crate_dsl.training.train import chosen_device

    required_module("sklearn", "features")
    opened, on = open_run(run), chosen_device(device)
    images = opened.data() if data is None else open_data(data)
    if limit is not None:
        images = images.limited(limit)
    with progress((len(images.train) + len(images.test)) * (1 + random), "images") as advance:
        found = compare(
            opened,
            images,
            output=output,
            neighbours=neighbours,
            probe=probe,
            random=random,
            pixels=pixels,
            device=on,
            advance=advance,
        )
    if format == "json":
        import json
        from dataclasses import asdict

        print(json.dumps(asdict(found), ensure_ascii=False, indent=1))
        return
    from rich.console import Console

    console = Console(width=WIDTH, highlight=False)
    head = (
        f"{found.output} of {found.run}",
        f"{found.train_images:,} training and {found.test_images:,} test images of {found.data}, "
        f"{found.classes} classes\n",
    )
    for line in head:
        console.print(line, markup=False, soft_wrap=True)
    console.print(_table(found))


def _table(found: Comparison) -> Table:
    """A row for each thing that was measured."""
    from rich.table import Table

    probed = any(row.probe is not None for row in found.rows)
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("test images right by", overflow="fold")
    for name in (f"{found.neighbours} neighbours", *["linear map"] * probed, "dimensions"):
        table.add_column(name, justify="right")
    for row in found.rows:
        shares = [row.nearest] if row.probe is None else [row.nearest, row.probe]
        cells = [f"{100 * share:.2f} %" for share in shares]
        table.add_row(row.source, *cells, f"{row.dimensions:.1f} of {row.width}")
    return table
