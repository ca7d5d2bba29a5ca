"""What looks at a phase when its last update is done."""

from abc import ABC, abstractmethod
from typing import Any

import lightning as L

from klqlit.algorithms.base import RLHFModule


class PhaseEnd(L.Callback, ABC):
    """Called once a phase, on every rank and with the same numbers on each, after the phase's last update.

    Not when Lightning's epoch ends: a run that goes on from a checkpoint of a phase's last step skips that.
    """

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if not isinstance(pl_module, RLHFModule):
            raise ValueError(f"{type(self).__name__} watches rollouts, and {type(pl_module).__name__} makes none")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.is_last_batch:
            assert isinstance(pl_module, RLHFModule)
            self.on_phase_end(trainer, pl_module)

    @abstractmethod
    def on_phase_end(self, trainer: L.Trainer, module: RLHFModule) -> None:
        """Look at `module.phase_metrics`, those of the phase's rollout."""
