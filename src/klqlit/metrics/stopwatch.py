"""Where the time of a phase goes."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import final

import torch


@final
class Stopwatch:
    """Wall-clock seconds by stage; what is queued on a GPU counts in the stage that queued it."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = defaultdict(float)
        self._started: dict[str, float] = {}

    def start(self, stage: str) -> None:
        """Begin to count for a stage."""
        self._started[stage] = _now()

    def stop(self, stage: str) -> None:
        """Add the time since `start`."""
        self._seconds[stage] += _now() - self._started.pop(stage)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Count the `with` block."""
        self.start(stage)
        yield
        self.stop(stage)

    def lap(self) -> dict[str, float]:
        """Seconds by stage since the last lap."""
        seconds, self._seconds = dict(self._seconds), defaultdict(float)
        return seconds


def _now() -> float:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()
