"""Writing the trained model where the next stage finds it."""

from pathlib import Path
from typing import Protocol, final, runtime_checkable

import lightning as L
from lightning.pytorch.utilities import rank_zero_info

from klqlit.callbacks.fast_dev_run import is_fast_dev_run


@runtime_checkable
class Exportable(Protocol):
    """A module that can write what it trained."""

    def export(self, directory: str) -> None:
        """Write a directory. All ranks call it."""


@final
class Export(L.Callback):
    """Exports the trained model as a Hugging Face directory when fit ends, unless it was the trainer's `fast_dev_run`.

    Args:
        dirname: name of the directory, below the trainer's `default_root_dir`.
    """

    def __init__(self, dirname: str = "model") -> None:
        self.dirname = dirname

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if not isinstance(pl_module, Exportable):
            raise ValueError(f"Export needs a module with `export(directory)`, and {type(pl_module).__name__} has none")

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Also where the run was finished before and nothing was left to train: a crash may have come before the export.
        assert isinstance(pl_module, Exportable)
        if is_fast_dev_run(trainer):
            return
        directory = Path(trainer.default_root_dir) / self.dirname
        pl_module.export(str(directory))
        if trainer.global_step == 0:
            rank_zero_info(f"no step was taken: the model exported to {directory} is the one this run started from")
        else:
            rank_zero_info(f"exported to {directory}")
