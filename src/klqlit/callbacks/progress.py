"""What a person sees of a run under way."""

import math
import time
from typing import Any, final

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from klqlit.algorithms.base import RLHFModule

SHOWN = {
    "reward/score": "score",
    "reward/gold": "gold",
    "kl/sequence": "KL",
    "objective/J": "J",
    "train/loss": "loss",
    "val/loss": "val loss",
    "val/accuracy": "val accuracy",
    "val/win_rate/score": "val win rate",
}
"""Logged metrics that the bar shows, and how it calls them: `val` stands before those of held-out rows."""


@final
class Progress(ProgressBar):
    """One bar over all optimizer steps of the run, with score, KL and objective beside it.

    Where the output is no terminal (a log file, a SLURM job) it prints one line now and then instead.

    Args:
        interval: seconds between two lines where the output is no terminal.
    """

    def __init__(self, interval: float = 15.0) -> None:
        super().__init__()
        self.interval = interval
        self._console = Console()
        self._bar: RichProgress | None = None
        self._printed = 0.0

    def disable(self) -> None:
        """Lightning calls this on all ranks but the first."""
        self._console.quiet = True

    def enable(self) -> None:
        """The inverse of `disable`."""
        self._console.quiet = False

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self._console.is_terminal or self._console.quiet:
            return
        self._bar = RichProgress(
            TextColumn("[bold]{task.description:<10}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("steps"),
            TimeElapsedColumn(),
            TextColumn("<"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[metrics]}"),
            console=self._console,
        )
        self._bar.add_task("starting", total=None, metrics="")
        self._bar.start()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._show(trainer, "sampling" if isinstance(pl_module, RLHFModule) else "training")

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if isinstance(pl_module, RLHFModule):
            # Its numbers are those of the phase before, and to read them again would be to wait for a GPU.
            self._show(trainer, "updating", read=False)
        else:
            self._show(trainer, "training")
        if time.monotonic() - self._printed >= self.interval:
            self._print_line(trainer)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._show(trainer, "validating")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._show(trainer, "validating")

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._show(trainer, "done")
        self._print_line(trainer)
        self._close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._close()

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print above the bar."""
        self._console.print(*args)

    def _show(self, trainer: L.Trainer, stage: str, *, read: bool = True) -> None:
        if self._bar is None:
            return
        task = self._bar.task_ids[0]
        self._bar.update(task, description=stage, completed=trainer.global_step, total=_total(trainer))
        if read:
            self._bar.update(task, metrics=self._metrics(trainer))

    def _print_line(self, trainer: L.Trainer) -> None:
        if self._bar is None and trainer.global_step > 0:
            self._printed = time.monotonic()
            steps = f"step {trainer.global_step}/{_total(trainer) or '?'}"
            self._console.print(f"{steps}  {self._metrics(trainer)}", highlight=False, soft_wrap=True)

    def _metrics(self, trainer: L.Trainer) -> str:
        values = trainer.callback_metrics
        return "  ".join(f"{label} {float(values[name]):.3g}" for name, label in SHOWN.items() if name in values)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _total(trainer: L.Trainer) -> int | None:
    """Optimizer steps of the whole run; None where nothing ends it."""
    steps = trainer.estimated_stepping_batches
    return None if math.isinf(steps) else int(steps)
