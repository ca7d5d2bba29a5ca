"""Freed memory is kept: large tensors come back without a page fault. Fresh memory lies on huge pages."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from klqlit.allocator import use_huge_pages

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


def faults(option):
    program = [sys.executable, "-c", PROGRAM, option]
    return int(subprocess.run(program, check=True, capture_output=True, text=True, timeout=120).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not GNU's")
def test_memory_of_a_large_tensor_is_not_faulted_in_again():
    """48 MiB are 12,288 pages of 4 KiB, or 24 huge ones."""
    assert faults("keep") < faults("give back") / 2


FRESH = """
import resource
import sys

from klqlit.allocator import use_huge_pages

if sys.argv[1] == "huge":
    use_huge_pages()
import torch

before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(12 * 2**20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

FIRST = """
import os
import sys

from klqlit import cli


class Watch:
    def find_spec(self, name, *rest):
        if name == "torch":
            print(os.environ.get("THP_MEM_ALLOC_ENABLE"), flush=True)
            os._exit(0)


assert "torch" not in sys.modules
sys.meta_path.insert(0, Watch())
cli.main(["fit"])
"""


def run(program, *options):
    clean = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}
    done = subprocess.run(
        [sys.executable, "-c", program, *options], check=True, capture_output=True, text=True, timeout=120, env=clean
    )
    return done.stdout.strip()


def huge_pages():
    file = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    return file.exists() and "[never]" not in file.read_text()


@pytest.mark.skipif(not huge_pages(), reason="this kernel gives no huge pages")
def test_fresh_memory_lies_on_huge_pages():
    assert int(run(FRESH, "huge")) < int(run(FRESH, "small")) / 2


def test_the_command_line_asks_for_them_before_it_imports_torch():
    assert run(FIRST) == "1"


def test_what_the_environment_says_stays(monkeypatch):
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")
    use_huge_pages()
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "0"
