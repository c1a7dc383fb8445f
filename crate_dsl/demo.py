"""`crate-dsl demo`: the whole way once: spec, trained network, proved ONNX file, what it sees and what it does."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from time import perf_counter

import numpy as np
from rich.console import Console
from rich.padding import Padding
from rich.rule import Rule
from rich.text import Text

from crate_dsl.language.diagnostics import UserError

#: The spec's recipe is made for a set of 60,000 images. With 3,600, more epochs and smaller steps take as long as one.
RECIPE: Mapping[str, str] = {"epochs": "16", "batch": "64"}
#: Images that onnxruntime takes at once.
BATCH = 250
#: Images whose layers are measured, and of them those with maps.
MEASURED, MAPPED = 128, 8
#: How many right and wrong pictures the terminal shows.
RIGHT_SHOWN, WRONG_SHOWN = 4, 8


def demo(
    out: str | Path = "runs/demo",
    *,
    target: str | None = None,
    data: str = "mnist5k",
    recipe: Mapping[str, str] = RECIPE,
    device: str = "auto",
    console: Console | None = None,
) -> Path:
    """Train a small CRATE on handwritten digits, export it, prove the file, and show what it gets right and wrong.

    A demo that was cut off goes on where it was; one that is finished only shows its result again.

    Args:
        out: the run's folder.
        target: the spec; the shipped `crate.crate@fashion` where none is given.
        data: a source of images with labels.
        recipe: what differs from the spec's `train` block.
        device: auto, cpu or cuda.
        console: where the story is told.

    Returns:
        The page with all the pictures.

    Raises:
        UserError: the folder holds something else, or the `train` extra is not installed.
    """
    from crate_dsl.training.sources import required_module

    for module in ("lightning", "jinja2"):
        required_module(module, "the demo")
    return _Demo(
        Path(out), target or shipped("crate.crate@fashion"), data, recipe, device, console or Console()
    ).tell()


def shipped(target: str) -> str:
    """A shipped spec as a target: from `specs/` where the checkout is the working folder, else from the package."""
    if (Path("specs") / target.partition("@")[0]).is_file():
        return f"specs/{target}"
    return str(resources.files("crate_dsl.specs").joinpath(target))


class _Demo:
    """The story, a method for each chapter."""

    def __init__(
        self, out: Path, target: str, data: str, recipe: Mapping[str, str], device: str, console: Console
    ) -> None:
        self.out, self.target, self.data, self.recipe, self.device = out, target, data, recipe, device
        self.console = console
        self.file = out / "crate.onnx"
        self.page = out / "demo.html"
        self.report = out / "inside.html"

    def tell(self) -> Path:
        self.spec()
        self.training()
        self.export()
        self.looking()
        self.inside()
        return self.page

    def say(self, text: str) -> None:
        self.console.print(Text(" ".join(text.split())))

    def chapter(self, title: str, *command: str) -> None:
        """A heading, and the command that does by hand what follows."""
        self.console.print()
        self.console.print(Rule(Text(title, "bold"), align="left", characters="─"))
        line = shlex.join(command)
        if len(line) > 76:  # one option a line, so that it can be copied from 80 columns
            line = shlex.join(command[:3]) + "".join(
                f" \\\n    {shlex.join(command[at : at + 2])}" for at in range(3, len(command), 2)
            )
        self.console.print(Padding(Text(line, "cyan"), (0, 0, 1, 2)))

    def spec(self) -> None:
        import crate_dsl

        self.chapter("1  The spec", "crate-dsl", "show", self.target)
        graph = crate_dsl.load(self.target)
        self.say(f"""{self.target} describes a CRATE, a white-box transformer: each of its layers first compresses
            the image's tokens against learned subspaces, then sparsifies them in a learned dictionary. At these sizes
            it has {graph.parameters:,} parameters and takes {graph.flops / 1e6:.1f} million operations an image; both
            are known from the text, before any tensor exists.""")

    def training(self) -> None:
        from crate_dsl.training.run import MANIFEST
        from crate_dsl.training.sources import open_data
        from crate_dsl.training.train import train

        options = [word for name, value in self.recipe.items() for word in (f"--{name}", value)]
        self.chapter(
            "2  Training",
            "crate-dsl",
            "train",
            self.target,
            "--data",
            self.data,
            "--out",
            str(self.out),
            *options,
        )
        images = open_data(self.data)
        parts = (len(images.train), len(images.validation), len(images.test))
        self.say(f"""{self.data} holds {sum(parts):,} images, {images.shape[2]} x {images.shape[1]} pixels, of
            {len(images.classes)} classes. The network is trained on {parts[0]:,} of them; {parts[1]:,} say after each
            epoch whether it became better (*: the best so far, its weights are kept); {parts[2]:,} are put away for
            the test.""")
        self.console.print()
        began = perf_counter()
        known = (self.out / MANIFEST).is_file()
        run = train(
            self.target,
            self.data,
            self.out,
            recipe=self.recipe,
            device=self.device,
            resume=known,
            console=self.console,
        )
        test = run.test() or {}
        took = f"{perf_counter() - began:.0f} s" if not known else "done before"
        self.console.print()
        self.say(f"""Trained ({took}). On the {test["images"]:,} test images, which it has not seen:
            {test["accuracy"]:.1%} right.""")

    def export(self) -> None:
        from crate_dsl.training.run import export_run

        self.chapter("3  Export and proof", "crate-dsl", "export", str(self.out), "--out", str(self.file))
        self.say("""The network becomes an ONNX file, written directly from the spec's graph. Before the file gets its
            name, onnxruntime must compute what torch computes: with the trained weights and with perturbed ones, at
            batch sizes and input sizes that it was not made with.""")
        self.console.print()
        proof = export_run(self.out, self.file)
        self.console.print(proof.table())
        self.say(
            f"Proved: the largest relative difference is {proof.worst:.1e}. {self.file} stands by itself: it "
            "carries the spec's text, the scaling of its pixels and the names of its classes."
        )

    def looking(self) -> None:
        import crate_dsl
        from crate_dsl.training.gallery import Gallery, pictures, spread, table, write_page
        from crate_dsl.training.manifest import read_scaling
        from crate_dsl.training.sources import open_data

        self.chapter("4  What it sees", "crate-dsl", "run", str(self.file), "--data", self.data)
        self.say("""Now onnxruntime alone: the file is opened and looks at the test images. Pixels are scaled as the
            file says.""")
        session = crate_dsl.open_session(self.file, provider="cpu")
        extra, output = session.metadata.extra, session.outputs[0]
        scaling = read_scaling(extra["scaling"], str(self.file))
        test = open_data(self.data).test
        if test.labels_n is None:
            raise UserError(f"{self.data} has no labels, so nothing can be right or wrong")
        scores_nk = np.concatenate(
            [
                session(**{scaling.input: scaling.scaling.apply(test.images_nchw[start : start + BATCH])})[
                    output
                ]
                for start in range(0, len(test), BATCH)
            ]
        )
        gallery = Gallery.of(test.images_nchw, test.labels_n, scores_nk, tuple(json.loads(extra["classes"])))
        self.console.print(table(gallery))
        for heading, shown in (
            ("Right", spread(gallery.right, RIGHT_SHOWN)),
            ("Wrong, the surest first", gallery.wrong[:WRONG_SHOWN]),
        ):
            if shown:
                self.console.print(Text(heading, "bold"))
                self.console.print(pictures(gallery, shown, self.console))
        facts = [
            ("spec", self.target),
            ("images", self.data),
            ("recipe", ", ".join(f"{name} = {value}" for name, value in self.recipe.items())),
            ("file", str(self.file)),
        ]
        write_page(gallery, self.page, title="What a small CRATE sees", facts=facts)
        self.say(
            f"{gallery.accuracy:.1%} of {len(gallery.seen):,} right. All its mistakes, with pictures: {self.page}"
        )

    def inside(self) -> None:
        from crate_dsl.inspection.report import inspect
        from crate_dsl.inspection.subject import run_subject
        from crate_dsl.inspection.terminal import table
        from crate_dsl.inspection.written import write
        from crate_dsl.training.train import chosen_device

        self.chapter("5  What it does inside", "crate-dsl", "inspect", str(self.out), "-o", str(self.report))
        self.say("""The box is white: each layer is a step on an objective, so it can be measured whether the layer does
            what it is derived to do. ▲ marks what does not.""")
        self.console.print()
        subject = run_subject(self.out, self.data, MEASURED, chosen_device(self.device))
        report = inspect(subject, shown=MAPPED, batch=BATCH)
        write(report, self.report)
        self.console.print(Text(table(report)))
        self.console.print()
        self.say(f"With attention maps and tokens as colours: {self.report}")
