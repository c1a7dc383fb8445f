"""`crate-dsl export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from crate_dsl.cli.options import Lower, Settings, load_and_warn, rewrites
from crate_dsl.language.diagnostics import UserError
from crate_dsl.show.columns import wrapped

if TYPE_CHECKING:
    from crate_dsl.training.real import Reduction

#: As `compiler.lower.precision` has it, which takes seconds to import.
Precision = Literal["float32", "float16", "bfloat16", "int8"]


def epilog() -> str:
    """The rewrites that `--lower` names, a line or two for each."""
    width = max(map(len, rewrites())) + 4
    lines = [wrapped(does, f"  {name}".ljust(width), " " * width) for name, does in rewrites().items()]
    return "\b\nRewrites:\n" + "\n".join(lines)


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
    lower: Lower = None,
    precision: Annotated[
        Precision | None,
        typer.Option(
            help="Of the products with matrices, and of these in the file.  [default: float32]",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            help="The data that fewer bits are judged by.  [default: the run's]",
            show_default=False,
        ),
    ] = None,
    images: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="How many test images or windows judge.  [default: all]",
            show_default=False,
        ),
    ] = None,
    agreement: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            metavar="SHARE",
            help="Of the test images that fewer bits must answer as float32 does.  [default: 0.99]",
            show_default=False,
        ),
    ] = None,
    cache: Annotated[
        bool,
        typer.Option(
            "--cache",
            help="For the next tokens alone, given what is held of those before: `generate` computes each token once.",
        ),
    ] = False,
) -> None:
    """Write a network as ONNX, and prove it.

    The proof: onnxruntime computes what torch computes, also at weights and sizes that the file was not made with. A
    file that fails it is not written (exit code 3); nor is one of fewer bits that too often says what float32 does not.

    crate-dsl export runs/first --out first.onnx
    crate-dsl export runs/first --precision int8 --out first-int8.onnx
    crate-dsl export runs/shakespeare --cache --out shakespeare.onnx
    crate-dsl export specs/crate.crate@tiny --out untrained.onnx
    crate-dsl export c.crate --weights c.safetensors --scaling imagenet -o c.onnx
    """
    if out.suffix != ".onnx":
        raise UserError(f"`{out}` does not end with .onnx", exit_code=2)
    lower = "all" if lower is None else lower
    if (precision or "float32") == "float32" and (data or images or agreement is not None):
        raise UserError(
            "`--data`, `--images` and `--agreement` say how fewer bits are judged: `--precision` asks for them",
            exit_code=2,
        )
    if cache and precision not in (None, "float32"):
        raise UserError(
            f"a network with a cache is exported in float32 alone, not in {precision}", exit_code=2
        )
    if (Path(target) / "run.json").is_file():
        if set or scaling or weights is not None or seed is not None:
            raise UserError(
                "a run's parameters, weights and scaling are fixed: `--set`, `--weights`, `--scaling` and `--seed` "
                "go with a spec",
                exit_code=2,
            )
        from crate_dsl.training.run import export_run

        asked = _reduction(precision, data, images, agreement)
        proof = export_run(target, out, lower=lower, reduction=asked, cache=cache)
    else:
        if weights is not None and seed is not None:
            raise UserError("`--weights` and `--seed` both say what the weights are", exit_code=2)
        if precision not in (None, "float32") and (data is None or scaling is None):
            raise UserError(
                f"{precision} is judged on real images, and a spec has none: `--data` names them, `--scaling` says "
                "what becomes of their pixels",
                exit_code=2,
            )
        graph = load_and_warn(target, set)
        import crate_dsl
        from crate_dsl.training.manifest import asked_scaling
        from crate_dsl.training.real import samples_of
        from crate_dsl.training.supply import open_images

        entry = asked_scaling(scaling, graph) if scaling else None
        said = {"scaling": entry.model_dump_json()} if entry else {}
        asked = _reduction(precision, data, images, agreement)
        samples = None
        if asked.data is not None and entry is not None:
            samples = samples_of(graph, open_images(graph, asked.data, entry.scaling), images)
        net = crate_dsl.build(graph, seed=seed or 0)
        if weights is not None:
            crate_dsl.load_weights(net, weights)
        proof = crate_dsl.export(
            graph,
            net,
            out,
            metadata=said,
            lower=lower,
            precision=asked.precision,
            samples=samples,
            agreement=asked.agreement,
            cache=cache,
        )
    print(proof)
    size = sum(file.stat().st_size for file in (out, out.with_name(out.name + ".data")) if file.is_file())
    print(f"\n{out} is written, {size / 1e6:,.1f} MB")


def _reduction(
    precision: Precision | None, data: str | None, images: int | None, agreement: float | None
) -> Reduction:
    """What is asked for."""
    from crate_dsl.compiler.judge import AGREEMENT
    from crate_dsl.training.real import Reduction

    return Reduction(
        precision or "float32",
        data,
        images,
        AGREEMENT if agreement is None else agreement,
    )
