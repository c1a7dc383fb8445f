"""An inspection's two files."""

from __future__ import annotations

from pathlib import Path

from crate_dsl.inspection.as_json import as_data
from crate_dsl.inspection.page import page
from crate_dsl.inspection.report import Report
from crate_dsl.training.files import write_json, write_text


def write(report: Report, path: Path) -> Path:
    """Write the page, and its numbers as JSON beside it; the path of the latter.

    Raises:
        UserError: a file cannot be written, or the `train` extra is not installed.
    """
    text, data = page(report), as_data(report)  # nothing is written before both are there
    beside = path.with_suffix(".json")
    write_json(beside, data)
    write_text(path, text)
    return beside
