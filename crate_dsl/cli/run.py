"""`crate-dsl run`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from crate_dsl.language.diagnostics import UserError

if TYPE_CHECKING:
    from crate_dsl.compiler.runtime import Session


def run(
    model: Annotated[str, typer.Argument(metavar="FILE.onnx", help="A file that `export` wrote.")],
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="INPUT", help="Pictures, folders of pictures, or .npy and .npz files.", show_default=False
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            help="Count right answers on a source's test images, or tell the error of what is completed, or of text.",
            show_default=False,
        ),
    ] = None,
    provider: Annotated[
        Literal["auto", "cpu", "cuda"], typer.Option(help="What runs it; cuda never falls back.")
    ] = "auto",
    top: Annotated[int, typer.Option(min=1, metavar="N", help="How many classes to print.")] = 5,
    resize: Annotated[
        bool, typer.Option("--resize", help="Bring pictures to the wanted size: scaled, then cropped.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Of the inputs that the spec draws.")] = 0,
    format: Annotated[
        Literal["text", "json"], typer.Option(help="json: an object for each sample.")
    ] = "text",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="FILE.npz", help="Write every output as an array.", show_default=False
        ),
    ] = None,
) -> None:
    """Run an exported file on pictures or arrays.

    Pictures become numbers as they did in training: the file says how. Arrays of whole numbers from 0 to 255
    (uint8) are pictures too; other arrays are given to the network as they are. An .npz file has an array for each
    input.

    crate-dsl run first.onnx picture.png
    crate-dsl run first.onnx pictures/ --top 1 --format json
    crate-dsl run first.onnx --data mnist5k
    """
    if bool(inputs) == (data is not None):
        raise UserError("give pictures or arrays, or a source of images by --data", exit_code=2)
    if out is not None and out.suffix != ".npz":
        raise UserError(f"`{out}` does not end with .npz", exit_code=2)
    from crate_dsl import answers

    session = answers.open_session(model, provider, seed)
    if data is not None:
        measure = _on_test_text if data.partition(":")[0] == "text" else _on_test_images
        shown, facts = measure(session, data, seed)
        print(json.dumps(facts, ensure_ascii=False) if format == "json" else shown)
        return
    found = answers.answer(session, inputs or [], resize=resize)
    if out is not None:
        answers.save(found, out)
    if format == "json":
        print(json.dumps([answers.as_data(sample, top) for sample in found], ensure_ascii=False, indent=1))
    else:
        print("\n\n".join(answers.as_text(sample, top) for sample in found))


def _on_test_images(session: Session, data: str, seed: int) -> tuple[str, dict[str, Any]]:
    """How a network does on a source's test images, as a line and as JSON takes it."""
    from crate_dsl import answers

    error = answers.squared_error(session, data, seed)
    if error is not None:
        shown = f"loss {error.loss:.4f} on {error.images:,} test images of {data}: {error.term}"
        return shown, {"data": data, "images": error.images, "loss": error.loss, "objective": error.term}
    right, images = answers.count_right(session, data)
    shown = f"{right / images:.2%} of {images:,} test images of {data} right"
    return shown, {"data": data, "images": images, "right": right, "accuracy": right / images}


def _on_test_text(session: Session, data: str, _: int) -> tuple[str, dict[str, Any]]:
    """How likely a network takes the test part of a text to be, as a line and as JSON takes it."""
    from crate_dsl.perplexity import told

    found = told(session, data)
    facts = {
        "data": data,
        "windows": found.windows,
        "loss": found.nats,
        "perplexity": found.likelihood.perplexity,
        "bits_per_character": found.likelihood.bits_per_character,
    }
    shown = (
        f"loss {found.nats:.4f} on {found.windows:,} test windows of {data}: perplexity "
        f"{found.likelihood.perplexity:,.2f}, {found.likelihood.bits_per_character:.3f} bits per character"
    )
    return shown, facts
