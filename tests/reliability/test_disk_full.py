"""A disk that is full while a checkpoint is written costs the steps since the one before, and nothing else."""

import os
import shutil
import subprocess

import pytest

from klqlit.run_folder import fault_of
from reliability.programs import MODES, Program, differences

pytestmark = pytest.mark.slow


@pytest.fixture
def small_disk(tmp_path):
    """`small_disk(bytes)`: a folder in a file system of that size; called again, its size changes."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def resize(size):
        how = "remount," if os.path.ismount(folder) else ""
        command = ["mount", "-t", "tmpfs", "-o", f"{how}size={size}", "tmpfs", str(folder)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("a small file system cannot be mounted here: that needs root")
        return folder

    yield resize
    subprocess.run(["umount", str(folder)], capture_output=True)


def whole_checkpoints(program):
    return [name for name in program.checkpoints() if fault_of(program.run_dir / "checkpoints" / name) is None]


@pytest.mark.parametrize("mode", ["one", "fsdp_sharded"])
def test_a_disk_that_fills_up(config, whole, small_disk, mode):
    checkpoint = whole(mode).run_dir / "checkpoints" / "step-9.ckpt"
    size = sum(file.stat().st_size for file in [checkpoint, *checkpoint.glob("*")] if file.is_file())
    # Room for two checkpoints and half of the third.
    run = Program(config, small_disk(int(2.5 * size)) / "run", **MODES[mode])
    statuses, output = run.run()
    assert statuses[0] == 2, output[-3000:]
    errors = [line for line in output.splitlines() if line.startswith("klqlit: error:")]
    assert len(errors) >= 1
    # Where the room is looked at first, nothing is begun.
    assert "could not be written" in errors[0] or "Nothing was written" in errors[0]
    assert "start the same command again" in errors[0]
    assert "Traceback" not in output
    kept = whole_checkpoints(run)
    assert kept == run.checkpoints() == ["step-3.ckpt", "step-4.ckpt"]
    assert not list((run.run_dir / "checkpoints").glob(".*"))
    small_disk(20 * size)
    statuses, output = run.run()
    assert set(statuses) == {0}, output[-3000:]
    assert "step-4.ckpt" in output
    assert differences(whole(mode), run) == []


def test_a_file_that_may_not_grow(config, tmp_path):
    """The same from a limit of the process, where nothing can be mounted."""
    run = Program(config, tmp_path / "run")
    statuses, output = run.run(LIMIT_FILES="100000")
    assert statuses == [2], output[-3000:]
    assert "step-3.ckpt could not be written" in output
    assert "Traceback" not in output
    assert run.checkpoints() == []
    assert run.run()[0] == [0]
