"""What must hold before a checkpoint is written."""

from pathlib import Path
from typing import Any, final

import lightning as L

from klqlit.algorithms.base import STATES
from klqlit.algorithms.divergence import Divergence, all_finite, broken_parts
from klqlit.disk import bytes_of, check_space, free_bytes
from klqlit.ranks import everywhere


@final
class SaveGuard(L.Callback):
    """Refuses to save weights that are not finite, and to begin a checkpoint for which the disk has no room.

    All ranks stop together, before a byte is written: older checkpoints are as they were.

    Args:
        directory: where the run keeps its checkpoints.

    Raises:
        Divergence: at a save or at the end of training: a weight is not finite.
        NoSpace: at a save: the disk has less room than the checkpoint needs.
    """

    def __init__(self, directory: str) -> None:
        self.directory = Path(directory)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        check_weights(trainer, pl_module)
        # What the module takes out afterwards (frozen models) has no gradient.
        trained = {name for name, p in pl_module.named_parameters() if p.requires_grad}
        kept = {
            part: {name: x for name, x in saved.items() if name in trained} if part in STATES else saved
            for part, saved in checkpoint.items()
        }
        needed = bytes_of(kept)
        # The first rank writes, or all of them to the same disk: it decides.
        needed, free = trainer.strategy.broadcast((needed, free_bytes(self.directory)))
        check_space(needed, free, self.directory, f"the checkpoint of step {trainer.global_step}")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Before the model is exported, where no checkpoint is due.
        check_weights(trainer, pl_module)


def check_weights(trainer: L.Trainer, module: L.LightningModule) -> None:
    """Refuse weights that the last optimizer step broke. All ranks must call it.

    Raises:
        Divergence: on every rank, where a parameter is not finite on one of them.
    """
    # Frozen ones never change, and reading them would bring them to main memory (`models.weight_file`).
    names = [name for name, p in module.named_parameters() if p.requires_grad and not all_finite(p)]
    if trainer.strategy.reduce_boolean_decision(bool(names), all=False):
        names = sorted({name for part in everywhere(names) for name in part})
        raise Divergence(
            f"{len(names)} parameters are not finite after optimizer step {trainer.global_step} ({names[0]} is the "
            "first): they are not saved, the run stops, and the last good checkpoint is kept. Try a lower "
            "optimization.lr or gradient clipping (trainer.gradient_clip_val: 1.0)",
            {"what": "the weights", **broken_parts(module), "parameters_not_finite": names, "rows": []},
        )
