"""One run at a time in a folder, whatever becomes of the one before."""

import errno
import os
import signal
import socket
import subprocess
import sys

import pytest

from klqlit import run_lock
from klqlit.cli import main
from klqlit.ranks import RANK_VARIABLES, is_first_process
from klqlit.run_lock import LOCK, locked

HOLD = """
import os, subprocess, sys, time
from klqlit.run_lock import locked
with locked(sys.argv[1]):
    {then}
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def hold(tmp_path):
    """Starts a process that holds the lock of a folder, and does something more before it waits."""
    started = []

    def start(then="pass"):
        command = [sys.executable, "-c", HOLD.format(then=then), str(tmp_path / "run")]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.slow
def test_a_second_process_is_told_of_the_first(hold, tmp_path):
    first = hold()
    names = rf"run_dir='{tmp_path}/run' is in use by process {first.pid} on {socket.gethostname()}: wait until it ends"
    with pytest.raises(ValueError, match=names) as refused, locked(str(tmp_path / "run")):
        pass
    assert "\n" not in str(refused.value)
    assert f"choose another --run_dir; if it is no more, its node having failed, delete {tmp_path}/run/{LOCK}" in str(
        refused.value
    )


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_is_gone_holds_nothing(hold, tmp_path, number):
    first = hold()
    first.send_signal(number)
    first.wait()
    with locked(str(tmp_path / "run")):
        assert (tmp_path / "run" / LOCK).read_text() == f"process {os.getpid()} on {socket.gethostname()}"


@pytest.mark.slow
@pytest.mark.parametrize("child", ["os.fork() or time.sleep(20)", "subprocess.Popen(['sleep', '20'])"])
def test_its_children_hold_nothing(hold, tmp_path, child):
    """As workers of a data loader, which may outlive it for a while."""
    first = hold(child)
    first.kill()
    first.wait()
    with locked(str(tmp_path / "run")):
        pass


def test_a_folder_that_nothing_was_written_to_is_taken_away(tmp_path):
    with locked(str(tmp_path / "runs" / "run")):
        assert (tmp_path / "runs" / "run" / LOCK).is_file()
    assert list(tmp_path.iterdir()) == []
    with locked(str(tmp_path / "runs" / "run")):
        (tmp_path / "runs" / "run" / "run.json").touch()
    assert [path.name for path in (tmp_path / "runs" / "run").iterdir()] == ["run.json"]


def test_a_lock_that_was_taken_away_while_it_was_opened_is_none(tmp_path, monkeypatch):
    lockf = run_lock.fcntl.lockf
    taken = []

    def after_another(descriptor, operation):
        if not taken:
            (tmp_path / LOCK).unlink()
        taken.append(descriptor)
        lockf(descriptor, operation)

    monkeypatch.setattr(run_lock.fcntl, "lockf", after_another)
    with locked(str(tmp_path)):
        assert len(taken) == 2
        assert (tmp_path / LOCK).is_file()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_without_locks_a_run_goes_on_with_a_warning(tmp_path, monkeypatch, number):
    def refuse(descriptor, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(run_lock.fcntl, "lockf", refuse)
    with pytest.warns(UserWarning, match=rf"cannot be locked \({os.strerror(number)}\)"), locked(str(tmp_path)):
        pass
    monkeypatch.setattr(run_lock, "fcntl", None)
    with pytest.warns(UserWarning, match=r"cannot be locked \(this system has no fcntl\)"), locked(str(tmp_path)):
        pass


def test_the_first_process_is_known_by_its_environment(monkeypatch):
    for name in RANK_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert is_first_process()
    for name in RANK_VARIABLES:
        monkeypatch.setenv(name, "0")
        assert is_first_process()
    for name in RANK_VARIABLES:
        monkeypatch.setenv(name, "1")
        assert not is_first_process()
        monkeypatch.setenv(name, "0")


FINETUNING = """
trainer: {{max_epochs: 1, accelerator: cpu, limit_val_batches: 0}}
model: {{class_path: klqlit.SupervisedFinetuning, init_args: {{model: {{path: {policy}}}, lr: 1.0e-3}}}}
data:
  class_path: klqlit.CompletionDataModule
  init_args:
    batch_size: 2
    source: {{class_path: klqlit.TableSource, init_args: {{path: {rows}, validation_rows: 1}}}}
"""


@pytest.mark.slow
def test_a_second_fit_in_the_folder_is_refused_before_a_model_is_read(hold, quitter_dir, tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"prompt": "{i}?", "completion": " {i}"}}\n' for i in range(5)))
    config = tmp_path / "sft.yaml"
    config.write_text(FINETUNING.format(policy=quitter_dir, rows=rows))
    options = ["fit", f"--config={config}", f"--run_dir={tmp_path / 'run'}"]
    first = hold()
    assert main([*options, "--model.init_args.model.path=/nowhere/model"]) == 2
    error = capsys.readouterr().err
    assert f"is in use by process {first.pid} on " in error
    assert error.count("klqlit: error") == 1
    assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK]
    first.kill()
    first.wait()
    assert main(options) == 0
    assert not (tmp_path / "run" / LOCK).exists()
    # A mistake leaves neither a lock nor a folder.
    assert main([*options, f"--run_dir={tmp_path / 'other'}", "--model.init_args.model.path=/nowhere/model"]) == 2
    assert not (tmp_path / "other").exists()
