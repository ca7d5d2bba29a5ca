"""Whether a run is only tried, and is to leave nothing in its folder."""

import lightning as L


def is_fast_dev_run(trainer: L.Trainer) -> bool:
    """Lightning promises that such a run leaves neither checkpoints nor logs: what is there belongs to another one."""
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]  # a function of its `setup` sets it
