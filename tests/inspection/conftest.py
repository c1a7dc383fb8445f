"""A small network's run, its inspection, and what a page says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from crate_dsl.cli import main
from crate_dsl.training.train import train

SPECS = Path(str(files("crate_dsl.specs")))

#: 8 x 8 grey images; every size differs: N = 5, d = 12, K p = 6, s = 24.
SMALL = """
model small(dim = 12, depth = 3) {
    input  image : float[1, 8, 8]
    target label : index(10)
    learn  class_token : float[dim] = normal(1)
    stage encoder = repeat(depth) {
        compress(2, rank = 3)
        sparsify(step = 0.1, penalty = 0.2, start = zero, expand = 2, decode = free, residual = true, iterations = 2)
    }
    tokens = image -> patchify(4) -> linear(dim) -> prepend(class_token)
    logits = tokens -> encoder -> select(class_token) -> linear(10)
    output logits
    objective cross_entropy(logits, label)
    train { optimizer = adamw(lr = 2e-3) epochs = 2 batch = 64 }
}
"""

#: An encoder that is undone, and hidden patches that are completed.
PAIRED = """
model paired(dim = 16, depth = 2) {
    input image  : float[1, 8, 8]
    input hidden : bool[4] = choose(0.5)
    learn mask_token : float[dim] = normal(0.02)
    stage encoder = repeat(depth) {
        compress(2, rank = 3, gradient = exact, out = tied, norm = none, step = relative(0.5))
        sparsify(step = 0.1, penalty = 0.01, prox = leaky(0.9), norm = none, constraint = orthonormal)
    }
    stage decoder = inverse(encoder, mode = certified)
    patches   = image -> patchify(4)
    completed = patches -> mask(hidden, fill = mask_token) -> encoder -> decoder
    output completed
    objective mse(completed, patches, on = hidden)
}
""".replace("learn mask_token : float[dim] = normal(0.02)", "learn mask_token : float[16] = normal(0.02)")


@dataclass(frozen=True)
class Inspected:
    """A run's folder, the page that was made of it, and its JSON."""

    run: Path
    page: Path
    data: dict[str, Any]


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def inspected(target: object, page: Path, *options: object) -> dict[str, Any]:
    """The JSON of an inspection by the command."""
    with pytest.raises(SystemExit) as end:
        main(["inspect", str(target), "-o", str(page), "--device", "cpu", *map(str, options)])
    assert end.value.code == 0
    data: dict[str, Any] = json.loads(page.with_suffix(".json").read_text("utf-8"))
    return data


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Inspected:
    """A trained network, inspected. Tests leave it as it is."""
    folder = tmp_path_factory.mktemp("inspected")
    (folder / "small.crate").write_text(SMALL)
    train(str(folder / "small.crate"), "digits", folder / "run", device="cpu", progress=False)
    page = folder / "report.html"
    return Inspected(
        folder / "run", page, inspected(folder / "run", page, "--images", 40, "--shown", 3, "--batch", 16)
    )


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A source of 28 x 28 grey pictures of blobs."""
    generator = np.random.default_rng(0)
    at = np.stack(np.meshgrid(np.arange(28), np.arange(28)), -1)
    centres = generator.integers(6, 22, (60, 1, 1, 2))
    blobs = np.exp(-((at - centres) ** 2).sum(-1) / 30)
    path = tmp_path_factory.mktemp("pictures") / "blobs.npz"
    np.savez(path, x=(255 * blobs).astype(np.uint8), y=np.arange(60) % 10)
    return f"npz:{path}"


class Page(HTMLParser):
    """What a page says: the text of each table row's cells, of list items, and every attribute that could load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.items: list[str] = []
        self.loaded: list[str] = []
        self.tags: set[str] = set()
        self._into: list[str] | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.loaded += [
            value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")
        ]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self._into = self.rows[-1]
        if tag == "li":
            self.items.append("")
            self._into = self.items

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th", "li"):
            self._into = None

    def handle_data(self, data: str) -> None:
        if self._into is not None:
            self._into[-1] += data
