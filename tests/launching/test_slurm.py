"""Layouts that SLURM may give a process; `tests/reliability/test_slurm.py` runs real jobs."""

import json
import os
import re
import signal

import pytest
from lightning.pytorch.plugins.environments import LightningEnvironment, SLURMEnvironment
from lightning.pytorch.plugins.precision import Precision

from klqlit.launching.slurm import OneNodeJob, devices_in_job, job_id, requeue, with_environment
from runs import make_trainer

# What srun gives the first of 2 x 4 tasks of a batch job.
STEP = {
    "SLURM_JOB_ID": "7",
    "SLURM_JOB_NAME": "klqlit",
    "SLURM_STEP_ID": "0",
    "SLURM_NTASKS": "8",
    "SLURM_NTASKS_PER_NODE": "4",
    "SLURM_NNODES": "2",
    "SLURM_PROCID": "0",
}


@pytest.fixture
def within(monkeypatch):
    """Makes the environment that of a job: `STEP` with changes; None removes."""

    def enter(**changes):
        for name in [name for name in os.environ if name.startswith("SLURM_")]:
            monkeypatch.delenv(name)
        for name, value in (STEP | changes).items():
            if value is not None:
                monkeypatch.setenv(name, value)

    return enter


@pytest.mark.parametrize(
    ("devices", "nodes", "changes"),
    [
        (4, 2, {}),
        ("4", 2, {}),
        ([0, 1, 2, 3], 2, {}),
        ("0,1,2,3", 2, {}),
        (1, 1, dict.fromkeys(STEP)),  # no SLURM
        (4, 1, dict.fromkeys(STEP)),
        (2, 1, {"SLURM_NTASKS": "1", "SLURM_JOB_NAME": "interactive"}),  # srun --pty bash
        (2, 1, {"SLURM_STEP_ID": None, "SLURM_JOB_NAME": "interactive"}),  # salloc
        (1, 1, {"SLURM_STEP_ID": None, "SLURM_NTASKS": "1", "SLURM_NNODES": "1"}),  # one task needs no srun
        (4, 1, {"SLURM_STEP_ID": None, "SLURM_NTASKS": None}),  # a job that gave no tasks: Lightning starts the ranks
        (
            4,
            2,
            {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "1", "TORCHELASTIC_RUN_ID": "1"},
        ),  # torchrun on each node
    ],
)
def test_a_layout_that_fits(within, devices, nodes, changes):
    within(**changes)
    assert devices_in_job(devices, nodes) == devices


def test_auto_means_the_tasks_of_a_node(within):
    within()
    for devices in ("auto", "-1", -1):
        assert devices_in_job(devices, 2) == 4
    within(**dict.fromkeys(STEP))
    assert devices_in_job("auto", 1) == "auto"
    within(SLURM_JOB_NAME="interactive", SLURM_NTASKS="1")
    assert devices_in_job("auto", 1) == "auto"
    within(TORCHELASTIC_RUN_ID="1")
    assert devices_in_job("auto", 2) == "auto"


@pytest.mark.parametrize(
    ("devices", "nodes", "changes", "advice"),
    [
        (1, 1, {}, "trainer.devices=1 on trainer.num_nodes=1 does not fit the SLURM job, which has 8 tasks on 2 nodes"),
        (8, 1, {}, "trainer.devices=8 on trainer.num_nodes=1"),
        (4, 2, {"SLURM_NTASKS": "7"}, "7 tasks on 2 nodes: add --config configs/slurm.yaml"),
        ([0, 1], 2, {}, "trainer.devices=[0, 1]"),
        (4, 1, {"SLURM_STEP_ID": None, "SLURM_NTASKS": "1", "SLURM_NNODES": "1"}, "1 tasks on 1 nodes"),
        (4, 2, {"SLURM_STEP_ID": None}, "write srun before python"),
        (4, 2, {"SLURM_JOB_NAME": "interactive"}, "add --job-name=klqlit to srun"),
        (4, 2, {"SLURM_JOB_NAME": "bash"}, "in a job named 'bash'"),
        (4, 2, {"SLURM_NTASKS_PER_NODE": None}, "give --ntasks-per-node instead of --ntasks"),
    ],
)
def test_a_layout_that_does_not_fit_is_explained_by_the_first_rank(within, devices, nodes, changes, advice):
    within(**changes)
    with pytest.raises(ValueError, match=re.escape(advice)):
        devices_in_job(devices, nodes)
    within(**changes, SLURM_PROCID="5")
    with pytest.raises(SystemExit) as end:
        devices_in_job(devices, nodes)
    assert end.value.code == 0


def test_lightnings_own_requeueing_is_off(within):
    within()
    precision = Precision()
    first, environment = with_environment([precision])
    assert first is precision
    assert isinstance(environment, SLURMEnvironment)
    assert not environment.auto_requeue
    assert environment.world_size() == 8


def test_ranks_of_one_node_meet_on_loopback_unless_told_otherwise(within, monkeypatch):
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    within(SLURM_NNODES="1", SLURM_NTASKS="4")
    assert isinstance(with_environment([])[0], OneNodeJob)
    within()
    assert not isinstance(with_environment([])[0], OneNodeJob)
    within(SLURM_NNODES="1", SLURM_NTASKS="4")
    monkeypatch.setenv("MASTER_ADDR", "node7")
    (environment,) = with_environment([])
    assert environment.main_address == "node7"


def test_other_environments_stay(within):
    within()
    mine = LightningEnvironment()
    assert with_environment([mine]) == [mine]
    within(SLURM_JOB_NAME="interactive")
    assert with_environment([]) == []
    within(**dict.fromkeys(STEP))
    assert with_environment([]) == []


def test_a_task_of_an_array_is_named_by_both_numbers(within):
    within()
    assert job_id() == "7"
    within(SLURM_ARRAY_JOB_ID="7", SLURM_ARRAY_TASK_ID="3")
    assert job_id() == "7_3"


@pytest.fixture
def trainer(tmp_path):
    return make_trainer(tmp_path)


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """A program named scontrol that only notes what it is asked; the notes so far."""
    program = tmp_path / "scontrol"
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/notes\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return lambda: (tmp_path / "notes").read_text() if (tmp_path / "notes").exists() else ""


def test_only_the_time_limits_signal_requeues_and_only_within_slurm(within, asked, trainer):
    within()
    for number in (signal.SIGTERM, signal.SIGINT):
        requeue(trainer, number)
    within(**dict.fromkeys(STEP))
    requeue(trainer, signal.SIGUSR1)
    assert asked() == ""
    within()
    requeue(trainer, signal.SIGUSR1)
    assert asked() == "requeue 7\n"


def test_a_job_that_came_to_no_step_is_not_queued_for_ever(within, asked, trainer, tmp_path, caplog):
    (tmp_path / "run.json").write_text(json.dumps({"starts": [{"step": 0}]}))
    within()
    requeue(trainer, signal.SIGUSR1)
    assert asked() == ""
    assert "SLURM job 7 is not queued again (it came to no step; raise --time" in caplog.text


def test_without_scontrol_the_log_says_how_to_go_on(within, monkeypatch, caplog, trainer):
    within()
    monkeypatch.setenv("PATH", "/nowhere")
    requeue(trainer, signal.SIGUSR1)
    assert "SLURM job 7 is not queued again" in caplog.text
    assert "submit it once more" in caplog.text
