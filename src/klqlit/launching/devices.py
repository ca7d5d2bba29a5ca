"""Whether this machine has the devices that a run asks for."""

import os
from typing import Any

import torch
from lightning.pytorch.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch.utilities import rank_zero_info

MOST_PER_CORE = 8
"""Processes: more can hardly be meant, and only to start them takes all memory."""


def count(devices: int | str | list[int]) -> int:
    """How many devices `trainer.devices` asks for: a number, or indices as a list or separated by commas.

    Raises:
        ValueError: it is none of these.
    """
    if isinstance(devices, str) and "," in devices:
        found = len([index for index in devices.split(",") if index.strip()])
    elif isinstance(devices, list):
        found = len(devices)
    else:
        found = int(devices) if str(devices).isdigit() else 0
    if found < 1:
        raise ValueError(f"trainer.devices={devices}: give a number of devices, such as 1, indices as 0,1, or auto")
    return found


def check_accelerator(accelerator: Any) -> None:
    """See that torch has the GPU that `trainer.accelerator` names, before anything is built for it.

    Raises:
        ValueError: it sees none.
    """
    here = {"cuda": torch.cuda.is_available()}
    here["gpu"] = here["cuda"] or torch.backends.mps.is_available()
    if isinstance(accelerator, str) and not here.get(accelerator.lower(), True):
        raise ValueError(
            f"trainer.accelerator={accelerator}, but torch sees no GPU here: give --trainer.accelerator cpu, or "
            "install a torch for this machine's GPU"
        )


def check_processes(accelerator: Any, devices: Any) -> None:
    """See that the processes that Lightning will start on a CPU have cores to run on.

    More processes than cores take turns, which is slow, and said. Several of them on one core may be meant, as in a
    trial of several ranks on a small machine.

    Raises:
        ValueError: `trainer.devices` is no number of processes, or far too large a one.
    """
    if accelerator != "cpu" or devices == "auto":
        return
    if not str(devices).isdigit() or int(devices) < 1:
        raise ValueError(f"trainer.devices={devices}: on a CPU it is a number of processes, such as 1, or auto")
    if SLURMEnvironment.detect() or TorchElasticEnvironment.detect() or "LOCAL_RANK" in os.environ:
        return  # who started this process gave it its cores
    processes, cores = int(devices), _cores()
    if processes > MOST_PER_CORE * cores:
        raise ValueError(
            f"trainer.devices={processes} starts {processes} processes on the {cores} CPU cores that this one may use: "
            f"give at most {MOST_PER_CORE * cores}, better {cores} or fewer"
        )
    if processes > cores:
        rank_zero_info(
            f"{processes} processes share {cores} CPU cores and take turns: fewer trainer.devices are faster"
        )


def _cores() -> int:
    """Those that this process may use; of the whole machine where the system does not say."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # Linux alone has it
        return os.cpu_count() or 1
