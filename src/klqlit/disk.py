"""Whether a disk has room for what is about to be written."""

import shutil
from pathlib import Path
from typing import Any, final

from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_leaves

SLACK = 1.02
"""For what is written around the tensors: names, checksums, directories."""


@final
class NoSpace(ValueError):
    """There is less room than a file needs; nothing was written."""


def bytes_of(tree: Any) -> int:
    """Bytes of all tensors in nested dicts and lists, those that share memory once, as they are written to a file."""
    sizes: dict[int, int] = {}
    for leaf in tree_leaves(tree):
        if isinstance(leaf, DTensor):
            # The whole of it, of which each rank holds a shard: all ranks write to one disk.
            sizes[id(leaf)] = leaf.numel() * leaf.element_size()
        elif isinstance(leaf, Tensor):
            storage = leaf.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
    return sum(sizes.values())


def free_bytes(folder: Path) -> int:
    """Free room in a folder that may not be there yet."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def check_space(needed: int, free: int, folder: Path, what: str) -> None:
    """Refuse to write what would not fit.

    Args:
        needed: bytes of its tensors.
        free: bytes.
        folder: where it is to be written.
        what: for the message.

    Raises:
        NoSpace: it does not fit.
    """
    if free < needed * SLACK:
        raise NoSpace(
            f"{what} needs {size(needed * SLACK)}, but {size(free)} are free in {folder}. Nothing was written, and "
            "older checkpoints are as they were: make room there, then start the same command again"
        )


def size(number: float | int) -> str:
    """Bytes for people."""
    power = next((power for power in (3, 2, 1) if number >= 1024**power), 0)
    unit, digits = (("bytes", 0), ("KiB", 1), ("MiB", 1), ("GiB", 2))[power]
    return f"{number / 1024**power:.{digits}f} {unit}"
