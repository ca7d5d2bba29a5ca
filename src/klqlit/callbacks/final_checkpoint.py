"""A checkpoint where training ends."""

from pathlib import Path
from typing import final

import lightning as L


@final
class FinalCheckpoint(L.Callback):
    """Saves the last step, whatever the interval between checkpoints: a finished run is then known to be finished.

    Args:
        directory: where the run keeps its checkpoints.
    """

    def __init__(self, directory: str) -> None:
        self.directory = Path(directory)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        path = self.directory / f"step-{trainer.global_step}.ckpt"
        if not path.exists():
            trainer.save_checkpoint(path)
