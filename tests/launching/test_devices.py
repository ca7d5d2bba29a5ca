"""Whether this machine has the devices that a run asks for."""

import os

import pytest
import torch

from klqlit.launching.devices import check_accelerator, check_processes


@pytest.fixture
def gpus(monkeypatch):
    """`gpus(cuda=..., mps=...)`: what torch sees."""

    def see(*, cuda=False, mps=False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return see


@pytest.mark.parametrize("accelerator", ["gpu", "cuda", "GPU"])
def test_a_gpu_that_is_not_there_is_refused(gpus, accelerator):
    gpus()
    with pytest.raises(ValueError, match=rf"trainer\.accelerator={accelerator}, .* give --trainer\.accelerator cpu"):
        check_accelerator(accelerator)


def test_what_is_there_is_taken(gpus):
    gpus(cuda=True)
    check_accelerator("cuda")
    check_accelerator("gpu")
    gpus(mps=True)
    check_accelerator("gpu")
    gpus()
    for accelerator in ("cpu", "auto"):
        check_accelerator(accelerator)


@pytest.fixture
def two_cores(monkeypatch):
    """And no rank of a larger job."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1}, raising=False)
    for name in ("LOCAL_RANK", "SLURM_NTASKS", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("devices", [17, "99"])
def test_far_more_processes_than_cores_are_refused(two_cores, devices):
    with pytest.raises(ValueError, match=rf"trainer\.devices={devices} starts {devices} .* 2 CPU cores .* at most 16"):
        check_processes("cpu", devices)


def test_processes_that_take_turns_are_told_of(two_cores, caplog):
    for devices in ("auto", 1, "2"):
        check_processes("cpu", devices)
    assert caplog.text == ""
    check_processes("cpu", 4)
    assert "4 processes share 2 CPU cores and take turns" in caplog.text


@pytest.mark.parametrize("devices", ["x", 0, "-1", [0, 1], "0,1"])
def test_what_is_no_number_of_processes_is_refused(two_cores, devices):
    with pytest.raises(ValueError, match="on a CPU it is a number of processes"):
        check_processes("cpu", devices)


def test_other_devices_and_ranks_that_others_started_are_not_counted(two_cores, monkeypatch, caplog):
    check_processes("cuda", [0, 1])
    monkeypatch.setenv("LOCAL_RANK", "1")
    check_processes("cpu", 99)
    assert caplog.text == ""
