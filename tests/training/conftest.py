from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from crate_dsl.training.run import Run
from crate_dsl.training.train import train

HERE = Path(__file__).parent
TINY = str(HERE / "tiny.crate")


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Bitwise comparisons need one order of summation; and small networks are fastest so."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that was never cut off. Tests must leave it as it is."""
    return train(TINY, "digits", tmp_path_factory.mktemp("runs") / "finished", progress=False)


@pytest.fixture
def images() -> np.ndarray:
    """Ninety pictures, 6 high and 5 wide, that differ from each other."""
    return np.random.default_rng(0).integers(0, 256, (90, 6, 5), np.uint8)


@pytest.fixture
def labels() -> np.ndarray:
    return np.arange(90) % 3


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text of some 6,000 characters, of 27 different ones."""
    lots = random.Random(1)
    said = ["the", "quick", "brown", "fox", "jumps", "over", "lazy", "dogs"]
    path = tmp_path_factory.mktemp("text") / "plain.txt"
    path.write_text(" ".join(lots.choice(said) for _ in range(1200)))
    return path
