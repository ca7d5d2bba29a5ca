"""Seconds by stage."""

import pytest

from klqlit.metrics import stopwatch
from klqlit.metrics.stopwatch import Stopwatch


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test moves."""
    now = [0.0]
    monkeypatch.setattr(stopwatch, "_now", lambda: now[0])
    return now


def test_stages_add_up_until_the_lap(clock):
    watch = Stopwatch()
    for seconds in (2.0, 3.0):
        with watch("scoring"):
            clock[0] += seconds
        clock[0] += 100
    watch.start("generation")
    clock[0] += 1
    watch.stop("generation")
    assert watch.lap() == {"scoring": 5.0, "generation": 1.0}
    assert watch.lap() == {}


def test_a_stage_may_stand_inside_another(clock):
    watch = Stopwatch()
    with watch("optimization"):
        clock[0] += 1
        with watch("generation"):
            clock[0] += 2
    assert watch.lap() == {"optimization": 3.0, "generation": 2.0}
