"""A callback that kills its own process at a declared moment, once."""

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any, final

import lightning as L

MOMENTS = ("start", "sampling", "batch", "validation", "epoch_end", "writing", "renaming", "deleting")


@final
class KillAt(L.Callback):
    """Reads the environment: ``KILL_AT="KILL batch 3 0"`` sends SIGKILL on rank 0 where step 3 ends.

    The moments are those of `MOMENTS`. "writing" is a little after a checkpoint's file was opened, "renaming" is when
    it is whole and not yet in its place, "deleting" when an older one is about to go.
    """

    def __init__(self) -> None:
        name, self.moment, step, rank = os.environ.get("KILL_AT", "KILL never 0 0").split()
        self.signal = signal.Signals[f"SIG{name}"]
        self.step, self.rank = int(step), int(rank)
        self.step_now = 0
        self.done = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.here = trainer.global_rank == self.rank
        if self.moment in ("writing", "renaming", "deleting"):
            sys.addaudithook(self._audit)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.step_now = trainer.global_step
        self._at("start")

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._at("sampling", delay=0.01)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.step_now = trainer.global_step
        self._at("batch")

    def on_validation_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._at("validation")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._at("epoch_end")

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.done or not arguments or not isinstance(arguments[0], str | Path):
            return
        name = Path(arguments[0]).name
        if event == "open" and ".pending" in str(arguments[0]) and "w" in str(arguments[1]):
            self._at("writing", delay=0.001)
        elif event == "os.rename" and name.endswith(".pending"):
            self._at("renaming")
        elif event in ("os.remove", "shutil.rmtree") and name.startswith("step-") and name.endswith(".ckpt"):
            self._at("deleting")

    def _at(self, moment: str, delay: float = 0.0) -> None:
        if self.done or not self.here or moment != self.moment or self.step_now < self.step:
            return
        self.done = True
        if delay:
            threading.Thread(target=self._kill, args=[delay], daemon=True).start()
        else:
            self._kill(0.0)

    def _kill(self, delay: float) -> None:
        time.sleep(delay)
        os.kill(os.getpid(), self.signal)
