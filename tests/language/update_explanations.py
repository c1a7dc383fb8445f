"""Writes the output of every page's example anew: `python -m tests.language.update_explanations [CODE …]`.

Read the difference before you keep it: the pages are what the messages should be.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from crate_dsl.language.diagnostics import render_all
from crate_dsl.language.explanations import codes, explanation
from crate_dsl.workspace import check_text

PAGES = Path(__file__).parents[2] / "crate_dsl" / "language" / "explanations"
OUTPUT = re.compile(r"^```text\n.*?^```$", re.MULTILINE | re.DOTALL)


def update(code: str) -> bool:
    """Bring the page of a code up to date; whether it had to be changed."""
    example = explanation(code).example
    if example is None:
        return False
    path = PAGES / f"{code}.md"
    page = path.read_text(encoding="utf-8")
    output = f"```text\n{render_all(check_text('example.crate', example))}\n```"
    updated = OUTPUT.sub(lambda _: output, page)
    path.write_text(updated, encoding="utf-8")
    return updated != page


if __name__ == "__main__":
    for code in sys.argv[1:] or codes():
        if update(code):
            print(f"{code}: {explanation(code).output}\n")
