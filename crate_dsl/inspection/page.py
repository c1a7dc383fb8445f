"""An inspection as one HTML file with everything in it. What it shows are the numbers of the JSON."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crate_dsl.inspection.charts import number
from crate_dsl.inspection.figures import figures
from crate_dsl.inspection.measures import EPS, PUBLISHED_EPS
from crate_dsl.inspection.report import Report
from crate_dsl.inspection.summary import missing, sentences, tiles
from crate_dsl.inspection.views import TAU, Floats, Marks
from crate_dsl.training.data import on_unit_scale
from crate_dsl.training.gallery import data_uri
from crate_dsl.training.sources import required_module
from crate_dsl.training.supply import Texts

#: The objects of a picture, the first cut first.
OBJECT_COLOURS = ((1.0, 0.42, 0.2), (0.2, 0.7, 1.0), (0.5, 0.85, 0.3))
#: The grey of what is hidden of a picture.
HIDDEN = 0.5


def page(report: Report) -> str:
    """The whole page.

    Raises:
        UserError: the `train` extra is not installed.
    """
    jinja2 = required_module("jinja2", "the report")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("crate_dsl.inspection", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "words": _words}
    text: str = environment.get_template("report.html.j2").render(
        report=report,
        noun=report.subject.supply.noun,
        title=_title(report),
        facts=_facts(report),
        tiles=tiles(report),
        sentences=sentences(report),
        missing=missing(report),
        figures=figures(report),
        maps=_maps(report),
        tokens=_tokens(report),
        completed=_completed(report),
        published_eps=PUBLISHED_EPS,
        eps=EPS,
        tau=TAU,
    )
    return text


def _words(text: str) -> Any:
    """A sentence for the page: what stands between backticks is code."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _title(report: Report) -> str:
    graph = report.subject.graph
    return graph.model + (f"@{graph.variant}" if graph.variant else "")


def _facts(report: Report) -> list[tuple[str, str]]:
    subject = report.subject
    texts = isinstance(subject.supply, Texts)
    size = f"{subject.size[0]:,} tokens each" if texts else " × ".join(map(str, subject.size))
    return [
        ("network", subject.target),
        ("weights", subject.weights),
        ("parameters", f"{subject.graph.parameters:,}"),
        (subject.supply.noun, f"{subject.count:,} of the test part of {subject.supply.text}, {size}"),
    ]


# ------------------------------------------------------------------ pictures


@dataclass(frozen=True)
class MapRow:
    """A picture, or a text, and its map by each head."""

    picture: str | None
    text: str | None
    heads: list[str]


@dataclass(frozen=True)
class LayerMaps:
    """The attention of a layer."""

    layer: str
    query: str
    rows: list[MapRow]


def _maps(report: Report) -> list[LayerMaps]:
    shown: list[tuple[str | None, str | None]]
    if isinstance(report.subject.supply, Texts):
        shown = [(None, text) for text in report.subject.texts(report.shown)]
    else:
        shown = [(picture, None) for picture in _shown(report)]
    return [
        LayerMaps(
            maps.layer,
            maps.query,
            [
                MapRow(*seen, [data_uri(_heat(map_rc)) for map_rc in maps_hrc])
                for seen, maps_hrc in zip(shown, maps.maps_bhrc, strict=True)
            ],
        )
        for maps in report.maps
    ]


@dataclass(frozen=True)
class TokenRow:
    """A picture, the first component of its tokens, the next ones as colours, and its objects."""

    picture: str
    first: str
    colours: str
    objects: str
    count: int


def _tokens(report: Report) -> list[TokenRow]:
    features = report.features
    if features is None:
        return []
    images_nchw = on_unit_scale(report.subject.images_nchw(report.shown))
    rows = []
    for image_chw, components_rck, objects in zip(
        images_nchw, features.components_brck, features.objects, strict=True
    ):
        colours = np.zeros((3, *components_rck.shape[:2]), np.float32)
        rest = components_rck[..., 1:4].transpose(2, 0, 1)
        colours[: len(rest)] = rest
        first = components_rck[None, ..., 0].astype(np.float32)
        rows.append(
            TokenRow(
                _picture(image_chw),
                data_uri(first),
                data_uri(colours),
                data_uri(_overlaid(image_chw, objects)),
                len(objects),
            )
        )
    return rows


def _shown(report: Report) -> list[str]:
    return [_picture(image_chw) for image_chw in on_unit_scale(report.subject.images_nchw(report.shown))]


def _picture(image_chw: NDArray[np.float32]) -> str:
    """A picture inside the page: in colours where it has three channels, else in the grey of their mean."""
    return data_uri(image_chw if len(image_chw) == 3 else image_chw.mean(0, keepdims=True))


def _heat(map_rc: Floats) -> NDArray[np.float32]:
    """A map from 0 to its largest entry, as colours: (3, r, c)."""
    required_module("matplotlib", "the report")
    from matplotlib import colormaps

    largest = float(map_rc.max()) or 1.0
    coloured: NDArray[np.float32] = (
        colormaps["magma"](map_rc / largest)[..., :3].transpose(2, 0, 1).astype(np.float32)
    )
    return coloured


def _overlaid(image_chw: NDArray[np.float32], objects: Sequence[Marks]) -> NDArray[np.float32]:
    """A picture in grey with its objects in colours: (3, h, w)."""
    grey = np.repeat(image_chw.mean(0, keepdims=True), 3, axis=0) * 0.75
    for mark, colour in zip(objects, OBJECT_COLOURS[: len(objects)], strict=True):
        height, width = image_chw.shape[1] // mark.shape[0], image_chw.shape[2] // mark.shape[1]
        where = np.kron(mark, np.ones((height, width))) > 0
        grey[:, where] = 0.45 * grey[:, where] + 0.55 * np.array(colour)[:, None]
    return grey.astype(np.float32)


@dataclass(frozen=True)
class CompletedRow:
    """A picture, what the network was shown of it, and what it made of that."""

    picture: str
    masked: str
    completed: str


def _completed(report: Report) -> list[CompletedRow]:
    pictures = report.pictures
    if pictures is None:
        return []
    rows = []
    for shown, completed, hidden in zip(pictures.shown, pictures.completed, pictures.hidden, strict=True):
        image_chw, hidden_rs = shown.clamp(0, 1).numpy(), hidden.numpy()
        height, width = image_chw.shape[1] // hidden_rs.shape[0], image_chw.shape[2] // hidden_rs.shape[1]
        where = np.kron(hidden_rs, np.ones((height, width))) > 0
        masked = np.where(where, np.float32(HIDDEN), image_chw)
        rows.append(CompletedRow(*map(_picture, (image_chw, masked, completed.clamp(0, 1).numpy()))))
    return rows
