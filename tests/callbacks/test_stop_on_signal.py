"""Signals end a run between two steps, with a checkpoint."""

import os
import signal
from contextlib import nullcontext
from typing import final

import lightning as L
import pytest
from lightning.pytorch.strategies import SingleDeviceStrategy

from klqlit.callbacks.checkpoints import Checkpoints
from klqlit.callbacks.stop_on_signal import SIGNALS, StopOnSignal, Stopped
from runs import make_data, make_module, make_trainer


@final
class Send(L.Callback):
    """Sends this process a signal after some batches, or before training."""

    def __init__(self, *numbers, batch=None, hook="batch"):
        self.numbers, self.batch, self.hook = numbers, batch, hook
        self.batches = 0

    def send(self, hook):
        if hook == self.hook and self.batches == (self.batch or 0):
            for number in self.numbers:
                os.kill(os.getpid(), number)

    def setup(self, trainer, module, stage):
        self.send("setup")

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.batches += 1
        self.send("batch")

    def on_validation_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0):
        self.send("validation")


@pytest.fixture
def fit(quitter_dir, tmp_path):
    """A fit of two phases of four steps; returns its `StopOnSignal`'s actions taken."""

    def run(send, act=None, **trainer):
        checkpoints = Checkpoints(str(tmp_path / "c"), every_n_epochs=100)
        acts = []

        def note(trainer, received):
            acts.append((received, trainer.global_step, checkpoints.newest))

        stop = StopOnSignal(checkpoints, [note])
        runner = make_trainer(tmp_path, stop, send, checkpoints, enable_checkpointing=True, **trainer)
        try:
            runner.fit(make_module(quitter_dir), make_data())
        finally:
            run.acts = acts
        return acts

    return run


@pytest.mark.parametrize("number", SIGNALS)
def test_the_run_ends_after_the_step_with_a_checkpoint(fit, tmp_path, number):
    with pytest.raises(
        Stopped, match=rf"stopped by {number.name} after step 2; the same command goes on from"
    ) as stopped:
        fit(Send(number, batch=1))
    assert stopped.value.status == 128 + number
    assert fit.acts == [(number, 2, tmp_path / "c" / "step-2.ckpt")]


def test_a_single_process_asks_no_rank_at_its_steps(fit, monkeypatch):
    """On a GPU the answer would have to be waited for at each of them."""
    asked = []
    monkeypatch.setattr(SingleDeviceStrategy, "reduce", lambda strategy, x, *_, **__: asked.append(x) or x)

    def asks(steps):
        asked.clear()
        fit(Send(), max_epochs=-1, max_steps=steps)
        return len(asked)

    assert asks(steps=1) == asks(steps=3)


def test_within_an_accumulation_the_step_is_finished_first(fit, tmp_path):
    with pytest.raises(Stopped, match="after step 2;"):
        fit(Send(signal.SIGTERM, batch=3), accumulate_grad_batches=2)
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["step-2.ckpt"]


def test_during_validation_the_phase_is_finished_first(fit):
    with pytest.raises(Stopped, match="after step 4;"):
        fit(Send(signal.SIGUSR1, batch=4, hook="validation"), limit_val_batches=1.0)


def test_before_training_nothing_is_saved(fit, tmp_path):
    with pytest.raises(Stopped, match="after step 0; the same command goes on from its beginning"):
        fit(Send(signal.SIGUSR1, hook="setup"))
    assert not (tmp_path / "c").exists()
    assert fit.acts == [(signal.SIGUSR1, 0, None)]


def test_in_the_last_step_the_run_just_finishes(fit, tmp_path):
    assert fit(Send(signal.SIGTERM, batch=8)) == []
    assert (tmp_path / "c" / "step-8.ckpt").is_file()


def test_a_run_after_one_that_was_stopped_is_not_stopped(quitter_dir, tmp_path):
    """As in a notebook, where the same callbacks are given to the next trainer."""
    checkpoints = Checkpoints(str(tmp_path / "c"), every_n_epochs=100)
    stop, send = StopOnSignal(checkpoints), Send(signal.SIGINT, batch=2)
    with pytest.raises(Stopped):
        make_trainer(tmp_path, stop, send, checkpoints, enable_checkpointing=True).fit(
            make_module(quitter_dir), make_data()
        )
    runner = make_trainer(tmp_path, stop, checkpoints, enable_checkpointing=True)
    runner.fit(make_module(quitter_dir), make_data())
    assert runner.global_step == 8


def test_after_the_run_signals_do_what_they_did(fit):
    before = [signal.getsignal(each) for each in SIGNALS]
    fit(Send())
    assert [signal.getsignal(each) for each in SIGNALS] == before
    with pytest.raises(Stopped):
        fit(Send(signal.SIGTERM, batch=1))
    assert [signal.getsignal(each) for each in SIGNALS] == before
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("end", [{}, {"batch": 1}, {"hook": "setup"}])
def test_the_callers_handlers_are_back_however_a_run_ends(fit, end):
    received = []
    before = [signal.signal(each, lambda number, frame: received.append(number)) for each in SIGNALS]
    try:
        with nullcontext() if not end else pytest.raises(Stopped):
            fit(Send(*[signal.SIGUSR1] if end else [], **end))
        for each in SIGNALS:
            os.kill(os.getpid(), each)
        assert received == [*SIGNALS]
    finally:
        for each, handler in zip(SIGNALS, before, strict=True):
            signal.signal(each, handler)


def test_a_second_ctrl_c_stops_at_once(fit, tmp_path):
    with pytest.raises(SystemExit):
        fit(Send(signal.SIGINT, signal.SIGINT, batch=1))
    assert not (tmp_path / "c").exists()
