"""What a start in a run's folder means."""

import json
from pathlib import Path

import pytest
import torch

from klqlit.resuming.starting import AlreadyFinished, begin, differences, flat, is_later

OPTIONS = {"model.class_path": "klqlit.KLQ", "model.tau": "0.05", "trainer.max_epochs": "8", "run_dir": "here"}


@pytest.fixture
def run_dir(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    return tmp_path


def save(folder, step, options=None):
    path = folder / f"step-{step}.ckpt"
    parts = {"state_dict": {}, "loops": {}, "optimizer_states": [{}], "lr_schedulers": []}
    place = {"epoch": 0, "global_step": step, "pytorch-lightning_version": "2.6.6"}
    torch.save(parts | place | {"callbacks": {"OptionsRecord": {"options": options or OPTIONS}}}, path)
    return str(path)


def start(run_dir, ckpt_path=None, /, resume="auto", **changes):
    return begin(OPTIONS | changes, run_dir=str(run_dir), ckpt_path=ckpt_path, resume=resume)


def finish(run_dir):
    (run_dir / "run.json").write_text(json.dumps({"state": "finished"}))
    (run_dir / "model").mkdir()


def test_an_empty_folder_starts(run_dir):
    for resume in ("auto", "never"):
        begun = start(run_dir, resume=resume)
        assert (begun.checkpoint, begun.step) == (None, 0)


def test_a_checkpoint_goes_on_and_never_refuses_it(run_dir, caplog):
    path = save(run_dir / "checkpoints", 12)
    begun = start(run_dir)
    assert (begun.checkpoint, begun.step) == (path, 12)
    assert not caplog.text
    with pytest.raises(ValueError, match=r"resume=never, but .* has the checkpoint .*step-12\.ckpt"):
        start(run_dir, resume="never")


def test_changed_options_are_named_with_both_values(run_dir, caplog):
    caplog.set_level("INFO")
    save(run_dir / "checkpoints", 12)
    start(run_dir, **{"model.tau": "0.1", "run_dir": "there", "model.lam": "0.9"})
    assert [record.message for record in caplog.records] == [
        "options have changed since the checkpoint; from here on the new ones are in force:",
        "  model.tau: 0.05 -> 0.1",
        "  model.lam: - -> 0.9",
    ]


def test_another_algorithm_is_refused(run_dir):
    save(run_dir / "checkpoints", 12)
    with pytest.raises(ValueError, match=r"saved with model\.class_path=klqlit\.KLQ, and this is klqlit\.PPO"):
        start(run_dir, **{"model.class_path": "klqlit.PPO"})


def test_a_finished_run_says_so(run_dir):
    save(run_dir / "checkpoints", 12)
    finish(run_dir)
    with pytest.raises(AlreadyFinished, match=r"is finished \(step 12\): nothing is left to do"):
        start(run_dir)
    with pytest.raises(AlreadyFinished, match=r"Without effect are the changed options:\n  model\.tau: 0\.05 -> 0\.1"):
        start(run_dir, **{"model.tau": "0.1"})


@pytest.mark.parametrize("end", ["9", "-1"])
def test_a_finished_run_goes_on_when_it_gets_longer(run_dir, end):
    save(run_dir / "checkpoints", 12)
    finish(run_dir)
    assert start(run_dir, **{"trainer.max_epochs": end}).step == 12


def test_a_run_that_time_has_ended_goes_on_with_more_of_it(run_dir):
    save(run_dir / "checkpoints", 12, OPTIONS | {"trainer.max_time": "00:01:00"})
    finish(run_dir)
    with pytest.raises(AlreadyFinished, match=r"Raise trainer\.max_epochs, trainer\.max_steps or trainer\.max_time"):
        start(run_dir, **{"trainer.max_time": "00:01:00"})
    assert start(run_dir, **{"trainer.max_time": "00:02:00"}).step == 12


def test_a_run_that_was_not_exported_is_not_finished(run_dir):
    save(run_dir / "checkpoints", 12)
    finish(run_dir)
    (run_dir / "model").rmdir()
    assert start(run_dir).step == 12


@pytest.mark.parametrize("torn", ["", '{"state": "fini', "[]"])
def test_a_run_whose_record_is_torn_is_not_finished(run_dir, torn):
    save(run_dir / "checkpoints", 12)
    finish(run_dir)
    (run_dir / "run.json").write_text(torn)
    with pytest.warns(UserWarning, match=r"run\.json cannot be read and counts as none"):
        assert start(run_dir).step == 12


@pytest.mark.parametrize(
    ("old", "new", "later"),
    [
        *[("8", "9", True), ("8", "8", False), ("8", "7", False), ("-1", "9", False), ("8", "-1", True)],
        *[("None", "00:01:00", False), ("00:01:00", "None", True), ("00:01:00", "00:02:00", True)],
    ],
)
def test_when_an_end_lies_later(old, new, later):
    assert is_later({"end": new}, {"end": old}, "end") == later


def test_a_named_checkpoint_of_the_folder_is_gone_back_to(run_dir):
    early = save(run_dir / "checkpoints", 4)
    save(run_dir / "checkpoints", 12)
    begun = start(run_dir, early)
    assert (begun.checkpoint, begun.step) == (early, 4)


def test_a_checkpoint_from_elsewhere_is_only_where_a_run_begins(run_dir, tmp_path_factory, caplog):
    """The same command after a kill goes on with what was reached since."""
    caplog.set_level("INFO")
    other = save(tmp_path_factory.mktemp("other"), 100)
    begun = start(run_dir, other)
    assert (begun.checkpoint, begun.step) == (other, 0)
    mine = save(run_dir / "checkpoints", 104)
    assert start(run_dir, other).checkpoint == mine
    assert "is where this run began; it has gone on since" in caplog.text


def test_a_torn_checkpoint_that_is_named_is_refused(run_dir):
    torn = Path(save(run_dir / "checkpoints", 4))
    torn.write_bytes(torn.read_bytes()[:50])
    with pytest.raises(ValueError, match=r"step-4\.ckpt' is not whole: step-4\.ckpt was cut off after 50 bytes"):
        start(run_dir, str(torn))


def test_names_are_those_of_the_command_line():
    nested = {"model": {"class_path": "KLQ", "init_args": {"tau": 0.05, "betas": (0.9, 0.99), "gold": None}}, "x": []}
    assert flat(nested) == {
        "model.class_path": "KLQ",
        "model.tau": "0.05",
        "model.betas.0": "0.9",
        "model.betas.1": "0.99",
        "model.gold": "None",
        "x": "[]",
    }


def test_checkpoints_without_options_have_no_differences():
    assert differences({}, OPTIONS) == {}
