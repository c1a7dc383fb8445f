from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from crate_dsl.demo import demo, shipped
from crate_dsl.language.diagnostics import UserError
from crate_dsl.training.gallery import Gallery, drawn, spread

TINY = str(Path(__file__).parent / "tiny.crate")


def told(out: Path, target: str = TINY) -> tuple[Path, str]:
    console = Console(width=80, force_terminal=False, color_system=None)
    with console.capture() as captured:
        page = demo(out, target=target, data="digits", recipe={"epochs": "2"}, device="cpu", console=console)
    return page, captured.get()


def test_the_demo_tells_its_story_and_tells_it_again(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    page, story = told(out)
    assert max(map(len, story.splitlines())) <= 80
    for expected in (
        "crate-dsl train",
        "Proved: the largest relative difference",
        "Wrong, the surest first",
        "Rᶜ",
    ):
        assert expected in story
    html = page.read_text("utf-8")
    assert "data:image/png;base64," in html
    assert not re.search(r"(src|href)=\"(?!data:)", html)  # nothing is fetched from elsewhere
    # What onnxruntime gets right is what was counted after training.
    (counted,) = re.findall(r"seen:\s+([\d.]+)%\s+right", story)
    assert f"{counted}% of 359 right" in story
    weights = (out / "model.safetensors").stat().st_mtime_ns
    assert "done before" in told(out)[1]
    assert (out / "model.safetensors").stat().st_mtime_ns == weights


def test_the_demo_overwrites_nothing(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty"):
        told(tmp_path)


def test_the_shipped_spec_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Path(shipped("crate.crate@fashion").partition("@")[0]).is_file()


def test_a_gallery_counts(images: np.ndarray, labels: np.ndarray) -> None:
    scores = np.eye(3)[labels] * 2.0
    scores[:10, 0] += 5  # the first ten are taken for the first class, whatever they are
    gallery = Gallery.of(images[:, None], labels, scores, ("one", "two", "three"))
    assert gallery.rows() == [("one", 30, 0, ""), ("two", 27, 3, "one (3)"), ("three", 27, 3, "one (3)")]
    assert gallery.accuracy == pytest.approx(84 / 90)
    first = gallery.wrong[0]
    assert first.probability == pytest.approx(np.exp(5) / (np.exp(5) + np.exp(2) + 1))
    assert [seen.label for seen in spread(gallery.right, 3)] != [0, 0, 0]


def test_half_blocks_show_two_rows_in_one() -> None:
    image = np.zeros((1, 4, 3), np.uint8)
    image[0, 0] = 255  # white above black
    text = drawn(image, coloured=True)
    assert text.plain == "▀▀▀\n▀▀▀"
    assert str(text.spans[0].style) == "rgb(255,255,255) on rgb(0,0,0)"
    assert drawn(image, coloured=False).plain == "▒▒▒\n   "
    assert drawn(np.zeros((3, 56, 56), np.float32), coloured=False).plain.count("\n") == 6
