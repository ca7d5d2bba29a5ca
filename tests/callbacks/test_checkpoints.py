"""When checkpoints are saved, when they appear, which are kept."""

from datetime import timedelta
from typing import final

import lightning as L
import pytest
import torch

from klqlit.callbacks.checkpoints import CheckpointNotWritten, Checkpoints, StreamedCheckpointIO
from klqlit.run_folder import pending_path
from runs import make_data, make_module, make_trainer


def names(folder):
    return sorted((path.name for path in folder.iterdir()), key=lambda name: int("".join(filter(str.isdigit, name))))


@pytest.fixture
def fit(quitter_dir, tmp_path):
    """Two phases of four steps, with `Checkpoints(**options)`; returns the steps at which one appeared."""

    def run(*callbacks, trainer=None, **options):
        seen = Appearances(tmp_path / "c")
        checkpoints = Checkpoints(str(tmp_path / "c"), **options)
        runner = make_trainer(tmp_path, seen, *callbacks, checkpoints, enable_checkpointing=True, **(trainer or {}))
        runner.fit(make_module(quitter_dir), make_data())
        return seen.steps

    return run


@final
class Appearances(L.Callback):
    """Notes, at the first batch after a checkpoint was saved or at the end, that it is in its place."""

    def __init__(self, folder):
        self.folder = folder
        self.steps = []
        self.names = set()

    def look(self):
        found = {path.name for path in self.folder.glob("step-*.ckpt")} if self.folder.is_dir() else set()
        self.steps += sorted(int(name[5:-5]) for name in found - self.names)
        self.names |= found

    def on_before_zero_grad(self, trainer, module, optimizer):
        self.look()

    def on_fit_end(self, trainer, module):
        self.look()


@pytest.mark.parametrize(
    ("options", "trainer", "steps"),
    [
        ({}, {}, [4, 8]),
        ({"every_n_epochs": 2}, {}, [8]),
        ({"every_n_train_steps": 3}, {}, [3, 6, 8]),
        ({"every_n_train_steps": 2, "every_n_epochs": 1}, {}, [2, 4, 6, 8]),
        ({"every_n_train_steps": 3}, {"accumulate_grad_batches": 2}, [3, 6, 8]),
        ({"train_time_interval": timedelta(0)}, {"accumulate_grad_batches": 2}, [*range(1, 9)]),
        ({"every_n_epochs": 5}, {"max_epochs": -1, "max_steps": 6}, [6]),
    ],
)
def test_when_a_checkpoint_is_saved(fit, options, trainer, steps):
    """Never within a step, and always where training ends."""
    assert fit(trainer=trainer, **options) == steps


def test_a_second_trainer_saves_as_the_first_did(quitter_dir, tmp_path):
    """As in a notebook, where the same callback is given to the next trainer."""
    checkpoints = Checkpoints(str(tmp_path / "c"))
    for expected in (["step-4.ckpt"], ["step-4.ckpt", "step-4.ckpt.aside"]):
        trainer = make_trainer(tmp_path, checkpoints, enable_checkpointing=True, max_epochs=1)
        trainer.fit(make_module(quitter_dir), make_data())
        assert sorted(path.name for path in (tmp_path / "c").iterdir()) == expected
        assert checkpoints.newest == tmp_path / "c" / "step-4.ckpt"


@final
class EndAfter(L.Callback):
    """As a time limit does, in the middle of a phase."""

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        trainer.should_stop = trainer.global_step == 5


def test_the_last_batch_of_a_cut_epoch_is_its_last(fit, tmp_path):
    # Two epochs: what the first leaves of the phase is the second.
    assert fit(every_n_train_steps=3, trainer={"limit_train_batches": 3}) == [3, 4]
    saved = torch.load(tmp_path / "c" / "step-3.ckpt", weights_only=True)
    assert saved["loops"]["fit_loop"]["epoch_progress"]["total"]["processed"] == 1


def test_where_something_else_ends_training_the_last_step_is_saved_as_within_its_phase(fit, tmp_path):
    assert fit(EndAfter()) == [4, 5]
    saved = torch.load(tmp_path / "c" / "step-5.ckpt", weights_only=True)
    assert saved["OnlineDataModule"]["experience"] is not None
    assert saved["loops"]["fit_loop"]["epoch_progress"]["total"]["processed"] == 1


@pytest.mark.parametrize("keep", [2, 3])
def test_the_last_ones_are_kept(fit, tmp_path, keep):
    fit(every_n_train_steps=1, keep=keep)
    assert names(tmp_path / "c") == [f"step-{step}.ckpt" for step in range(9 - keep, 9)]


@pytest.mark.parametrize("option", [{"keep": 1}, {"every_n_epochs": 0}, {"every_n_train_steps": -1}])
def test_numbers_that_are_too_small_are_refused(option):
    (name,) = option
    with pytest.raises(ValueError, match=rf"checkpoint\.{name}="):
        Checkpoints("here", **option)


@final
class Rows(L.Callback):
    """Notes whether a checkpoint of this step is in its place when a metric is logged."""

    def __init__(self, folder):
        self.folder = folder
        self.early = []

    def on_train_epoch_end(self, trainer, module):
        self.early.append((self.folder / f"step-{trainer.global_step}.ckpt").exists())


def test_a_checkpoint_appears_after_the_rows_of_its_steps(fit, tmp_path):
    """A kill between the two would lose a row of the log."""
    rows = Rows(tmp_path / "c")
    assert fit(rows) == [4, 8]
    assert rows.early == [False, False]


def full_disk(*arguments):
    raise OSError(28, "No space left on device")


def test_a_full_disk_leaves_the_old_ones(fit, tmp_path, monkeypatch):
    save = torch.save

    def third_fails(state, file):
        return full_disk() if ".step-6.ckpt" in file.name else save(state, file)

    monkeypatch.setattr(torch, "save", third_fails)
    with pytest.raises(CheckpointNotWritten, match=r"step-6\.ckpt could not be written \(\[Errno 28\] No space left"):
        fit(every_n_train_steps=2, trainer={"plugins": [StreamedCheckpointIO()]})
    assert names(tmp_path / "c") == ["step-2.ckpt", "step-4.ckpt"]


def test_what_a_kill_left_behind_goes_and_what_was_torn_steps_aside(fit, tmp_path):
    (tmp_path / "c").mkdir()
    pending_path(tmp_path / "c" / "step-3.ckpt").write_bytes(b"half")
    (tmp_path / "c" / "step-20.ckpt").write_bytes(b"torn")
    fit()
    assert names(tmp_path / "c") == ["step-4.ckpt", "step-8.ckpt", "step-20.ckpt.aside"]
