"""`crate-dsl export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from crate_dsl.cli.options import Settings, load_and_warn
from crate_dsl.language.diagnostics import UserError


def export(
    target: Annotated[
        str,
        typer.Argument(metavar="RUN|TARGET", help="A run's folder, or a spec, whose network is untrained."),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE.onnx", help="The file.", show_default=False)
    ],
    set: Settings = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.safetensors",
            help="The network's weights, as `import` writes them.",
            show_default=False,
        ),
    ] = None,
    scaling: Annotated[
        str | None,
        typer.Option(
            metavar="MEAN/STD",
            help="What becomes of a spec's pixels, from 0 to 1: `imagenet`, or each channel's mean and spread.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            min=0, metavar="N", help="Of an untrained network's weights.  [default: 0]", show_default=False
        ),
    ] = None,
) -> None:
    """Write a network as ONNX, and prove it.

    The proof: onnxruntime computes what torch computes, also at weights and sizes that the file was not made with. A
    file that fails it is not written (exit code 3).

    crate-dsl export runs/first --out first.onnx
    crate-dsl export specs/crate.crate@tiny --out untrained.onnx
    crate-dsl export c.crate --weights c.safetensors --scaling imagenet -o c.onnx
    """
    if out.suffix != ".onnx":
        raise UserError(f"`{out}` does not end with .onnx", exit_code=2)
    if (Path(target) / "run.json").is_file():
        if set or scaling or weights is not None or seed is not None:
            raise UserError(
                "a run's parameters, weights and scaling are fixed: `--set`, `--weights`, `--scaling` and `--seed` "
                "go with a spec",
                exit_code=2,
            )
        from crate_dsl.training.run import export_run

        proof = export_run(target, out)
    else:
        if weights is not None and seed is not None:
            raise UserError("`--weights` and `--seed` both say what the weights are", exit_code=2)
        graph = load_and_warn(target, set)
        import crate_dsl
        from crate_dsl.training.manifest import asked_scaling

        said = {"scaling": asked_scaling(scaling, graph).model_dump_json()} if scaling else {}
        net = crate_dsl.build(graph, seed=seed or 0)
        if weights is not None:
            crate_dsl.load_weights(net, weights)
        proof = crate_dsl.export(graph, net, out, metadata=said)
    print(proof)
    size = sum(file.stat().st_size for file in (out, out.with_name(out.name + ".data")) if file.is_file())
    print(f"\n{out} is written, {size / 1e6:,.1f} MB")
