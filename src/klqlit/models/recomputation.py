"""Blocks that keep their input only and are computed once more on the way back (gradient checkpointing)."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointWrapper


def computes_again(model: nn.Module) -> bool:
    """Whether blocks are computed once more on the way back, as transformers or torch does it."""
    return bool(parts_computed_again(model)) or any(isinstance(part, CheckpointWrapper) for part in model.modules())


def parts_computed_again(model: nn.Module) -> list[nn.Module]:
    """The parts for which transformers' gradient checkpointing is on."""
    # Its own property for it changed its name.
    return [part for part in model.modules() if vars(part).get("gradient_checkpointing", False)]


@contextmanager
def computed_once(parts: list[nn.Module]) -> Iterator[None]:
    """Within, gradient checkpointing is off for these parts: with it on, they write nothing into a cache."""
    for part in parts:
        part.gradient_checkpointing = False  # type: ignore[assignment]
    try:
        yield
    finally:
        for part in parts:
            part.gradient_checkpointing = True  # type: ignore[assignment]
