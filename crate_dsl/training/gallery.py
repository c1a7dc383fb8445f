"""Pictures that a network looked at, with what they are and what it said: for a terminal, and as a page."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.style import Style
from rich.table import Table
from rich.text import Text

from crate_dsl.training.data import Images, Labels, on_unit_scale
from crate_dsl.training.files import write_text
from crate_dsl.training.sources import required_module

#: Shades of a terminal without colours, from black to white.
SHADES = " ░▒▓█"
#: Pictures of a page that the network got right; those that it got wrong are all there.
MOST_RIGHT = 120
#: The largest width of a picture in a terminal, in characters: four of them stand side by side in 80.
WIDEST = 16


@dataclass(frozen=True)
class Seen:
    """One picture, (C, H, W), its class, what was said, and with what probability."""

    image_chw: Images
    label: int
    said: int
    probability: float

    @property
    def right(self) -> bool:
        return self.label == self.said


@dataclass(frozen=True)
class Gallery:
    """All pictures, and the classes' names."""

    seen: tuple[Seen, ...]
    classes: tuple[str, ...]

    @staticmethod
    def of(
        images_nchw: Images, labels_n: Labels, scores_nk: NDArray[Any], classes: tuple[str, ...]
    ) -> Gallery:
        """From a network's scores: probabilities are their softmax."""
        scores_nk = scores_nk.astype(np.float64)
        weights_nk = np.exp(scores_nk - scores_nk.max(axis=1, keepdims=True))
        probabilities_nk = weights_nk / weights_nk.sum(axis=1, keepdims=True)
        said_n = scores_nk.argmax(axis=1)
        return Gallery(
            tuple(
                Seen(image, int(label), int(said), float(probabilities[said]))
                for image, label, said, probabilities in zip(
                    images_nchw, labels_n, said_n, probabilities_nk, strict=True
                )
            ),
            classes,
        )

    @property
    def right(self) -> tuple[Seen, ...]:
        return tuple(seen for seen in self.seen if seen.right)

    @property
    def wrong(self) -> tuple[Seen, ...]:
        """The mistakes, the surest first."""
        return tuple(
            sorted((seen for seen in self.seen if not seen.right), key=lambda seen: -seen.probability)
        )

    @property
    def accuracy(self) -> float:
        return len(self.right) / len(self.seen)

    def rows(self) -> list[tuple[str, int, int, str]]:
        """For each class: its name, how many were right, how many wrong, and what those were taken for."""
        rows = []
        for label, name in enumerate(self.classes):
            mistakes = Counter(seen.said for seen in self.seen if seen.label == label and not seen.right)
            right = sum(seen.right for seen in self.seen if seen.label == label)
            often = ", ".join(f"{self.classes[said]} ({count})" for said, count in mistakes.most_common(3))
            rows.append((name, right, mistakes.total(), often))
        return rows


def spread(seen: Sequence[Seen], count: int) -> Sequence[Seen]:
    """At most so many of them, evenly from the whole: test images are often sorted by class."""
    return [seen[at * len(seen) // count] for at in range(count)] if len(seen) > count else seen


# ------------------------------------------------------------------ the terminal


def table(gallery: Gallery) -> Table:
    """Right and wrong by class, for 80 columns."""
    from rich.box import SIMPLE_HEAD

    made = Table(box=SIMPLE_HEAD, pad_edge=False)
    made.add_column("class", overflow="fold")
    for head in ("right", "wrong", "accuracy"):
        made.add_column(head, justify="right", no_wrap=True)
    made.add_column("taken for", overflow="fold")
    for name, right, wrong, often in gallery.rows():
        made.add_row(name, str(right), str(wrong), f"{right / max(1, right + wrong):.1%}", often)
    return made


def pictures(gallery: Gallery, seen: Sequence[Seen], console: Console) -> RenderableType:
    """Pictures side by side, each with what it is and what was said."""
    coloured = console.color_system is not None
    return Columns(
        [Group(drawn(one.image_chw, coloured), Text(_caption(gallery, one, "\n")), Text()) for one in seen],
        padding=(0, 3),
    )


def _caption(gallery: Gallery, seen: Seen, between: str) -> str:
    verdict = "right" if seen.right else f"is {gallery.classes[seen.label]}"
    return f"said {gallery.classes[seen.said]}, {seen.probability:.0%}{between}{verdict}"


def drawn(image_chw: Images, coloured: bool) -> Text:
    """A picture in characters that are two pixels high: half blocks in two colours, or shades without colours.

    Pictures wider than `WIDEST` are shrunk by a whole number.
    """
    unit_chw = on_unit_scale(image_chw)
    channels, height, width = unit_chw.shape
    shrink = -(-width // WIDEST)
    height, width = height - height % (2 * shrink), width - width % shrink
    blocks = unit_chw[:, :height, :width].reshape(channels, height // shrink, shrink, width // shrink, shrink)
    pixels_hwc = np.broadcast_to(blocks.mean(axis=(2, 4)), (3, height // shrink, width // shrink)).transpose(
        1, 2, 0
    )
    text = Text(no_wrap=True)
    for row in range(0, len(pixels_hwc), 2):
        upper_wc, lower_wc = pixels_hwc[row], pixels_hwc[row + 1]
        for upper, lower in zip(upper_wc, lower_wc, strict=True):
            if coloured:
                text.append("▀", Style(color=_colour(upper), bgcolor=_colour(lower)))
            else:
                text.append(SHADES[round(float((upper + lower).mean()) / 2 * (len(SHADES) - 1))])
        text.append("\n")
    text.right_crop(1)
    return text


def _colour(pixel: NDArray[np.float32]) -> str:
    return "rgb({},{},{})".format(*(round(float(value) * 255) for value in pixel))


# ------------------------------------------------------------------ the page


def write_page(gallery: Gallery, path: Path, *, title: str, facts: Sequence[tuple[str, str]]) -> None:
    """One HTML file with everything in it: the facts, the table, every mistake, and some of the others.

    Raises:
        UserError: the file cannot be written, or the `train` extra is not installed.
    """
    jinja2 = required_module("jinja2", "the page")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("crate_dsl.training", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    cards = {
        heading: [
            {
                "picture": data_uri(seen.image_chw),
                "said": gallery.classes[seen.said],
                "label": gallery.classes[seen.label],
                "right": seen.right,
                "probability": f"{seen.probability:.0%}",
            }
            for seen in group
        ]
        for heading, group in (
            (f"Wrong: all {len(gallery.wrong)}, the surest first", gallery.wrong),
            (
                f"Right: {min(MOST_RIGHT, len(gallery.right))} of {len(gallery.right)}",
                spread(gallery.right, MOST_RIGHT),
            ),
        )
    }
    page = environment.get_template("gallery.html.j2").render(
        title=title, facts=facts, rows=gallery.rows(), accuracy=f"{gallery.accuracy:.1%}", cards=cards
    )
    write_text(path, page)


def data_uri(image_chw: Images) -> str:
    """A picture as a PNG inside the page."""
    required_module("PIL", "the page")
    from PIL import Image

    pixels_hwc = np.round(on_unit_scale(image_chw) * 255).astype(np.uint8).transpose(1, 2, 0)
    file = io.BytesIO()
    Image.fromarray(pixels_hwc[..., 0] if pixels_hwc.shape[2] == 1 else pixels_hwc).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")
