"""Numbers that change over the phases of a run."""

from typing import final


@final
class LinearSchedule:
    """From `start` to `end` over `phases` rollout phases, then constant.

    Raises:
        ValueError: `phases` is not positive.
    """

    def __init__(self, start: float, end: float, phases: int) -> None:
        if phases < 1:
            raise ValueError(f"phases={phases} must be at least 1")
        self.start = start
        self.end = end
        self.phases = phases

    def __call__(self, phase: int) -> float:
        progress = min(phase / self.phases, 1.0)
        return self.start + progress * (self.end - self.start)
