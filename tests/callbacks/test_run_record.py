"""A run's own record of how it was made and how it ended."""

import json

import lightning as L
import pytest

from klqlit.callbacks.run_record import RunRecord, read_record, versions
from klqlit.version import __version__
from runs import make_data, make_module, make_trainer


def record(folder):
    return json.loads((folder / "run.json").read_text())


def test_a_finished_run(quitter_dir, tmp_path):
    make_trainer(tmp_path, RunRecord()).fit(make_module(quitter_dir), make_data())
    found = record(tmp_path)
    assert (found["state"], found["step"], found["reason"]) == ("finished", 8, None)
    (start,) = found["starts"]
    assert (start["step"], start["steps"], start["ranks"]) == (0, 8, 1)
    assert start["versions"] == versions()
    assert start["versions"]["klqlit"] == __version__
    assert start["device"].startswith("cpu (")


class Stop(L.Callback):
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step == 3:
            raise RuntimeError("enough")


def test_a_stopped_run_says_why_and_a_second_start_stands_beside_the_first(quitter_dir, tmp_path):
    with pytest.raises(RuntimeError, match="enough"):
        make_trainer(tmp_path, RunRecord(), Stop()).fit(make_module(quitter_dir), make_data())
    found = record(tmp_path)
    assert (found["state"], found["step"], found["reason"]) == ("stopped", 3, "RuntimeError: enough")
    make_trainer(tmp_path, RunRecord(), max_epochs=1).fit(make_module(quitter_dir), make_data())
    found = record(tmp_path)
    assert (found["state"], found["step"], found["reason"]) == ("finished", 4, None)
    assert [start["steps"] for start in found["starts"]] == [8, 4]


@pytest.mark.parametrize(
    "torn", ["", '{"state": "fini', "null", "[]", '{"state": 1}', '{"state": "finished", "starts": [1]}']
)
def test_a_record_that_cannot_be_read_counts_as_none(quitter_dir, tmp_path, torn):
    (tmp_path / "run.json").write_text(torn)
    with pytest.warns(UserWarning, match=r"run\.json cannot be read and counts as none"):
        assert read_record(str(tmp_path)) == {}
    with pytest.warns(UserWarning, match=r"run\.json cannot be read and counts as none"):
        make_trainer(tmp_path, RunRecord(), max_epochs=1).fit(make_module(quitter_dir), make_data())
    assert record(tmp_path)["state"] == "finished"
    assert len(record(tmp_path)["starts"]) == 1


def test_a_mistake_before_the_first_step_leaves_the_record_as_it_was(quitter_dir, tmp_path):
    make_trainer(tmp_path, RunRecord()).fit(make_module(quitter_dir), make_data())
    before = record(tmp_path)
    with pytest.raises(ValueError, match="does not fit"):
        make_trainer(tmp_path, RunRecord()).fit(make_module(quitter_dir), make_data(max_prompt_tokens=10_000))
    assert record(tmp_path) == before
