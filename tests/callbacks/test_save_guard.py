"""Broken weights are never saved, and no checkpoint is begun that the disk has no room for."""

import math
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint

from klqlit import disk
from klqlit.algorithms.divergence import Divergence
from klqlit.callbacks import save_guard
from klqlit.callbacks.export import Export
from klqlit.callbacks.save_guard import SaveGuard
from klqlit.disk import NoSpace, bytes_of, check_space, free_bytes
from runs import make_data, make_module, make_trainer


class Break(L.Callback):
    """The optimizer step itself leaves the numbers."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            next(module.policy.parameters()).data[0] = math.inf


def saver(folder):
    return ModelCheckpoint(
        dirpath=folder, filename="{step}", every_n_train_steps=1, monitor="step", mode="max", save_top_k=2
    )


def kept(folder):
    return sorted(path.name for path in Path(folder).glob("*.ckpt"))


def test_a_checkpoint_of_broken_weights_is_not_written(quitter_dir, tmp_path):
    trainer = make_trainer(
        tmp_path, Break(5), SaveGuard(str(tmp_path)), Export(), saver(tmp_path), enable_checkpointing=True
    )
    with pytest.raises(Divergence, match=r"1 parameters are not finite after optimizer step 5 \(policy"):
        trainer.fit(make_module(quitter_dir), make_data())
    assert kept(tmp_path) == ["step=3.ckpt", "step=4.ckpt"]
    assert not (tmp_path / "model").exists()


def test_what_the_last_step_broke_is_not_exported(quitter_dir, tmp_path):
    trainer = make_trainer(tmp_path, Break(8), SaveGuard(str(tmp_path)), Export())
    with pytest.raises(Divergence, match="after optimizer step 8"):
        trainer.fit(make_module(quitter_dir), make_data())
    assert not (tmp_path / "model").exists()


def test_a_disk_without_room_stops_the_run_before_a_byte_is_written(quitter_dir, tmp_path, monkeypatch):
    steps = []

    def free(folder):
        steps.append(folder)
        return 2**40 if len(steps) < 3 else 1000

    monkeypatch.setattr(save_guard, "free_bytes", free)
    trainer = make_trainer(tmp_path, SaveGuard(str(tmp_path)), saver(tmp_path), enable_checkpointing=True)
    with pytest.raises(NoSpace, match=r"the checkpoint of step 3 needs \d+\.\d KiB, but 1000 bytes are free in"):
        trainer.fit(make_module(quitter_dir), make_data())
    assert kept(tmp_path) == ["step=1.ckpt", "step=2.ckpt"]


@pytest.mark.parametrize("averaging", [[], [EMAWeightAveraging]])
def test_the_estimate_is_the_size_of_the_file(quitter_dir, tmp_path, monkeypatch, averaging):
    needs = []
    monkeypatch.setattr(save_guard, "check_space", lambda needed, *rest: needs.append(needed))
    trainer = make_trainer(tmp_path, *[kind() for kind in averaging], SaveGuard(str(tmp_path)), max_epochs=1)
    trainer.fit(make_module(quitter_dir), make_data())
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    size = (tmp_path / "end.ckpt").stat().st_size
    # In so small a file, names and headers weigh as much as numbers.
    assert needs[-1] <= size <= needs[-1] + 100_000


def test_shared_memory_counts_once_and_slices_as_what_is_saved():
    x = torch.zeros(1000)
    assert bytes_of({"a": x, "b": [x.view(10, 100)], "c": 1}) == 4000
    assert bytes_of([x[:10]]) == 4000


@pytest.mark.parametrize(("needed", "free", "fits"), [(1000, 1020, True), (1000, 1019, False), (0, 0, True)])
def test_the_bound_leaves_2_percent(needed, free, fits):
    if fits:
        check_space(needed, free, Path("x"), "it")
    else:
        with pytest.raises(NoSpace, match="it needs 1020 bytes, but 1019 bytes are free in x"):
            check_space(needed, free, Path("x"), "it")


def test_room_is_asked_for_where_the_folder_will_be(tmp_path):
    assert free_bytes(tmp_path / "not" / "yet") == pytest.approx(free_bytes(tmp_path), rel=0.1)


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 bytes"), (1023, "1023 bytes"), (1536, "1.5 KiB"), (2**30, "1.00 GiB")]
)
def test_sizes_in_words(number, text):
    assert disk.size(number) == text
