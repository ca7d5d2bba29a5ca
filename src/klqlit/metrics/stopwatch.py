"""Where the time of a phase goes."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import final

import torch


@final
class Stopwatch:
    """Wall-clock seconds by stage.

    A `with` block ends when a GPU has done what was queued there. `start` and `stop` do not wait, so that a GPU finds
    the next step in its queue when it has done one.
    """

    def __init__(self) -> None:
        self._seconds: dict[str, float] = defaultdict(float)
        self._started: dict[str, float] = {}

    def start(self, stage: str) -> None:
        """Begin to count for a stage."""
        self._started[stage] = time.perf_counter()

    def stop(self, stage: str) -> None:
        """Add the time since `start`."""
        self._seconds[stage] += time.perf_counter() - self._started.pop(stage)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Count the `with` block."""
        self.start(stage)
        yield
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.synchronize()
        self.stop(stage)

    def lap(self) -> dict[str, float]:
        """Seconds by stage since the last lap."""
        seconds, self._seconds = dict(self._seconds), defaultdict(float)
        return seconds
