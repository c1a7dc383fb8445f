"""From a spec and data to a run's folder."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import torch
from rich.console import Console

import crate_dsl
from crate_dsl.compiler.graph import ModelGraph
from crate_dsl.compiler.weights import load_weights
from crate_dsl.language.diagnostics import UserError
from crate_dsl.training.batches import Batches, Scores, measure
from crate_dsl.training.compiled import check_compiler, compile_
from crate_dsl.training.files import write_json, write_text
from crate_dsl.training.journal import Journal
from crate_dsl.training.manifest import Manifest, Precision, differences, manifest_of, same_texts, spec_texts
from crate_dsl.training.overrides import recipe_of
from crate_dsl.training.plain import load_plain
from crate_dsl.training.progress import Display
from crate_dsl.training.run import (
    LAST,
    MANIFEST,
    METRICS,
    START,
    TEST,
    WEIGHTS,
    Run,
    open_run,
    save_weights,
)
from crate_dsl.training.sources import required_module
from crate_dsl.training.start import Started, start_of, started_from
from crate_dsl.training.supply import Images, Supply, asked_supply, is_text

if TYPE_CHECKING:
    from crate_dsl.training.loop import Training

#: The exit code of a program that was interrupted from the keyboard.
INTERRUPTED = 130


def train(
    target: str,
    data: str,
    out: str | Path,
    *,
    set: Mapping[str, Any] | None = None,
    recipe: Mapping[str, object] | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: str = "32",
    compile: bool = False,
    resume: bool = False,
    limit: int | None = None,
    vocabulary: str | None = None,
    start: str | Path | None = None,
    progress: bool = True,
    console: Console | None = None,
) -> Run:
    """Train a spec's network on images or text, into the folder `out`.

    Args:
        target: `file.crate`, `file.crate@variant`, `file.crate:model@variant`.
        data: a source of images, as `open_data` takes it; or `text:PATH`, as `open_corpus` takes it.
        out: the run's folder; it must not hold anything yet, unless the run is resumed.
        set: the spec's parameters, overridden.
        recipe: the `train` block's entries, overridden, by name (`recipe.entries`), as text or values.
        seed: of initial weights, of the order of samples, of everything random.
        device: auto, cpu or cuda.
        precision: 32; or bf16 or 16, which keep the weights in 32 bits.
        compile: compile the objective by torch.compile: minutes for the first step, and less for all others.
        resume: go on from the last whole epoch. On a CPU the result is, bit for bit, that of a run never cut off.
        limit: train on at most this many images, of all classes in proportion; or windows of text, the first.
        vocabulary: of text: `characters` (where it is not said), `bytes` or `bpe:SIZE`.
        start: weights to begin with, in place of those that the `train` block says: a run's folder or a .safetensors
            file, perhaps with the stages that are taken: `runs/first:front,encoder`. Matched by path and shape.
        progress: show a bar (on a terminal) and a line for each epoch.
        console: where; standard error, if none is given.

    Raises:
        SpecError: the spec means nothing yet.
        UserError: what was asked for cannot be done, or the loss is no number any more.

    Warns:
        Remark: what the spec freezes has no start, or begins with what cannot do what is asked of it.
    """
    out = Path(out)
    graph = crate_dsl.load(target, set=set)
    if graph.objective is None:
        help = "objective cross_entropy(logits, label)"
        raise UserError(f"`{graph.model}` has no objective, so there is nothing to train", help)
    in_force = recipe_of(graph.train, recipe)
    _check_request(seed, precision, limit)
    on = chosen_device(device)
    if not resume:
        _check_free(out)
    if compile:
        check_compiler(on)
    begins_with = start_of(graph, start)
    started = None if resume else started_from(begins_with, graph, seed)
    shown = _shown(progress, console)
    run = open_run(out) if resume else None
    if run is not None and is_text(data) != (run.manifest.vocabulary is not None):
        raise UserError(f"{out} is another run: data was {run.manifest.data}, now it is {data}")
    if run is not None and is_text(data):
        supply: Supply = run.asked_again(data, vocabulary)
    else:
        known = started.start.run.known() if started is not None and started.start.run is not None else None
        supply = asked_supply(
            graph, data, out, vocabulary=vocabulary, limit=limit, known=known, console=shown
        )
    if in_force.patience is not None and graph.averages:
        raise UserError(
            "`patience` waits for a smaller loss, but against a slow copy no epoch's loss is better than another's"
        )
    if in_force.patience is not None and not len(supply.held("validation", torch.device("cpu"))):
        raise UserError(
            f"`patience` needs validation {supply.noun}, and {data} is too small to hold some back"
        )
    wanted = manifest_of(
        graph,
        supply,
        in_force,
        limit=limit,
        seed=seed,
        precision=cast(Precision, precision),
        compiled=compile,
        start=begins_with,
    )
    if run is not None:
        _check_same(run, wanted, spec_texts(graph))
    else:
        run = _begun(out, wanted, spec_texts(graph), started)
        if started is not None and shown is not None:
            started.tell(shown, run.manifest)
    del started  # a whole network
    return _continue(run, graph, supply, on, shown)


def resume(
    out: str | Path, *, device: str = "auto", progress: bool = True, console: Console | None = None
) -> Run:
    """Go on with a run from its folder alone: `train(…, resume=True)` without saying again what was asked for.

    Raises:
        UserError: there is no run, it is damaged, or its images are not those that they were.
    """
    run = open_run(out)
    graph, supply = run.graph(), run.supply()
    if supply.fingerprint != run.manifest.fingerprint:
        raise UserError(f"the images or labels of {supply.text} are others than when {out} began")
    on = chosen_device(device)
    if run.manifest.compiled:
        check_compiler(on)
    return _continue(run, graph, supply, on, _shown(progress, console))


def chosen_device(device: str) -> torch.device:
    """auto, cpu or cuda. Raises `UserError` where there is no such device."""
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"there is no device `{device}`", "devices: auto, cpu, cuda")
    usable = torch.cuda.is_available()
    if device == "cuda" and not usable:
        raise UserError("cuda was asked for, but torch finds no GPU that it can use", "--device cpu")
    return torch.device("cuda" if device != "cpu" and usable else "cpu")


def _shown(progress: bool, console: Console | None) -> Console | None:
    return (console or Console(stderr=True)) if progress else None


def _check_request(seed: int, precision: str, limit: int | None) -> None:
    if not 0 <= seed < 2**63:
        raise UserError(f"a seed is a whole number from 0 to 2^63 - 1, but is {seed}")
    if precision not in get_args(Precision):
        raise UserError(
            f"there is no precision `{precision}`", f"precisions: {', '.join(get_args(Precision))}"
        )
    if limit is not None and limit < 1:
        raise UserError(f"at least one image or window is needed to train, but the limit is {limit}")


# ------------------------------------------------------------------ the folder


def _check_free(out: Path) -> None:
    if out.is_dir() and any(out.iterdir()):
        known = (out / MANIFEST).is_file()
        help = "go on with that run: --resume; or another folder: --out" if known else "another folder: --out"
        raise UserError(
            f"{out} {'holds a run' if known else 'is not empty'}, and nothing is overwritten", help
        )
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file, but a run is a folder")


def _begun(out: Path, manifest: Manifest, texts: Mapping[str, str], started: Started | None) -> Run:
    """Make a run's folder; `run.json` comes last, so that a folder that has it is whole."""
    try:
        for name in texts:
            (out / "spec" / name).parent.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise UserError(f"{out} cannot be made: {problem.strerror or problem}") from problem
    for name, text in texts.items():
        write_text(out / "spec" / name, text)
    if started is not None:
        save_weights(started.net, out / START)
        manifest = started.recorded(manifest)
    manifest.write(out / MANIFEST)
    return Run(out, manifest)


def _check_same(run: Run, wanted: Manifest, texts: Mapping[str, str]) -> None:
    """A run that is gone on with must be the one that is asked for."""
    found = differences(run.manifest, wanted)
    if not same_texts(run.folder / "spec", texts):
        found.insert(0, f"{wanted.spec} was edited")
    if found:
        raise UserError(
            f"{run.folder} is another run: {'; '.join(found)}",
            "ask for what was asked for then, or begin another run: --out",
        )


# ------------------------------------------------------------------ the training


def _continue(
    run: Run, graph: ModelGraph, supply: Supply, device: torch.device, console: Console | None
) -> Run:
    """Train what is left to be trained, then measure what came of it on the test part."""
    required_module("lightning", "training")
    manifest = run.manifest
    recipe = manifest.recipe_in_force()
    if isinstance(supply, Images):  # pixels are scaled as where the weights began
        supply = supply.scaled(manifest.pixels())
    if manifest.precision == "16" and device.type == "cpu":
        raise UserError("precision 16 needs a GPU", "--precision bf16, or 32")
    net = crate_dsl.build(graph, seed=manifest.seed).to(device)
    if manifest.start is not None:
        load_weights(net, run.folder / START)
    objective = crate_dsl.Objective(net)
    scored = crate_dsl.Objective(net)  # never compiled: its batches are of other sizes, and few
    validation = supply.held("validation", device)
    batches = Batches(supply.held("train", device), recipe.batch, manifest.seed)

    def measured() -> Scores | None:
        return measure(graph, net, scored, validation) if len(validation) else None

    def keep(training: Training, best: bool) -> None:
        # The checkpoint comes after the weights: a run cut off in between does this epoch again, to the same end.
        if best:
            save_weights(net, run.folder / WEIGHTS)
        training.trainer.save_checkpoint(run.folder / LAST)
        write_text(run.folder / METRICS, training.journal.csv())

    with Display(console, recipe.epochs, len(batches)) as display:
        journal = _journal(run.folder / LAST)
        if not journal.finished:
            from crate_dsl.training.loop import Training

            for line in supply.told():
                display.say(line)
            if manifest.compiled:
                compile_(objective)
                display.say("the first step is compiled, which takes a while")
            training = Training(
                objective, recipe, batches, display, measured, keep, fused=manifest.precision != "16"
            )
            _fit(training, run.folder / LAST, manifest.precision)
            journal = training.journal
            net.to(device)  # Lightning leaves it on the CPU
    if not (run.folder / TEST).is_file():
        best = journal.best
        assert best is not None
        load_weights(net, run.folder / WEIGHTS)
        scores = measure(graph, net, scored, supply.held("test", device))
        found = {
            supply.noun: scores.samples,
            "accuracy": scores.accuracy,
            "loss": scores.loss,
            "perplexity": scores.likelihood and scores.likelihood.perplexity,
            "bits_per_character": scores.likelihood and scores.likelihood.bits_per_character,
            "epoch": best.epoch,
        }
        write_json(run.folder / TEST, {name: value for name, value in found.items() if value is not None})
    return run


def _journal(last: Path) -> Journal:
    """What was done before, according to the last checkpoint. Raises `UserError` where it is damaged."""
    if not last.is_file():
        return Journal()
    checkpoint = load_plain(last)
    try:
        return Journal.of(checkpoint["journal"])
    except (KeyError, TypeError) as problem:
        raise UserError(f"{last} is no checkpoint of a run") from problem


def _fit(training: Training, last: Path, precision: Precision) -> None:
    """Let Lightning run the epochs that are left."""
    from lightning.pytorch import Trainer

    from crate_dsl.training.loop import PlainCheckpoints, quiet

    names: dict[Precision, Literal["32-true", "bf16-mixed", "16-mixed"]] = {
        "32": "32-true",
        "bf16": "bf16-mixed",
        "16": "16-mixed",
    }
    device = next(training.parameters()).device
    handler = signal.getsignal(signal.SIGINT)
    with quiet(), torch.random.fork_rng([device] if device.type == "cuda" else []):
        trainer = Trainer(
            accelerator="gpu" if device.type == "cuda" else "cpu",
            devices=1,
            precision=names[precision],
            max_epochs=training.recipe.epochs,
            gradient_clip_val=training.recipe.clip,
            limit_val_batches=0,
            num_sanity_val_steps=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            plugins=[PlainCheckpoints()],
            default_root_dir=last.parent,
        )
        try:
            trainer.fit(
                training, training.batches, ckpt_path=last if last.is_file() else None, weights_only=True
            )
        except SystemExit as exit:
            # Lightning's answer to Ctrl-C, after which it leaves the signal ignored.
            if not trainer.interrupted:
                raise
            signal.signal(signal.SIGINT, handler)
            kept = (
                f"epoch {len(training.journal.rows)} is kept"
                if training.journal.rows
                else "no epoch was completed"
            )
            raise UserError(
                f"interrupted; {kept}", "go on with it: --resume", exit_code=INTERRUPTED
            ) from exit


__all__ = ["chosen_device", "resume", "train"]
