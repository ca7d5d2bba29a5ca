"""Freed memory is kept, so that large tensors come back without a page fault, until it is given back."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource
import sys

import torch

from klqlit.allocator import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()
faults = []
for _ in range(24):  # blocks are aligned, so that it takes a few before one fits into what is free
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(12 * 2**20)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(faults[-8:]))
"""


OTHER_THREAD = """
import resource
import sys
from threading import Thread

import torch

from klqlit.allocator import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()


def make():
    return [torch.ones(2**20) for _ in range(64)]


thread = Thread(target=make)
thread.start()
thread.join()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
made = make()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not GNU's")


def faults(option, program=PROGRAM):
    command = [sys.executable, "-c", program, option]
    return int(subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout)


def test_memory_of_a_large_tensor_is_not_faulted_in_again():
    """48 MiB are 12,288 pages of 4 KiB, or 24 huge ones."""
    assert faults("keep") < faults("give back") / 2


def test_memory_that_one_thread_freed_serves_another():
    """256 MiB are 65,536 pages of 4 KiB, or 128 huge ones."""
    assert faults("keep", OTHER_THREAD) < faults("give back", OTHER_THREAD) / 2


RETURNED = """
from pathlib import Path

import torch

from klqlit.allocator import keep_freed_memory, return_freed_memory


def resident():
    return int(Path("/proc/self/smaps_rollup").read_text().split("Rss:")[1].split()[0]) * 1024


keep_freed_memory()
large = [torch.ones(2**20) for _ in range(64)]
behind = torch.ones(16)  # so that not only the end of the heap is given back
before = resident()
del large
kept = resident()
return_freed_memory()
print(before - kept, before - resident())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what is resident")
def test_freed_memory_goes_back_when_it_is_asked_for():
    """256 MiB, of which nothing went back before."""
    done = subprocess.run([sys.executable, "-c", RETURNED], check=True, capture_output=True, text=True, timeout=120)
    kept, returned = (int(number) / 2**20 for number in done.stdout.split())
    assert kept < 8
    assert returned > 240
