"""Checkpoints that a run can always go on from."""

import shutil
import time
from datetime import timedelta
from pathlib import Path
from typing import Any, final

import lightning as L
import torch
from lightning.fabric.utilities.types import _PATH
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch.distributed.checkpoint.api import CheckpointException

from klqlit.callbacks.fast_dev_run import is_fast_dev_run
from klqlit.run_folder import (
    checkpoint_path,
    checkpoints,
    complete,
    pending_path,
    remove,
    remove_pending,
    set_later_aside,
)
from klqlit.strategies.checkpoints import load_whole


class CheckpointNotWritten(RuntimeError):
    """A checkpoint could not be saved; those before it are as they were."""


@final
class Checkpoints(Checkpoint):
    """Saves ``step-N.ckpt`` between optimizer steps, and keeps the last few.

    A checkpoint is written beside its place and moved there when it is whole and the log rows of its steps are written.
    Older ones are deleted after that. So a run killed at any moment finds a whole checkpoint, and its logs continue
    without a gap and without a row twice.

    The end of a phase or epoch counts as reached when its validation is over. Training that ends saves its last step.
    With the trainer's `fast_dev_run` the folder is left as it is.

    Args:
        directory: where the checkpoints are.
        every_n_epochs: phases of an online run, epochs of a supervised one, between two checkpoints; by default 1
            where no other interval is given.
        every_n_train_steps: optimizer steps between two checkpoints.
        train_time_interval: time between two checkpoints, such as ``00:30:00``.
        keep: how many are kept, at least 2, since a disk may tear one.

    Raises:
        ValueError: a number is too small.
        CheckpointNotWritten: in training: the disk is full, or another fault of writing.
    """

    def __init__(
        self,
        directory: str,
        *,
        every_n_epochs: int | None = None,
        every_n_train_steps: int | None = None,
        train_time_interval: timedelta | None = None,
        keep: int = 2,
    ) -> None:
        intervals = {"every_n_epochs": every_n_epochs, "every_n_train_steps": every_n_train_steps}
        for name, value in intervals.items():
            if value is not None and value < 1:
                raise ValueError(f"checkpoint.{name}={value} must be at least 1; leave it out for none")
        if keep < 2:
            raise ValueError(f"checkpoint.keep={keep} must be at least 2: a torn one must not leave a run with none")
        self.directory = Path(directory)
        given = any(x is not None for x in (every_n_epochs, every_n_train_steps, train_time_interval))
        self.every_n_epochs = every_n_epochs if given else 1
        self.every_n_train_steps = every_n_train_steps
        self.train_time_interval = train_time_interval
        self.keep = keep
        self._step = 0
        self._saved: Path | None = None
        self._is_pending = False
        self._time = 0.0

    @property
    def newest(self) -> Path | None:
        """The last checkpoint that is whole and in its place, of those of this start."""
        return None if self._is_pending else self._saved

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._step, self._time = trainer.global_step, time.monotonic()
        self._saved, self._is_pending = None, False  # what another trainer saved may be put aside now
        if trainer.is_global_zero and not is_fast_dev_run(trainer):
            remove_pending(self.directory)
            set_later_aside(self.directory, trainer.global_step)
        trainer.strategy.barrier("klqlit.checkpoints")

    def is_between_steps(self, trainer: L.Trainer) -> bool:
        """For `on_train_batch_end`: whether the state is one that a checkpoint can hold.

        It cannot hold the gradients of half a step. After the last batch of an epoch Lightning would not come back to
        validation and the end of the epoch; that checkpoint is saved when they are over.
        """
        return trainer.global_step > self._step and not trainer.is_last_batch

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.is_between_steps(trainer) and self._is_due(trainer):
            self.save(trainer)
        self._step = trainer.global_step

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        ends = self.every_n_epochs is not None and (trainer.current_epoch + 1) % self.every_n_epochs == 0
        if ends or self._is_due(trainer):
            self.save(trainer)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.complete(trainer)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.complete(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.complete(trainer)
        self.save(trainer)
        self.complete(trainer)

    def save(self, trainer: L.Trainer) -> None:
        """Write the present state beside its place. All ranks call it; nothing happens where this step was saved.

        Raises:
            CheckpointNotWritten: on all ranks, where one of them could not write its part.
        """
        path = checkpoint_path(self.directory, trainer.global_step)
        began_here = trainer.ckpt_path is not None and Path(trainer.ckpt_path).resolve() == path.resolve()
        if path == self._saved or began_here or is_fast_dev_run(trainer):
            return
        pending = pending_path(path)
        cause = self._write(trainer, pending)
        if trainer.strategy.reduce_boolean_decision(cause is not None, all=False):
            advice = self._advice(path, cause)
            if trainer.is_global_zero:
                remove_pending(self.directory)
            raise CheckpointNotWritten(advice) from cause
        self._saved, self._is_pending, self._time = path, True, time.monotonic()

    def complete(self, trainer: L.Trainer) -> None:
        """Move what was saved to its place, now that the log rows of its steps are written, and delete the oldest."""
        if not self._is_pending:
            return
        assert self._saved is not None
        if trainer.is_global_zero:
            complete(pending_path(self._saved), self._saved)
            for old in checkpoints(self.directory)[self.keep :]:
                remove(old)
        self._is_pending = False

    def _write(self, trainer: L.Trainer, path: Path) -> BaseException | None:
        """The fault on this rank, if there was one."""
        try:
            trainer.save_checkpoint(path, weights_only=False)
        except (OSError, RuntimeError, CheckpointException) as error:
            if isinstance(error, RuntimeError) and type(error) is not RuntimeError:
                raise  # no fault of writing, for which torch has no class of its own
            # The other ranks wait at the end of `save_checkpoint`.
            trainer.strategy.barrier("Trainer.save_checkpoint")
            return error
        return None

    def _advice(self, path: Path, cause: BaseException | None) -> str:
        why = "another rank could not write its part" if cause is None else reason(cause)
        free = shutil.disk_usage(self.directory).free / 2**20
        return (
            f"the checkpoint {path} could not be written ({why}; {free:.0f} MiB are free in {self.directory}), and the "
            "run stops; the checkpoints before it are whole. Make room, then start the same command again: it goes on "
            "from the newest of them"
        )

    def _is_due(self, trainer: L.Trainer) -> bool:
        """Whether steps or time ask for a checkpoint, or training ends here; the same on all ranks."""
        step, every = trainer.global_step, self.every_n_train_steps
        if step == trainer.max_steps or trainer.should_stop or (every is not None and step % every == 0):
            return True
        if self.train_time_interval is None:
            return False
        return trainer.strategy.broadcast(time.monotonic() - self._time >= self.train_time_interval.total_seconds())


def reason(error: BaseException) -> str:
    """What went wrong, in one line; of several ranks, the first that says it."""
    if isinstance(error, CheckpointException):
        first = next(iter(error.failures.values()), (error, None))
        return reason(first[0])
    return (str(error) or type(error).__name__).splitlines()[0]


@final
class StreamedCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint straight to its file: Lightning's own takes it twice in memory and once in the folder for
    temporary files, which may be small. `Checkpoints` sees to it that no half of one is taken for a whole.

    Reads folders of sharded models too, so that what was begun on several devices goes on, or is looked at, on one.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None) -> None:
        assert storage_options is None
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with Path(path).open("wb") as file:
            torch.save(checkpoint, file)

    def load_checkpoint(
        self, path: _PATH, map_location: Any = lambda storage, _: storage, weights_only: bool | None = None
    ) -> dict[str, Any]:
        if Path(path).is_dir():
            return load_whole(Path(path))
        return super().load_checkpoint(path, map_location, weights_only)
