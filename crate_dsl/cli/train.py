"""`crate-dsl train`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import Annotated, Any, Literal

import typer

from crate_dsl.cli.options import Settings, load_and_warn, settings
from crate_dsl.language.diagnostics import UserError


def _entry(help: str) -> Any:
    """An option that overrides an entry of the `train` block."""
    return typer.Option(help=help, metavar="VALUE", show_default=False)


def train(
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="RUN", help="The run's folder.", show_default=False)
    ],
    target: Annotated[
        str | None, typer.Argument(metavar="TARGET", help="A spec with an objective.", show_default=False)
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            help="digits, mnist5k, idx:FOLDER, folder:FOLDER, npz:FILE; or text:PATH, a file, a folder or a pattern.",
            show_default=False,
        ),
    ] = None,
    vocabulary: Annotated[
        str | None,
        typer.Option(
            metavar="characters|bytes|bpe:SIZE",
            help="What the tokens of text are.  [default: characters]",
            show_default=False,
        ),
    ] = None,
    set: Settings = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, metavar="N", help="Of everything random.  [default: 0]", show_default=False),
    ] = None,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where to train.")] = "auto",
    precision: Annotated[
        Literal["32", "bf16", "16"] | None,
        typer.Option(help="Of the arithmetic; weights stay in 32 bits.  [default: 32]", show_default=False),
    ] = None,
    compile: Annotated[
        bool,
        typer.Option("--compile", help="Compile the objective: a slow first step, faster ones after it."),
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in the folder, from its last whole epoch.")
    ] = False,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Train on at most so many images, or windows of text.",
            show_default=False,
        ),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            metavar="RUN",
            help="Begin with the weights of a run, or of a .safetensors file; of some stages: RUN:front,encoder.",
            show_default=False,
        ),
    ] = None,
    epochs: Annotated[str | None, _entry("How many times each image or window is seen.")] = None,
    batch: Annotated[str | None, _entry("Images or windows in a step.")] = None,
    optimizer: Annotated[str | None, _entry("adamw(lr = …), lion(…) or sgd(…).")] = None,
    lr: Annotated[str | None, _entry("The optimizer's learning rate.")] = None,
    weight_decay: Annotated[str | None, _entry("The optimizer's weight decay.")] = None,
    betas: Annotated[str | None, _entry("adamw's and lion's decay rates: [0.9, 0.99].")] = None,
    eps: Annotated[str | None, _entry("adamw's ε.")] = None,
    momentum: Annotated[str | None, _entry("sgd's momentum.")] = None,
    nesterov: Annotated[str | None, _entry("sgd's momentum looks ahead: true or false.")] = None,
    schedule: Annotated[
        str | None, _entry("Of the learning rate: cosine(warmup = …), linear(…), constant(…).")
    ] = None,
    warmup: Annotated[str | None, _entry("Epochs in which the learning rate rises.")] = None,
    floor: Annotated[str | None, _entry("The share of the learning rate that is left at the end.")] = None,
    clip: Annotated[str | None, _entry("The gradient's largest norm, or none.")] = None,
    patience: Annotated[str | None, _entry("Stop after so many epochs without a better validation.")] = None,
) -> None:
    """Train a spec's network on images or text.

    The recipe is that of its train block; each entry can be overridden. The run's folder holds the spec,
    metrics.csv, the best weights, and all that it needs to go on or to be exported.

    crate-dsl train specs/crate.crate@fashion --data mnist5k --out runs/first
    crate-dsl train specs/crate.crate@fashion --data digits --out runs/2 --lr 1e-3
    crate-dsl train specs/crate.crate@tiny --data folder:mine -o runs/3 --compile
    crate-dsl train s.crate --data mnist5k --start runs/pretext --out runs/probe
    crate-dsl train specs/text.crate:gpt@characters --data text:plays -o runs/gpt
    crate-dsl train --resume --out runs/first
    """
    entries = {
        "epochs": epochs, "batch": batch, "optimizer": optimizer, "lr": lr, "weight_decay": weight_decay,
        "betas": betas, "eps": eps, "momentum": momentum, "nesterov": nesterov, "schedule": schedule,
        "warmup": warmup, "floor": floor, "clip": clip, "patience": patience,
    }  # fmt: skip
    recipe = {name: text for name, text in entries.items() if text is not None}
    if target is None or data is None:
        if not resume:
            missing = "TARGET" if target is None else "--data"
            help = "crate-dsl train TARGET --data SOURCE --out RUN"
            raise UserError(f"{missing} is missing: what to train, and on what", help, exit_code=2)
        if (
            target
            or data
            or set
            or recipe
            or compile
            or (limit, seed, precision, start, vocabulary) != (None,) * 5
        ):
            raise UserError(
                "a run goes on as it began: give --resume and --out alone, or all that was given then",
                exit_code=2,
            )
        from crate_dsl.training.train import resume as go_on

        run = go_on(out, device=device)
    else:
        load_and_warn(target, set)  # a mistake is found before torch is loaded
        from crate_dsl.training.train import train as begin

        run = begin(
            target,
            data,
            out,
            set=settings(set),
            recipe=recipe,
            seed=seed or 0,
            device=device,
            precision=precision or "32",
            compile=compile,
            resume=resume,
            limit=limit,
            vocabulary=vocabulary,
            start=start,
        )
    test = run.test() or {}
    print(_told(test))
    if "bits_per_character" in test:
        print(f"next: crate-dsl generate {out} --prompt {quote(run.texts().word())}")
    else:
        print(f"next: crate-dsl export {out} --out {out.name}.onnx")


def _told(test: Mapping[str, Any]) -> str:
    """What `test.json` says, in a line."""
    noun = "windows" if "windows" in test else "images"
    on, weights = f"{test[noun]:,} test {noun}", f"(weights of epoch {test['epoch']})"
    if "accuracy" in test:
        return f"{test['accuracy']:.2%} of {on} right {weights}"
    parts = [f"loss {test['loss']:.4f} on {on}"] if "loss" in test else [on]
    if "perplexity" in test:
        parts.append(f"perplexity {test['perplexity']:,.2f}")
    if "bits_per_character" in test:
        parts.append(f"{test['bits_per_character']:.3f} bits per character")
    return f"{', '.join(parts)} {weights}"
