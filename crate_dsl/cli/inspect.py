"""`crate-dsl inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from crate_dsl.cli.options import Settings, load_and_warn
from crate_dsl.language.diagnostics import UserError


def inspect(
    target: Annotated[str, typer.Argument(metavar="RUN|TARGET", help="A run's folder, or a spec.")],
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", metavar="FILE.html", help="The report; beside it FILE.json.", show_default=False
        ),
    ],
    data: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            help="Its test images, or windows of text, are measured.  [default: the run's own]",
            show_default=False,
        ),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.safetensors",
            help="Of a spec's network, which is untrained else.",
            show_default=False,
        ),
    ] = None,
    set: Settings = None,
    images: Annotated[
        int,
        typer.Option(
            min=1, metavar="N", help="How many images, or windows of text, are measured; the same each time."
        ),
    ] = 256,
    shown: Annotated[int, typer.Option(min=1, metavar="N", help="How many of them are shown with maps.")] = 8,
    layers: Annotated[
        str | None,
        typer.Option(
            metavar="GLOB",
            help="Whose attention is shown, and (the last) whose tokens: 'encoder.1*'.  [default: some]",
            show_default=False,
        ),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, metavar="N", help="Images that go in at once.")] = 16,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where to compute.")] = "auto",
    seed: Annotated[
        int | None,
        typer.Option(
            min=0, metavar="N", help="Of an untrained network's weights.  [default: 0]", show_default=False
        ),
    ] = None,
) -> None:
    """Look into a network: what each layer does to real images or texts, on one page.

    Coding rates and sparsity layer by layer, with the layers marked that do not do what they are derived to do;
    attention maps, tokens as colours, objects; how well inverses invert; and what the network does not let one see.

    crate-dsl inspect runs/first -o first.html
    crate-dsl inspect specs/crate.crate@fashion --data mnist5k -o untrained.html
    """
    if out.suffix != ".html":
        raise UserError(f"`{out}` does not end with .html", exit_code=2)
    if not out.parent.is_dir():
        raise UserError(f"there is no folder `{out.parent}` for the report")
    if (Path(target) / "run.json").is_file():
        if set or weights is not None or seed is not None:
            raise UserError(
                "a run's parameters and weights are fixed: `--set`, `--weights` and `--seed` go with a spec",
                exit_code=2,
            )
        graph = None
    else:
        if data is None:
            help = f"crate-dsl inspect {target} --data mnist5k -o {out}"
            raise UserError("--data is missing: which images to look at", help, exit_code=2)
        if weights is not None and seed is not None:
            raise UserError("`--weights` and `--seed` both say what the weights are", exit_code=2)
        graph = load_and_warn(target, set)  # a mistake is found before torch is loaded
    from crate_dsl.inspection.report import inspect as look
    from crate_dsl.inspection.subject import run_subject, target_subject
    from crate_dsl.inspection.terminal import progress, table
    from crate_dsl.inspection.written import write
    from crate_dsl.training.sources import required_module
    from crate_dsl.training.train import chosen_device

    for module in ("jinja2", "matplotlib", "PIL", "scipy"):  # before anything is measured
        required_module(module, "inspect")
    on = chosen_device(device)
    if graph is None:
        subject = run_subject(Path(target), data, images, on)
    else:
        assert data is not None
        subject = target_subject(target, graph, weights, data, images, seed or 0, on)
    with progress(subject.count, subject.supply.noun) as advance:
        report = look(subject, shown=shown, batch=batch, chosen=layers, advance=advance)
    written = write(report, out)
    print(table(report))
    print(f"\n{out} is written, {out.stat().st_size / 1e6:.1f} MB, and {written.name} beside it")
