"""Networks undone by iteration warn that nothing certifies them: that is not what is tested here."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest

from crate_dsl.compiler.contractions import NotCertified


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotCertified)
        yield
