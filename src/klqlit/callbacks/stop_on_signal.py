"""Stopping when told to, with nothing lost."""

import os
import signal
import threading
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, final

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info

from klqlit.callbacks.checkpoints import Checkpoints

SIGNALS = (signal.SIGINT, signal.SIGUSR1, signal.SIGTERM)

AfterSave = Callable[[L.Trainer, signal.Signals], None]
"""What else is to be done when a run stops: given the trainer and the signal."""


class Stopped(RuntimeError):
    """A signal ended the run after a checkpoint.

    Attributes:
        status: exit status of the program, 128 and the number of the signal as shells have it.
    """

    def __init__(self, received: signal.Signals, step: int, checkpoint: str) -> None:
        super().__init__(f"stopped by {received.name} after step {step}; the same command goes on from {checkpoint}")
        self.status = 128 + received


@final
class StopOnSignal(L.Callback):
    """SIGTERM, SIGINT and SIGUSR1 end the run after the optimizer step under way, with a checkpoint.

    The handler only sets a flag. After each optimizer step the ranks agree whether one of them was told to stop, save
    together, and raise `Stopped`. A signal during sampling or validation is acted on when that is over. A second SIGINT
    ends the program at once, where the last checkpoint left it. SIGUSR1 is meant for "time is nearly up".

    Lightning's own handling of SIGTERM and of SLURM's signals, which saves or communicates within the handler, is
    replaced while the run lasts; then the caller's handlers are back, however the run ended.

    Args:
        checkpoints: saves.
        after_save: called on the first rank in this order when the checkpoint is in its place, before the run stops:
            for a scheduler's requeue, a message. They are given the trainer and the signal.
    """

    def __init__(self, checkpoints: Checkpoints, after_save: Sequence[AfterSave] = ()) -> None:
        self.checkpoints = checkpoints
        self.after_save = list(after_save)
        self._received: signal.Signals | None = None
        self._agreed: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}
        self._is_first_rank = True

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._is_first_rank = trainer.is_global_zero
        self._received = self._agreed = None  # a signal ended the run before this one, perhaps
        if stage == "fit" and threading.current_thread() is threading.main_thread():
            self._before = {number: signal.getsignal(number) for number in SIGNALS}
            self._install()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Between `setup` and here Lightning put its own in front.
        self._install()
        self._agreed = self._agree(trainer)
        self._stop_if_saved(trainer)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.checkpoints.is_between_steps(trainer):
            self._save_if_told(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._save_if_told(trainer)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._stop_if_saved(trainer)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stop_if_saved(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._uninstall(trainer)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._uninstall(trainer)

    def _save_if_told(self, trainer: L.Trainer) -> None:
        if self._agreed is None and (received := self._agree(trainer)) is not None:
            rank_zero_info(f"{received.name}: saving step {trainer.global_step}")
            self.checkpoints.save(trainer)
            self._agreed = received

    def _stop_if_saved(self, trainer: L.Trainer) -> None:
        """Not before the next batch or phase: by then the log rows of the step are written."""
        if self._agreed is None:
            return
        self.checkpoints.complete(trainer)
        if trainer.is_global_zero:
            for act in self.after_save:
                act(trainer, self._agreed)
        trainer.strategy.barrier("klqlit.stop")
        newest = self.checkpoints.newest or trainer.ckpt_path or "its beginning"
        raise Stopped(self._agreed, trainer.global_step, str(newest))

    def _agree(self, trainer: L.Trainer) -> signal.Signals | None:
        """The signal that some rank received, the same on all ranks."""
        if trainer.world_size == 1:
            return self._received  # nobody else to ask, and so no GPU to wait for
        number = torch.tensor(int(self._received or 0), device=trainer.strategy.root_device)
        highest = int(trainer.strategy.reduce(number, reduce_op="max"))
        return signal.Signals(highest) if highest else None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self._received == signal.SIGINT:
                raise KeyboardInterrupt
            if self._is_first_rank:
                # Unlike print, safe in a handler.
                os.write(2, b"\nstopping after this optimizer step, with a checkpoint; once more stops at once\n")
        self._received = signal.Signals(number)

    def _install(self) -> None:
        for number in self._before:
            signal.signal(number, self._handle)

    def _uninstall(self, trainer: L.Trainer) -> None:
        if self._before:
            # Lightning's comes after `on_exception`, and would put back what it found: this callback's own handlers.
            trainer._signal_connector.teardown()
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
