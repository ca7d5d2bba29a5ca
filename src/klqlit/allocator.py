"""Main memory for large tensors: on huge pages, and kept for the next ones when they leave it behind."""

import ctypes
import os
import platform

# From malloc.h of the GNU C library.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4

HUGE_PAGES = {"THP_MEM_ALLOC_ENABLE": "1"}
"""PyTorch reads it when it makes the first tensor of the process."""


def use_huge_pages() -> None:
    """Let PyTorch ask Linux for pages of 2 MiB under large tensors, unless the environment says otherwise.

    A fresh block then costs one fault in 2 MiB instead of 512. To be called before torch is imported. Does nothing
    where /sys/kernel/mm/transparent_hugepage/enabled says `never`.
    """
    for name, value in HUGE_PAGES.items():
        os.environ.setdefault(name, value)


def keep_freed_memory() -> None:
    """Tell the C library to keep what is freed, for this process and from now on.

    Otherwise each tensor of more than 32 MiB, such as the logits of a chunk or the gradient of an embedding, gets fresh
    pages from the kernel, which are cleared and faulted in again at every step: a tenth of a step's time with a large
    vocabulary on a CPU. Does nothing where the C library is not GNU's.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
