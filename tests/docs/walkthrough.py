"""`python -m tests.docs.walkthrough`, in an empty folder: CONTRIBUTING.md done as it says, its step in this folder.

A process of its own, since the steps of the language are read once. With `--mend` the page's messages are written anew.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

import crate_dsl.compiler.steps
from tests.docs.pages import ROOT, Run

if __name__ == "__main__":
    page, folder = ROOT / "CONTRIBUTING.md", Path.cwd()
    run = Run(folder, mend="--mend" in sys.argv)
    run.files(page)
    crate_dsl.compiler.steps.__path__.append(str(folder / "compiler" / "steps"))
    run.page(page)
    reference = runpy.run_path(str(ROOT / "docs" / "make_steps.py"))
    assert "\n### `center`\n" in reference["page"](), "the new step is in the reference of steps"
    tests = folder / "tests" / "steps" / "test_center.py"
    # `prepend`: the test is a module by itself, and `tests.steps` still the repository's.
    options = ["-c", str(ROOT / "pyproject.toml"), "-p", "no:cacheprovider", "--import-mode=prepend"]
    sys.exit(pytest.main([*options, str(tests)]))
