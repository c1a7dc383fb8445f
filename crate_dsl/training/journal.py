"""What a run remembers from epoch to epoch: a row of metrics for each, and which was the best."""

from __future__ import annotations

import csv
import io
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any


@dataclass(frozen=True)
class Row:
    """One epoch. `steps` counts from the run's beginning, `lr` is the last step's, `seconds` are those of training.

    The perplexity, e to the validation loss, and bits per character are those of text.
    """

    epoch: int
    steps: int
    train_loss: float
    val_loss: float | None
    val_accuracy: float | None
    lr: float
    seconds: float
    steps_per_second: float
    val_perplexity: float | None = None
    val_bits_per_character: float | None = None

    @property
    def score(self) -> tuple[float, float] | None:
        """Larger is better: the validation accuracy, then the loss; None where nothing was held back."""
        if self.val_loss is None:
            return None
        return (0.0 if self.val_accuracy is None else self.val_accuracy), -self.val_loss


@dataclass
class Journal:
    """The rows so far. `finished` says that no epoch will follow.

    `moving` says that the loss is held against a slow copy, `ema(student)`. What is asked then changes from epoch to
    epoch, and a smaller loss is no better: it is smallest where nothing is told apart yet.
    """

    rows: list[Row] = field(default_factory=list)
    finished: bool = False
    moving: bool = False

    @property
    def best(self) -> Row | None:
        """The epoch whose weights are kept: the best by validation, or the last where that does not tell."""
        scored = [(row.score, row) for row in self.rows if row.score is not None]
        if self.moving or not scored:
            return self.rows[-1] if self.rows else None
        return max(scored, key=lambda pair: pair[0] or (0.0, 0.0))[1]

    @property
    def stale(self) -> int:
        """Epochs since the best one."""
        return self.rows[-1].epoch - self.best.epoch if self.best else 0

    def csv(self) -> str:
        """All rows, numbers in full; columns of text only where there is text."""
        text = io.StringIO()
        names = [
            entry.name
            for entry in fields(Row)
            if entry.default is MISSING or any(getattr(row, entry.name) is not None for row in self.rows)
        ]
        writer = csv.DictWriter(text, names, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in self.rows)
        return text.getvalue()

    def state(self) -> dict[str, Any]:
        """Plain data, for a checkpoint."""
        return {
            "rows": [asdict(row) for row in self.rows],
            "finished": self.finished,
            "moving": self.moving,
        }

    @staticmethod
    def of(state: dict[str, Any]) -> Journal:
        """The journal that gave this state."""
        rows = [Row(**row) for row in state["rows"]]
        return Journal(rows, bool(state["finished"]), bool(state.get("moving")))
