"""Everything that the documentation shows, done."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, Run, anchors, links

PAGES = sorted([*ROOT.glob("docs/*.md"), ROOT / "README.md"])
ALSO = [ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_is_true(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Run(tmp_path).page(page)


@pytest.mark.parametrize("page", [*PAGES, *ALSO], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_a_step_is_added_as_contributing_says(tmp_path: Path) -> None:
    """The new step's folder, and nothing else, is added; then it is checked, built, exported, documented and tested."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.docs.walkthrough"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
