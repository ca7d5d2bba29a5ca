"""Seconds of each update and its stages, memory of this process, and what else ran on the machine meanwhile.

Needs only the standard library and torch.
"""

import json
import os
import resource
import time
from pathlib import Path
from typing import Any, final

import torch

from step.counting import Work

STAGES = ("generation", "scoring", "optimization")


@final
class Machine:
    """CPU seconds of this process, and those of all others as a share of the machine, between two readings."""

    def __init__(self) -> None:
        self._last = self._read()

    def lap(self) -> dict[str, float]:
        """Since the last reading: `cpu`, this process's seconds on all cores; `others`, a share in [0, 1]."""
        then, self._last = self._last, self._read()
        elapsed, busy, own = (now - before for now, before in zip(self._last, then, strict=True))
        share = (busy - own) / (elapsed * (os.cpu_count() or 1))
        # The kernel counts in hundredths of a second, so that the share of a moment may be any number.
        return {"cpu": own, "others": min(1.0, max(0.0, share))}

    @staticmethod
    def _read() -> tuple[float, float, float]:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        # All but idle and waiting for the disk: user, nice, system, interrupts, and what the host took away.
        ticks = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        busy = (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")
        return time.perf_counter(), busy, usage.ru_utime + usage.ru_stime


@final
class Updates:
    """Rows of one arm, one an update.

    With `count`, matrix products are counted too, which slows everything: such rows hold no usable times.
    """

    def __init__(self, *, count: bool = False) -> None:
        self.rows: list[dict[str, Any]] = []
        self.work = Work() if count else None
        self.memory_before = peak_memory()
        self._seconds = dict.fromkeys(STAGES, 0.0)
        self._machine = Machine()
        self._update = self._stage = now()
        self._name: str | None = None
        if self.work is not None:
            self.work.__enter__()

    def begin(self) -> None:
        """The first update begins."""
        self._machine.lap()
        self._update = now()

    def stage(self, name: str | None) -> None:
        """From here on the time is `name`'s; None for the rest."""
        time_now = now()
        if self._name is not None:
            self._seconds[self._name] += time_now - self._stage
        self._name, self._stage = name, time_now
        if self.work is not None:
            self.work.stage = name or "rest"

    def end(self, **more: float) -> None:
        """The update is done, and the next begins."""
        self.stage(None)
        end = now()
        total = end - self._update
        row = {"total": total, **self._seconds, "rest": total - sum(self._seconds.values())}
        row |= {**self._machine.lap(), **more}
        if self.work is not None:
            row["work"] = self.work.lap()
        self.rows.append(row)
        self._update, self._seconds = end, dict.fromkeys(STAGES, 0.0)

    def write(self, file: Path, **about: Any) -> None:
        """Write the rows with what is known of the arm."""
        if self.work is not None:
            self.work.__exit__(None, None, None)
        result = {
            "rows": self.rows,
            "memory_before_mb": self.memory_before,
            "peak_memory_mb": peak_memory(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            **about,
        }
        file.write_text(json.dumps(result) + "\n", encoding="utf-8")


def now() -> float:
    """Seconds; what is queued on a GPU is waited for first."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_memory() -> float:
    """Largest resident memory of this program so far, in MB.

    (`getrusage` would also count what the process that started this one held at that moment.)
    """
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6
