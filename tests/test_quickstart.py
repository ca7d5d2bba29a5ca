"""Ctrl-C in the quickstart reaches it and the stages under way."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

STAGE = """
import signal, sys, time
from pathlib import Path

def save(*_):
    time.sleep(1)  # longer than Python waits for a program that it then kills
    Path("saved-{stage}").touch()
    sys.exit(130)

signal.signal(signal.SIGINT, save)
Path("started-{stage}").touch()
print("step 1", flush=True)
time.sleep(60)
"""
"""A program in place of a stage: it saves when it is told to stop."""

DRIVER = f"""
import sys
sys.path.insert(0, {str(BENCHMARKS)!r})
import quickstart

def command(task, stage, runs, **options):
    return [sys.executable, "-c", {STAGE!r}.format(stage=stage)]

quickstart.command = command
quickstart.main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(("done", "stopped"), [((), ("sft",)), (("sft", "reward"), ("klq", "ppo"))])
def test_ctrl_c_lets_stages_save_and_says_how_to_go_on(tmp_path, done, stopped):
    for stage in done:
        (tmp_path / "runs" / "mini_hh" / stage / "model").mkdir(parents=True)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    # A session of its own, as in a terminal: Ctrl-C goes to all of its processes.
    with subprocess.Popen([sys.executable, "-c", DRIVER], cwd=tmp_path, start_new_session=True, **pipes) as process:
        while not all((tmp_path / f"started-{stage}").exists() for stage in stopped):
            assert process.poll() is None, process.stdout.read()
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        shown, _ = process.communicate(timeout=60)
    assert process.returncode == 130, shown
    assert all((tmp_path / f"saved-{stage}").exists() for stage in stopped)
    assert shown.endswith("stopped; the same command goes on from here\n")
    assert "Traceback" not in shown
