"""Two exported files, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from crate_dsl.compiler.export import export
from tests.export.specs import images, text


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images.onnx and text.onnx. Tests leave it as it is."""
    folder = tmp_path_factory.mktemp("exported")
    export(*images(), folder / "images.onnx", {"scaling": '{"mean": 0.5}'})
    export(*text(), folder / "text.onnx")
    return folder
