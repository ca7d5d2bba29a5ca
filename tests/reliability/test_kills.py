"""A run that is killed again and again ends as if nothing had happened: weights, optimizer, metrics, samples."""

import signal
import subprocess
import sys
import time

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from reliability.programs import MODES, Program, differences, environment_of

pytestmark = pytest.mark.slow

# Several kills one after another: a restart costs seconds. "sampling" is a little after a phase began.
KILLS = {
    "one": [
        "KILL batch 2 0",
        "TERM batch 2 0",
        "USR1 sampling 4 0",
        "KILL validation 4 0",
        "INT validation 4 0",
        "KILL writing 8 0",
        "KILL renaming 8 0",
        "KILL deleting 9 0",
        "KILL epoch_end 12 0",
    ],
    "accumulate": ["TERM batch 1 0", "KILL batch 5 0", "USR1 start 0 0", "USR1 batch 6 0", "KILL sampling 8 0"],
    "ddp": ["USR1 batch 1 1", "KILL batch 4 1", "KILL renaming 3 0", "TERM validation 4 1", "KILL sampling 8 0"],
    "fsdp_full": ["TERM batch 2 1", "KILL writing 4 0", "KILL batch 10 1"],
    "fsdp_sharded": ["INT batch 2 0", "KILL writing 4 1", "KILL renaming 4 0", "KILL deleting 8 0"],
}


@pytest.mark.parametrize("mode", KILLS)
def test_a_run_killed_many_times_ends_as_if_it_had_not_been(config, whole, tmp_path, mode):
    killed = Program(config, tmp_path / "killed", **MODES[mode])
    for kill in KILLS[mode]:
        name, _, _, rank = kill.split()
        statuses, output = killed.run(kill)
        if name == "KILL":
            assert statuses[int(rank)] == -signal.SIGKILL, (kill, statuses, output[-3000:])
            assert killed.state in ("running", "stopped")
        else:
            # The first rank reports the signal, whichever of them it came to.
            assert statuses == [128 + signal.Signals[f"SIG{name}"]] + [0] * (killed.ranks - 1), (kill, output[-3000:])
            assert f"stopped by SIG{name} after step" in output
            assert killed.state == "stopped"
    statuses, output = killed.run()
    assert set(statuses) == {0}, output[-3000:]
    assert killed.state == "finished"
    assert differences(whole(mode), killed) == []
    assert len(killed.checkpoints()) == 2
    assert not list((killed.run_dir / "checkpoints").glob(".*"))
    assert scalars(killed) == scalars(whole(mode))


def scalars(program):
    """What TensorBoard shows, times aside."""
    events = EventAccumulator(str(program.run_dir), size_guidance={"scalars": 0}).Reload()
    names = [name for name in events.Tags()["scalars"] if not name.startswith("time/")]
    assert "train/loss" in names
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in names}


def test_a_finished_run_says_so_and_goes_on_when_it_gets_longer(config, whole, tmp_path):
    run = Program(config, tmp_path / "run", ["--trainer.max_epochs=2"])
    assert run.run()[0] == [0]
    before = run.rows("metrics.jsonl")
    statuses, output = run.run()
    assert statuses == [0]
    assert "is finished (step 8): nothing is left to do. Raise trainer.max_epochs" in output
    assert run.rows("metrics.jsonl") == before
    run.options = []
    statuses, output = run.run()
    assert statuses == [0]
    assert "  trainer.max_epochs: 2 -> 3" in output
    assert [row["step"] for row in run.rows("metrics.jsonl")] == [
        row["step"] for row in whole("one").rows("metrics.jsonl")
    ]


def test_supervised_finetuning_logs_each_step_once(config, tmp_path):
    """It logs a row a step, so that a checkpoint and its row are a moment apart."""
    config = config.with_name("finetuning.yaml")
    whole, killed = Program(config, tmp_path / "whole"), Program(config, tmp_path / "killed")
    assert whole.run()[0] == [0]
    for kill in ("TERM batch 1 0", "KILL renaming 3 0", "KILL deleting 4 0", "USR1 batch 5 0", "KILL validation 9 0"):
        assert killed.run(kill)[0] != [0]
    assert killed.run()[0] == [0]
    assert differences(whole, killed) == []
    assert [row["step"] for row in killed.rows("metrics.jsonl") if "train/loss" in row] == [*range(10)]


def test_a_run_goes_on_with_another_number_of_processes(config, whole, tmp_path):
    """Sharded over two, then whole on one in the middle of a phase, then sharded again: equal up to rounding."""
    run = Program(config, tmp_path / "run", **MODES["fsdp_sharded"])
    assert run.run("TERM batch 6 0")[0] == [143, 0]
    alone = Program(config, run.run_dir)
    statuses, output = alone.run("TERM batch 9 0")
    assert statuses == [143], output[-3000:]
    assert "  trainer.devices: 2 -> 1" in output
    assert run.run()[0] == [0, 0]
    for one, other in zip(run.rows("metrics.jsonl"), whole("one").rows("metrics.jsonl"), strict=True):
        assert one.keys() == other.keys()
        # In the phase in which the number changes, a step's norm weighs as often as it had ranks.
        names = [name for name in one if not name.endswith("_grad_norm")]
        assert [one[name] for name in names] == pytest.approx([other[name] for name in names], rel=1e-3, abs=1e-4)


def test_two_processes_as_a_user_starts_them(config, whole, tmp_path):
    """One command, whose process starts the other rank; the signal comes to the one the user sees."""
    stopped = Program(config, tmp_path / "run", MODES["ddp"]["options"])
    command = [sys.executable, "-m", "klqlit", *stopped.arguments()]
    for kill in (signal.SIGTERM, None):
        process = subprocess.Popen(
            command, env=environment_of({}), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        if kill:
            while process.poll() is None and not (stopped.run_dir / "metrics.jsonl").exists():
                time.sleep(0.01)
            process.send_signal(kill)
        output, _ = process.communicate(timeout=300)
        assert process.returncode == (128 + kill if kill else 0), output[-3000:]
    assert differences(whole("ddp"), stopped) == []
