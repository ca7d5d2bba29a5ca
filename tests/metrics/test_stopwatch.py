"""Seconds by stage."""

from types import SimpleNamespace

import pytest
import torch

from klqlit.metrics import stopwatch
from klqlit.metrics.stopwatch import Stopwatch
from runs import make_data, make_module, make_trainer


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test moves."""
    now = [0.0]
    monkeypatch.setattr(stopwatch, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    return now


@pytest.fixture
def gpu(monkeypatch, clock):
    """One that is always behind by 7 seconds; a list of the times at which it was waited for."""
    waits = []

    def synchronize():
        clock[0] += 7
        waits.append(clock[0])

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    return waits


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


def test_a_block_waits_for_the_gpu_and_counts_that_as_its_own(clock, gpu):
    watch = Stopwatch()
    with watch("scoring"):
        clock[0] += 1
    assert watch.lap() == {"scoring": 8.0}
    assert len(gpu) == 1


def test_start_and_stop_do_not_wait(clock, gpu):
    watch = Stopwatch()
    for _ in range(3):
        watch.start("optimization")
        clock[0] += 1
        watch.stop("optimization")
    assert not gpu
    assert watch.lap() == {"optimization": 3.0}


def test_a_phase_waits_for_the_gpu_as_often_whatever_the_number_of_its_steps(quitter_dir, tmp_path, gpu):
    def waits(epochs):
        gpu.clear()
        make_trainer(tmp_path, max_epochs=1).fit(make_module(quitter_dir), make_data(epochs=epochs))
        return len(gpu)

    assert waits(epochs=1) == waits(epochs=3) == 3  # generation, scoring, optimization


def test_a_validation_does_not_take_over_what_the_gpu_still_does_of_a_step(quitter_dir, tmp_path, gpu):
    """Each wait takes 7 seconds: one before the validation, which counts, and one when the phase is over."""
    module = make_module(quitter_dir)
    trainer = make_trainer(tmp_path, max_epochs=1, limit_val_batches=1)
    trainer.fit(module, make_data())
    assert trainer.callback_metrics["time/optimization"] == 14
