"""The part of the documentation that is generated is what the code says."""

from __future__ import annotations

import runpy

from tests.docs.pages import ROOT


def test_the_reference_of_steps_is_fresh() -> None:
    reference = runpy.run_path(str(ROOT / "docs" / "make_steps.py"))
    shown = reference["PAGE"].read_text(encoding="utf-8")
    assert shown == reference["page"](), "write it anew: python docs/make_steps.py"
