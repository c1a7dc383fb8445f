"""`crate-dsl generate`."""

from __future__ import annotations

import json
from math import isfinite
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from crate_dsl.cli.terminal import complain

if TYPE_CHECKING:
    from crate_dsl.generation.source import Source
    from crate_dsl.generation.writing import Written


def generate(
    model: Annotated[
        str,
        typer.Argument(metavar="RUN|FILE.onnx", help="A run on text, or a file that `export` made of one."),
    ],
    prompt: Annotated[
        str, typer.Option(metavar="TEXT", help="What the text begins with.", show_default=False)
    ],
    tokens: Annotated[int, typer.Option(min=1, metavar="N", help="How many tokens to add.")] = 100,
    temperature: Annotated[
        float,
        typer.Option(
            min=0, metavar="T", help="Above 1 more surprising, below 1 less; 0: the likeliest token."
        ),
    ] = 1.0,
    top_k: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="K", help="Draw among the K likeliest.  [default: all]", show_default=False
        ),
    ] = None,
    top_p: Annotated[
        float,
        typer.Option(min=0, max=1, metavar="P", help="Draw among the fewest that hold this share."),
    ] = 1.0,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Of the draws.")] = 0,
    no_cache: Annotated[
        bool,
        typer.Option(
            "--no-cache", help="Compute the whole text for each token; beyond the context, its end."
        ),
    ] = False,
    provider: Annotated[
        Literal["auto", "cpu", "cuda"], typer.Option(help="What computes; cuda never falls back.")
    ] = "auto",
    format: Annotated[
        Literal["text", "json"], typer.Option(help="json: one object, with every token and its margin.")
    ] = "text",
) -> None:
    """Go on with a text.

    A run is computed in torch, an exported file in onnxruntime; the same seed gives the same text in both, unless a
    token was chosen by less than the two differ.

    crate-dsl generate runs/gpt --prompt "ROMEO:"
    crate-dsl generate gpt.onnx --prompt "ROMEO:" --temperature 0.8 --top-k 9
    crate-dsl generate gpt.onnx --prompt "To be" --temperature 0 --format json
    """
    from crate_dsl.generation.sampling import Sampler
    from crate_dsl.generation.source import open_source
    from crate_dsl.generation.writing import write

    sampler = Sampler(temperature, top_k, top_p, seed)
    source = open_source(model, cache=not no_cache, provider=provider)
    coming, found = write(source, prompt, tokens, sampler), []
    if format == "text":
        print(prompt, end="", flush=True)
    began = perf_counter()
    for written in coming:
        found.append(written)
        if format == "text":
            print(written.text, end="", flush=True)
    seconds = perf_counter() - began
    facts = _facts(source, prompt, found, seconds)
    if format == "json":
        print(json.dumps(facts, ensure_ascii=False))
        return
    print(flush=True)
    how = "with a cache" if source.cached else "without a cache"
    complain(
        f"{tokens:,} tokens in {seconds:.2f} s, {tokens / seconds:,.0f} a second: {source.runtime}, {how}"
    )
    context = source.predictor.context
    if len(source.vocabulary.encode(prompt)) + tokens - 1 > context:
        complain(
            f"the network reads {context:,} tokens: the last ones were told from the {context:,} before them alone"
        )
    if facts["undecided"]:
        complain(
            f"{facts['undecided']:,} of {tokens:,} tokens were decided by less than the proved error "
            f"{source.proved_error:.2g}: another runtime may choose otherwise"
        )


def _facts(source: Source, prompt: str, found: list[Written], seconds: float) -> dict[str, Any]:
    """What was written, as JSON takes it: `undecided` tokens have a margin below the file's proved error."""
    error = source.proved_error
    return {
        "prompt": prompt,
        "text": "".join(written.text for written in found),
        "ids": [written.token for written in found],
        # The only token of a vocabulary has no rival.
        "margins": [written.margin if isfinite(written.margin) else None for written in found],
        "proved_error": error,
        "undecided": None if error is None else sum(written.margin < error for written in found),
        "seconds": seconds,
        "tokens_per_second": len(found) / seconds,
        "runtime": source.runtime,
        "cached": source.cached,
    }
