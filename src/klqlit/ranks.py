"""What the processes of a run tell each other."""

import os
from typing import Any, TypeVar

import torch.distributed as dist

T = TypeVar("T")

RANK_VARIABLES = (
    *("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK"),  # torchrun and Lightning
    *("SLURM_PROCID", "JSM_NAMESPACE_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK"),
)


def is_first_process() -> bool:
    """Whether this process is the first rank's, by its environment: for what comes before there is a trainer to ask."""
    return all(os.environ.get(name, "0") == "0" for name in RANK_VARIABLES)


def everywhere(value: T) -> list[T]:
    """What each rank gave, in rank order: a small object that pickles. All ranks must call it."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [value]
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, value)
    return parts
