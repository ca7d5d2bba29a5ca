"""What the processes of a run tell each other."""

from typing import Any, TypeVar

import torch.distributed as dist

T = TypeVar("T")


def everywhere(value: T) -> list[T]:
    """What each rank gave, in rank order: a small object that pickles. All ranks must call it."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [value]
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, value)
    return parts
