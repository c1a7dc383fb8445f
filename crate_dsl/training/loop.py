"""The training loop, as Lightning sees it. Imported by `train` alone, since Lightning takes seconds to load."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from lightning.pytorch import LightningModule  # noqa: TID253 - this module is imported inside the function that needs it
from lightning.pytorch.plugins.io import CheckpointIO  # noqa: TID253
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import LambdaLR

from crate_dsl.compiler.network import ObjectiveBase
from crate_dsl.compiler.recipe import Recipe
from crate_dsl.language.diagnostics import UserError
from crate_dsl.training.batches import Batches, Scores, stream
from crate_dsl.training.journal import Journal, Row
from crate_dsl.training.plain import load_plain, save_plain
from crate_dsl.training.progress import Display
from crate_dsl.training.schedules import factor_of, optimizer_of

#: Losses are looked at in such portions: looking makes a GPU wait.
LOOKED_AT = 50


class PlainCheckpoints(CheckpointIO):
    """Lightning's checkpoints as safetensors and JSON, whole or not at all; nothing is pickled."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        save_plain(checkpoint, Path(path))

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        loaded: dict[str, Any] = load_plain(Path(path))
        return loaded

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


class Training(LightningModule):
    """An objective being minimised by a recipe.

    All that is random follows from (seed, epoch), so a run that was cut off goes on from its last whole epoch as if
    nothing had happened. `measured` gives the validation's scores; `keep` is called at each epoch's end with whether it
    is the best so far.
    """

    def __init__(
        self,
        objective: ObjectiveBase,
        recipe: Recipe,
        batches: Batches,
        display: Display,
        measured: Callable[[], Scores | None],
        keep: Callable[[Training, bool], None],
        *,
        fused: bool,
    ) -> None:
        super().__init__()
        self.objective = objective
        self.recipe = recipe
        self.batches = batches
        self.display = display
        self.measured = measured
        self.keep = keep
        self.fused = fused
        self.journal = Journal(moving=bool(objective.net.graph.averages))
        self._losses: list[Tensor] = []
        self._looked_at = 0
        self._began = 0.0

    # -------------------------------------------------------------- the recipe

    def configure_optimizers(self) -> Any:
        optimizer = optimizer_of(self.recipe, self.objective, fused=self.fused)
        schedule = LambdaLR(optimizer, factor_of(self.recipe, len(self.batches)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    # -------------------------------------------------------------- an epoch

    def on_train_epoch_start(self) -> None:
        epoch = self.current_epoch
        self.batches.epoch = epoch
        torch.manual_seed(stream(self.batches.seed, epoch, 1))
        self._losses, self._looked_at = [], 0
        self.display.begin(epoch + 1)
        self._began = perf_counter()

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        loss: Tensor = self.objective(batch)
        self._losses.append(loss.detach())
        if len(self._losses) - self._looked_at >= LOOKED_AT:
            self._look()
        if self.display.due():
            self.display.step(index + 1, float(loss))
        return loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.objective.net.constrain_()
        self.objective.net.average_()

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Bound the gradient's norm. Lightning's own refuses fused optimisers in bf16, which need no scaling."""
        if gradient_clip_val is not None:
            clip_grad_norm_(self.parameters(), gradient_clip_val)

    def _look(self) -> None:
        """Stop where a loss is no number.

        Raises:
            UserError: naming the first such step; what earlier epochs came to is kept.
        """
        unseen = self._losses[self._looked_at :]
        if not unseen:  # the epoch's last step was looked at already
            return
        finite_s = torch.stack(unseen).isfinite().cpu()
        if not finite_s.all():
            step = self._looked_at + int(finite_s.logical_not().nonzero()[0, 0])
            loss = float(self._losses[step])
            best = self.journal.best
            kept = f"the weights of epoch {best.epoch} are kept" if best else "no epoch was completed"
            where = f"epoch {self.current_epoch + 1}, step {step + 1} of {len(self.batches)}"
            raise UserError(
                f"the loss became {loss} in {where}; {kept}",
                "a smaller learning rate (--lr), a longer warm-up (--warmup), or a bound on the gradient (--clip 1)",
            )
        self._looked_at = len(self._losses)

    def on_train_epoch_end(self) -> None:
        self._look()
        losses_s = torch.stack(self._losses).double()
        train_loss = float(losses_s.mean())  # waits for a GPU, so the time is true
        seconds = perf_counter() - self._began
        scores = self.measured()
        likelihood = scores.likelihood if scores else None
        row = Row(
            epoch=self.current_epoch + 1,
            steps=self.global_step,
            train_loss=train_loss,
            val_loss=scores.loss if scores else None,
            val_accuracy=scores.accuracy if scores else None,
            lr=self._last_lr(),
            seconds=round(seconds, 3),
            steps_per_second=round(len(self._losses) / seconds, 3),
            val_perplexity=likelihood.perplexity if likelihood else None,
            val_bits_per_character=likelihood.bits_per_character if likelihood else None,
        )
        self.journal.rows.append(row)
        best = self.journal.best is row
        stale = self.recipe.patience is not None and self.journal.stale >= self.recipe.patience
        self.journal.finished = stale or row.epoch >= self.recipe.epochs
        self.trainer.should_stop = self.journal.finished
        self.keep(self, best)
        self.display.end(row, best=best)

    def _last_lr(self) -> float:
        """The learning rate of the step before: the schedule has moved on already."""
        return self.recipe.optimizer.lr * factor_of(self.recipe, len(self.batches))(self.global_step - 1)

    # -------------------------------------------------------------- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["journal"] = self.journal.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.journal = Journal.of(checkpoint["journal"])


@contextmanager
def quiet() -> Iterator[None]:
    """Lightning says what devices there are and which loader it would like better: not while this lasts."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # Lightning asks torch for batches in a spelling that torch has left behind.
            warnings.filterwarnings("ignore", ".*LeafSpec.*", FutureWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
