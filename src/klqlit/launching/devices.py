"""Whether this machine has the devices that a run asks for."""

from typing import Any

import torch


def check_accelerator(accelerator: Any) -> None:
    """See that torch has the GPU that `trainer.accelerator` names, before anything is built for it.

    Raises:
        ValueError: it sees none.
    """
    here = {"cuda": torch.cuda.is_available()}
    here["gpu"] = here["cuda"] or torch.backends.mps.is_available()
    if isinstance(accelerator, str) and not here.get(accelerator.lower(), True):
        raise ValueError(
            f"trainer.accelerator={accelerator}, but torch sees no GPU here: give --trainer.accelerator cpu, or "
            "install a torch for this machine's GPU"
        )
