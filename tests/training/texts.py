"""What the tests of texts share: two small networks, and words."""

from __future__ import annotations

import math
import random
from pathlib import Path

import crate_dsl
from crate_dsl.training.supply import Texts, open_texts
from crate_dsl.training.vocabulary import Vocabulary

TEXT = str(Path(__file__).parent / "text.crate")
TINY, HIDDEN = f"{TEXT}:tiny", f"{TEXT}:hidden"
WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "ran", "naïve", "café", "—", "über", "日本語", "😀"]
WORDS += ["\n\n", "end.", "\t"]
#: Nats per token of a network that says nothing: the logarithm of how many characters there are.
NOTHING = math.log(27)


def words(count: int, seed: int = 0) -> str:
    lots = random.Random(seed)
    return " ".join(lots.choice(WORDS) for _ in range(count))


def texts_of(model: str, plain: Path, wanted: str | Vocabulary = "characters") -> Texts:
    return open_texts(crate_dsl.load(model), f"text:{plain}", wanted)
