"""What a user sees while a network trains: a bar on a terminal, and a line for each epoch."""

from __future__ import annotations

from time import monotonic

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from crate_dsl.training.journal import Row

#: Seconds between two updates of the bar.
PATIENCE = 0.1


class Display:
    """Shows an epoch's steps as a bar where the console is a terminal, and what an epoch came to as a line.

    A context: the bar is gone when it ends. With `console` None nothing is shown.
    """

    def __init__(self, console: Console | None, epochs: int, steps: int) -> None:
        self.console = console
        self.epochs, self.steps = epochs, steps
        self._task: TaskID | None = None
        self._next = 0.0
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.4f}"),
            TimeRemainingColumn(compact=True),
            console=console,
            transient=True,
            expand=True,
            disable=console is None or not console.is_terminal,
        )

    def __enter__(self) -> Display:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """A line of its own."""
        if self.console is not None:
            self._bar.console.print(text, highlight=False, soft_wrap=True)

    def begin(self, epoch: int) -> None:
        """An epoch begins, counted from 1."""
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(f"epoch {epoch}/{self.epochs}", total=self.steps, loss=float("nan"))

    def due(self) -> bool:
        """Whether it is time to call `step` again."""
        if self._bar.disable or monotonic() < self._next:
            return False
        self._next = monotonic() + PATIENCE
        return True

    def step(self, done: int, loss: float) -> None:
        """So many steps of the epoch are done."""
        assert self._task is not None
        self._bar.update(self._task, completed=done, loss=loss)

    def end(self, row: Row, *, best: bool) -> None:
        """An epoch is over."""
        if self.console is None:
            return
        text = f"epoch {row.epoch:>{len(str(self.epochs))}}/{self.epochs}  loss {row.train_loss:.4f}"
        if row.val_loss is not None:
            text += f"  validation {row.val_loss:.4f}"
        if row.val_accuracy is not None:
            text += f"  {row.val_accuracy:.2%} right"
        if row.val_perplexity is not None:
            text += f"  perplexity {row.val_perplexity:,.2f}"
        if row.val_bits_per_character is not None:
            text += f"  {row.val_bits_per_character:.3f} bits/char"
        text += f"  {row.seconds:.1f} s" + ("  *" if best else "")
        self._bar.console.print(text, highlight=False, soft_wrap=True)
