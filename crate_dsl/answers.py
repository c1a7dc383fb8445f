"""What an exported network says of pictures and arrays: how files become inputs, and outputs become words."""

from __future__ import annotations

import json
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import crate_dsl
from crate_dsl.compiler.accepts import spelled
from crate_dsl.compiler.graph import ModelGraph, Node
from crate_dsl.compiler.runtime import Provider, Session, open_session
from crate_dsl.compiler.types import TensorType
from crate_dsl.language.diagnostics import NotScaled, UserError
from crate_dsl.show.columns import columns
from crate_dsl.training.data import Scaling, on_unit_scale
from crate_dsl.training.files import written_aside
from crate_dsl.training.manifest import read_scaling
from crate_dsl.training.sources import npz_arrays, open_data, read_picture, required_module
from crate_dsl.workspace import load_exported

__all__ = [
    "Answer",
    "Provider",
    "answer",
    "as_data",
    "as_text",
    "count_right",
    "open_session",
    "save",
    "squared_error",
]

#: Samples that onnxruntime takes at once.
BATCH = 64
#: What a folder's files must be called to be taken for pictures.
PICTURES = frozenset([".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"])


@dataclass(frozen=True)
class Answer:
    """What the network says of one sample: every output by name, without the batch axis."""

    name: str
    outputs: Mapping[str, NDArray[Any]]
    classes: tuple[str, ...]


def answer(session: Session, paths: Sequence[str], *, resize: bool = False) -> list[Answer]:
    """Run a network on files.

    Args:
        session: an exported file, opened.
        paths: pictures, folders of pictures, `.npy` and `.npz` files.
        resize: bring pictures to the wanted size, scaled and cropped; else another size is an error.

    Raises:
        UserError: a file is not there or not sound, or does not fit the network.
    """
    classes = _classes(session)
    found: list[Answer] = []
    for names, feeds in _batches(session, paths, resize):
        outputs = session(**feeds)
        found += [
            Answer(name, {output: array[at] for output, array in outputs.items()}, classes)
            for at, name in enumerate(names)
        ]
    return found


def count_right(session: Session, data: str) -> tuple[int, int]:
    """How many of a source's test images a classifier gets right, and how many they are.

    Raises:
        UserError: the source has no labels or images of another size, or the network is no classifier.
    """
    output = session.outputs[0]
    picture = _Pictures.of(session)
    test = open_data(data).test
    if test.labels_n is None:
        raise UserError(f"{data} has no labels, so nothing can be right or wrong")
    picture.check(data, test.images_nchw.shape[1:])
    right = 0
    for start in range(0, len(test), BATCH):
        scores_nk = session(**picture.feed(test.images_nchw[start : start + BATCH]))[output]
        if scores_nk.ndim != 2:
            raise UserError(
                f"`{output}` is no score for each class, but has the shape {list(scores_nk.shape[1:])}"
            )
        right += int((scores_nk.argmax(-1) == test.labels_n[start : start + BATCH]).sum())
    return right, len(test)


@dataclass(frozen=True)
class SquaredError:
    """What an `mse`, written `term` in the spec, comes to over images."""

    loss: float
    images: int
    term: str


def squared_error(session: Session, data: str, seed: int = 0) -> SquaredError | None:
    """The `mse` that a network was trained by, on a source's test images: what it copies or completes, and how badly.

    None where the spec has no such term, or has several, or one that needs more than the file's inputs and outputs.
    Inputs that the spec draws, as what is hidden of a picture, are drawn from the seed.

    Raises:
        UserError: images of another size.
    """
    graph = load_exported(session.metadata)
    term = _squared_term(graph)
    if term is None:
        return None
    import torch

    from crate_dsl.compiler.steps.objectives.module import Mse
    from crate_dsl.compiler.trace import trace

    outputs = {value: name for name, value in graph.outputs.items()}
    others = {name: value.node for name, value in term.ports.items() if name != "output"}
    mse, net = Mse(term.operator, term.typing), crate_dsl.build(graph)
    picture, lots = _Pictures.of(session), np.random.default_rng(seed)
    test = open_data(data).test
    picture.check(data, test.images_nchw.shape[1:])
    total = 0.0
    for start in range(0, len(test), BATCH):
        images_nchw = test.images_nchw[start : start + BATCH]
        feeds = picture.feed(images_nchw)
        for name, draw in session.draws.items():
            feeds[name] = draw.sample(session.inputs[name], len(images_nchw), {}, lots)
        said = torch.from_numpy(session(**feeds)[outputs[term.ports["output"]]])
        seen = trace(
            net, *others.values(), **{name: torch.from_numpy(array) for name, array in feeds.items()}
        )
        compared = {name: seen[node] for name, node in others.items()}
        total += len(images_nchw) * float(mse(output=said, **compared))
    return SquaredError(total / len(test), len(test), _written(graph, term))


def _squared_term(graph: ModelGraph) -> Node | None:
    """The only `mse` of a spec, if it compares an output with what follows from the inputs alone."""
    terms = [node for node in graph.nodes if node.word == "mse"]
    if len(terms) != 1 or terms[0].ports["output"] not in graph.outputs.values():
        return None
    (term,) = terms
    others = graph.reached(value for name, value in term.ports.items() if name != "output")
    weighed = {node.name for node in graph.nodes if node.weights or node.slots}
    sized = all(dim.static for entry in graph.export_inputs.values() for dim in entry.type.shape)
    return term if sized and others <= graph.exported - weighed else None


def _written(graph: ModelGraph, term: Node) -> str:
    """An `mse` as the spec writes it, with the spec's names."""
    names = {name: graph.names.get(value, value.node) for name, value in term.ports.items()}
    chosen = [f"{spelled(name)} = {names[name]}" for name in names if name not in ("output", "target")]
    if term.operator.normalize != "none":  # type: ignore[attr-defined]
        chosen.append(f"normalize = {term.operator.normalize}")  # type: ignore[attr-defined]
    return f"mse({', '.join([names['output'], names['target'], *chosen])})"


# ------------------------------------------------------------------ from files to inputs


@dataclass(frozen=True)
class _Pictures:
    """The input that takes pictures, and what becomes of their pixels."""

    name: str
    channels: int
    height: int
    width: int
    scaling: Scaling | None

    @staticmethod
    def of(session: Session) -> _Pictures:
        """Raises `UserError` where the network takes no pictures."""
        if "vocabulary" in session.metadata.extra:
            raise UserError(
                f"`{session.name}` reads text, and no pictures",
                f"crate-dsl generate {session.name} --prompt …",
            )
        text = session.metadata.extra.get("scaling")
        entry = read_scaling(text, session.name) if text is not None else None
        names = (
            [entry.input] if entry else [name for name, type_ in session.inputs.items() if _is_picture(type_)]
        )
        if len(names) != 1 or names[0] not in session.inputs or not _is_picture(session.inputs[names[0]]):
            wanted = ", ".join(f"{name} {type_}" for name, type_ in session.inputs.items())
            raise UserError(
                f"`{session.name}` does not take one picture, but {wanted}",
                "an .npz file with an array for each input",
            )
        channels, height, width = (dim.offset for dim in session.inputs[names[0]].shape)
        scaling = entry.scaling if entry else None
        if scaling is None:
            warnings.warn(
                NotScaled(
                    f"`{session.name}` does not say how pixels become numbers: they go in from 0 to 1 "
                    "(`crate-dsl export … --scaling` says it)"
                ),
                stacklevel=2,
            )
        if scaling is not None and {len(scaling.mean), len(scaling.std)} != {channels}:
            raise UserError(f"`{session.name}` is damaged: its scaling is not that of {channels} channels")
        return _Pictures(names[0], channels, height, width, scaling)

    def check(self, what: str, shape: tuple[int, ...]) -> None:
        """Raises `UserError` where a picture, (C, H, W), has another size than the network's."""
        channels, height, width = shape
        if (height, width) != (self.height, self.width):
            raise UserError(
                f"{what}: {width} x {height} pixels, but `{self.name}` wants {self.width} x {self.height}",
                "--resize scales and crops pictures",
            )
        if channels != self.channels:
            raise UserError(f"{what}: {channels} channels, but `{self.name}` wants {self.channels}")

    def feed(self, images_nchw: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Pixels as the network's input: scaled as in training, or from 0 to 1 where it was never trained."""
        scaled = self.scaling.apply(images_nchw) if self.scaling else on_unit_scale(images_nchw)
        return {self.name: scaled}

    def read(self, path: Path, resize: bool) -> NDArray[np.uint8]:
        """A picture, (C, H, W), in the network's channels."""
        pixels = read_picture(path)
        required_module("PIL", "reading pictures")
        from PIL import Image, ImageOps

        image = Image.fromarray(pixels).convert("L" if self.channels == 1 else "RGB")
        if resize:
            image = ImageOps.fit(image, (self.width, self.height), Image.Resampling.BICUBIC)
        array = np.asarray(image)
        image_chw = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
        self.check(str(path), image_chw.shape)
        return np.ascontiguousarray(image_chw)


def _is_picture(wanted: TensorType) -> bool:
    sizes = [dim.static for dim in wanted.shape]
    return wanted.kind == "float" and len(sizes) == 3 and None not in sizes and sizes[0] in (1, 3)


def _batches(
    session: Session, paths: Sequence[str], resize: bool
) -> Iterator[tuple[list[str], dict[str, NDArray[Any]]]]:
    """Names of samples, and the inputs made of them."""
    files = [file for path in paths for file in _files(Path(path))]
    arrays = [file for file in files if file.suffix.lower() in (".npy", ".npz")]
    pictures = [file for file in files if file not in arrays]
    for file in arrays:
        yield from _array_batches(session, file)
    if not pictures:
        return
    taker = _Pictures.of(session)
    for start in range(0, len(pictures), BATCH):
        some = pictures[start : start + BATCH]
        yield [str(file) for file in some], taker.feed(np.stack([taker.read(file, resize) for file in some]))


def _files(path: Path) -> list[Path]:
    """A file, or the pictures of a folder by name."""
    if not path.exists():
        raise UserError(f"there is no file `{path}`")
    if not path.is_dir():
        return [path]
    pictures = sorted(file for file in path.iterdir() if file.suffix.lower() in PICTURES and file.is_file())
    if not pictures:
        raise UserError(
            f"`{path}` is a folder without pictures", f"pictures end with {', '.join(sorted(PICTURES))}"
        )
    return pictures


def _array_batches(session: Session, file: Path) -> Iterator[tuple[list[str], dict[str, NDArray[Any]]]]:
    given = _arrays(file)
    if file.suffix.lower() == ".npy":
        first = next(
            (name for name in session.inputs if name not in session.draws), next(iter(session.inputs))
        )
        given = {first: given[""]}
    feeds: dict[str, NDArray[Any]] = {}
    for name, array in given.items():
        wanted = session.inputs.get(name)
        if wanted is not None and array.ndim == wanted.rank:
            array = array[None]
        if wanted is not None and array.dtype == np.uint8 and wanted.kind == "float":
            taker = _Pictures.of(session)
            if name != taker.name or array.ndim != 4:
                raise UserError(
                    f"{file}: `{name}` wants {wanted}, and is given {array.dtype} of shape {list(array.shape)}"
                )
            taker.check(f"{file}: `{name}`", array.shape[1:])
            feeds |= taker.feed(array)
        else:
            feeds[name] = array
    count = max((len(array) for array in feeds.values() if array.ndim), default=0)
    for start in range(0, max(count, 1), BATCH):
        some = {name: array[start : start + BATCH] if array.ndim else array for name, array in feeds.items()}
        yield [f"{file}[{at}]" for at in range(start, min(start + BATCH, count))], some


def _arrays(file: Path) -> dict[str, NDArray[Any]]:
    """The arrays of a file by name; that of an `.npy` file has none."""
    if file.suffix.lower() == ".npz":
        return npz_arrays(file)
    try:
        return {"": np.load(file, mmap_mode="r", allow_pickle=False)}
    except (ValueError, EOFError) as problem:
        raise UserError(f"{file} is not a sound .npy file of plain numbers: {problem}") from problem


# ------------------------------------------------------------------ from outputs to words


def _classes(session: Session) -> tuple[str, ...]:
    text = session.metadata.extra.get("classes")
    if text is None:
        return ()
    try:
        names = json.loads(text)
    except ValueError as problem:
        raise UserError(f"`{session.name}` is damaged: its classes cannot be read") from problem
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"`{session.name}` is damaged: its classes are no names")
    return tuple(names)


def ranked(sample: Answer, output: str, top: int) -> list[dict[str, Any]] | None:
    """The classes with the largest scores and their softmax; None where an output is no score for each class.

    It is one where the file names as many classes, or where it is a vector called `logits`.
    """
    scores_k = sample.outputs[output]
    named = bool(sample.classes) and scores_k.shape == (len(sample.classes),)
    if not named and (output != "logits" or scores_k.ndim != 1):
        return None
    weights_k = np.exp(scores_k.astype(np.float64) - scores_k.max())
    shares_k = weights_k / weights_k.sum()
    return [
        {
            "class": int(at),
            "name": sample.classes[at] if named else str(at),
            "score": float(scores_k[at]),
            "probability": float(shares_k[at]),
        }
        for at in np.argsort(-scores_k, kind="stable")[:top]
    ]


def as_data(sample: Answer, top: int) -> dict[str, Any]:
    """A sample as JSON takes it: ranked classes, or what an output's numbers are like."""
    return {
        "input": sample.name,
        "outputs": {
            name: ranked(sample, name, top) or _summary(array) for name, array in sample.outputs.items()
        },
    }


def as_text(sample: Answer, top: int) -> str:
    """A sample as lines."""
    lines = [sample.name]
    for name, array in sample.outputs.items():
        classes = ranked(sample, name, top)
        if classes is None:
            facts = _summary(array)
            shape = ", ".join(map(str, facts.pop("shape")))
            lines.append(
                f"  {name}[{shape}]  " + ", ".join(f"{key} {value:.4g}" for key, value in facts.items())
            )
            continue
        if len(sample.outputs) > 1:
            lines.append(f"  {name}")
        lines += [
            f"  {line}" for line in columns([(f"{c['probability']:.1%}", c["name"]) for c in classes], "rl")
        ]
    return "\n".join(lines)


def _summary(array: NDArray[Any]) -> dict[str, Any]:
    facts: dict[str, Any] = {"shape": list(array.shape)}
    if array.size:
        facts |= {"mean": float(array.mean()), "least": float(array.min()), "largest": float(array.max())}
    return facts


def save(found: Sequence[Answer], path: Path) -> None:
    """Write every output as an array over all samples, and the samples' names as `input.names`, into an `.npz` file.

    Raises:
        UserError: samples differ in length, or the file cannot be written.
    """
    arrays = {"input.names": np.array([sample.name for sample in found])}
    for output in found[0].outputs:
        samples = [sample.outputs[output] for sample in found]
        if len({array.shape for array in samples}) > 1:
            raise UserError(f"`{output}` has another shape for each sample: give them one by one")
        arrays[output] = np.stack(samples)
    # Not by `numpy.savez`, whose arguments have names of their own.
    with written_aside(path) as aside, zipfile.ZipFile(aside, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
