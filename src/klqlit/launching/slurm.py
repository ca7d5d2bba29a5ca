"""What a run must know of the SLURM job it is part of: the layout of its ranks, and how to be queued again."""

import os
import signal
import subprocess
from typing import Any, final

import lightning as L
from lightning.fabric.plugins.environments import ClusterEnvironment
from lightning.pytorch.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch.utilities import rank_zero_info
from torch.distributed import TCPStore

from klqlit.callbacks.run_record import read
from klqlit.launching.devices import count
from klqlit.launching.loopback import HOST, listen, meet_there

NOT_STARTED = "the SLURM job has {tasks} tasks, but this process was not started by srun: write srun before python"
UNNAMED = (
    "srun starts {tasks} tasks in a job named {name!r}, which Lightning takes for a shell, so that each would be a run "
    "of its own: add --job-name=klqlit to srun"
)
NOT_PER_NODE = "the SLURM job has {tasks} tasks, but not how many a node: give --ntasks-per-node instead of --ntasks"
NO_STEP = "it came to no step; raise --time, or lower the seconds of --signal"
WRONG_LAYOUT = (
    "trainer.devices={devices} on trainer.num_nodes={num_nodes} does not fit the SLURM job, which has {tasks} tasks on "
    "{nodes} nodes: add --config configs/slurm.yaml, which takes both from the job, or make devices the tasks of a node"
)


@final
class OneNodeJob(SLURMEnvironment):
    """Lightning's view of a job of one node, whose ranks meet on the loopback interface.

    Left alone, torch's store, through which ranks find each other, listens on every interface. Here the first rank
    makes it, and all of them, itself too, are told to use it as torchrun tells its workers.
    """

    def __init__(self) -> None:
        super().__init__(auto_requeue=False)
        self._store: TCPStore | None = None

    @property
    def main_address(self) -> str:
        return HOST

    @property
    def main_port(self) -> int:
        port = super().main_port
        if self._store is None and self.global_rank() == 0:
            self._store = listen(port)
        meet_there()
        return port


def with_environment(plugins: list[Any]) -> list[Any]:
    """The trainer's plugins and, where this process is a rank of a job, Lightning's view of the job.

    Lightning's own requeueing is off: it saves within the signal's handler, where ranks may wait for each other for
    ever. Ranks of several nodes, and where `MASTER_ADDR` is set, meet at the address that Lightning finds.
    """
    given = any(isinstance(plugin, ClusterEnvironment) for plugin in plugins)
    if given or TorchElasticEnvironment.detect() or not SLURMEnvironment.detect():
        return plugins
    alone = os.environ.get("SLURM_NNODES", "1") == "1" and "MASTER_ADDR" not in os.environ
    return [*plugins, OneNodeJob() if alone else SLURMEnvironment(auto_requeue=False)]


def devices_in_job(devices: int | str | list[int], num_nodes: int) -> int | str | list[int]:
    """The trainer's devices: as given, except that in a SLURM job "auto" and -1 are the tasks of a node.

    That they are as many as the job has tasks is seen here, before anything is loaded. Ranks that wait for one that
    never comes would hang without a word.

    Raises:
        ValueError: they are not, on the first rank. The others exit, so that a mistake is reported once.
    """
    if devices in ("auto", "-1", -1) and SLURMEnvironment.detect() and not TorchElasticEnvironment.detect():
        devices = int(os.environ.get("SLURM_NTASKS_PER_NODE", os.environ["SLURM_NTASKS"]))
    problem = layout_problem(devices, num_nodes)
    if problem and os.environ.get("SLURM_PROCID", "0") != "0":
        raise SystemExit(0)  # another status would end the first rank before it has spoken
    if problem:
        raise ValueError(problem)
    return devices


def layout_problem(devices: int | str | list[int], num_nodes: int) -> str | None:
    """What is wrong with how SLURM started this process; None outside SLURM and under torchrun."""
    if "SLURM_NTASKS" not in os.environ or TorchElasticEnvironment.detect():
        return None
    tasks, started_by_srun = int(os.environ["SLURM_NTASKS"]), "SLURM_STEP_ID" in os.environ
    if (name := os.environ.get("SLURM_JOB_NAME")) in ("bash", "interactive"):
        # In such a shell itself, Lightning starts the ranks of this node.
        return UNNAMED.format(tasks=tasks, name=name) if started_by_srun and tasks > 1 else None
    if tasks > 1 and not started_by_srun:
        return NOT_STARTED.format(tasks=tasks)
    if tasks > 1 and "SLURM_NTASKS_PER_NODE" not in os.environ:
        return NOT_PER_NODE.format(tasks=tasks)
    nodes = int(os.environ.get("SLURM_NNODES", "1"))
    if count(devices) * num_nodes == tasks and num_nodes == nodes:
        return None
    return WRONG_LAYOUT.format(devices=devices, num_nodes=num_nodes, tasks=tasks, nodes=nodes)


def requeue(trainer: L.Trainer, received: signal.Signals) -> None:
    """Queue the job again after SIGUSR1, the signal for "time is nearly up" (`#SBATCH --signal=USR1@300`).

    Nothing happens outside SLURM and after other signals: `scancel` means that the job is to end. A job that was
    submitted with `--no-requeue`, one without a batch script, and one that has not taken a step stays out of the queue,
    and the log says so.

    Args:
        trainer: of the run, which has saved a checkpoint.
        received: why it stops.
    """
    if received != signal.SIGUSR1 or "SLURM_JOB_ID" not in os.environ:
        return
    starts = read(trainer).get("starts", [])
    if starts and starts[-1]["step"] == trainer.global_step:
        fault: str | None = NO_STEP
    else:
        fault = _ask_scontrol()
    if fault is None:
        rank_zero_info(f"SLURM job {job_id()} is queued again")
    else:
        rank_zero_info(f"SLURM job {job_id()} is not queued again ({fault}): submit it once more to go on")


def _ask_scontrol() -> str | None:
    """Queue the job again; what went wrong, if it did."""
    try:
        done = subprocess.run(["scontrol", "requeue", job_id()], capture_output=True, text=True, timeout=120)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return done.stderr.strip() if done.returncode else None


def job_id() -> str:
    """What `scontrol` calls this job. The plain number of an array's last task would stand for the whole array."""
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ["SLURM_JOB_ID"]
