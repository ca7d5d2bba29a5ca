"""Weights that are only read, in a file: main memory holds them while they are in use."""

import mmap
import os
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import final

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from klqlit.allocator import return_freed_memory

SUPPORTED = sys.platform == "linux"
"""Whether this system gives memory back as needed here."""

ALIGNMENT = 64
"""Bytes that the widest instructions of a processor read at once."""

LARGE = 64 * 2**20
"""Bytes from which on weights are worth `make_room`: what the heap gives back it must have anew, page by page."""


@final
class WeightFile:
    """Moves weights to an unnamed file that is mapped to memory; the parameters stay the same objects.

    A weight comes to main memory where it is read, from the kernel's cache of the file as long as there is room for it,
    else from the disk. What is written to a weight is kept. The file is gone with the last parameter, or the process.

    Args:
        parameters: in main memory, contiguous and not empty; at least one.
        folder: where the file is made.

    Raises:
        OSError: the file cannot be made, or has no room; the weights are where they were.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], folder: Path) -> None:
        places: dict[nn.Parameter, int] = {}
        with tempfile.TemporaryFile(dir=folder) as file:
            for parameter in parameters:
                file.write(bytes(-file.tell() % ALIGNMENT))
                places[parameter] = file.tell()
                file.write(parameter.detach().view(-1).view(torch.uint8).numpy().data)
            file.flush()
            os.fsync(file.fileno())  # a disk that fails says so now, while the weights are still in memory
            self._mapping = mmap.mmap(file.fileno(), 0)
        for parameter, place in places.items():
            flat = torch.frombuffer(self._mapping, dtype=parameter.dtype, count=parameter.numel(), offset=place)
            parameter.data = flat.view(parameter.shape)
        self.let_go()

    def make_room(self) -> None:
        """Give the kernel what the heap has free, so that the weights do not come to memory on top of it."""
        if len(self._mapping) >= LARGE:
            return_freed_memory()

    def let_go(self) -> None:
        """Take no main memory until a weight is read again."""
        self._mapping.madvise(mmap.MADV_DONTNEED)


def move_to_file(models: Iterable[nn.Module]) -> WeightFile | None:
    """Move the frozen weights of `models` that lie whole in main memory to a file in $TMPDIR, by default /var/tmp.

    (Not /tmp, which is main memory on many systems: nothing would be gained there.)

    Returns:
        The file; None where there are no such weights, where it could not be made (which is told), and on systems other
        than Linux.
    """
    found = dict.fromkeys(parameter for model in models for parameter in model.parameters() if _movable(parameter))
    if not found or not SUPPORTED:
        return None
    folder = Path(os.environ.get("TMPDIR") or "/var/tmp")
    try:
        return WeightFile(found, folder)
    except OSError as error:
        rank_zero_info(
            f"Frozen models stay in main memory, since their weights cannot be written to {folder} ({error.strerror}). "
            "Set TMPDIR to a folder on a disk with room for them if memory is short."
        )
        return None


def _movable(parameter: nn.Parameter) -> bool:
    # Not what is split over devices, and the like: only a plain tensor can be replaced by its bytes.
    plain = type(parameter.data) is Tensor and parameter.device.type == "cpu" and parameter.is_contiguous()
    return plain and not parameter.requires_grad and parameter.numel() > 0
