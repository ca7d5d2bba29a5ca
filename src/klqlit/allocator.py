"""Main memory that large tensors leave behind: kept for the next ones, or given back."""

import ctypes
import platform

# From malloc.h of the GNU C library.
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> None:
    """Tell the C library to keep what is freed, for this process and from now on.

    Otherwise each tensor of more than 32 MiB, such as the logits of a chunk or the gradient of an embedding, gets fresh
    pages from the kernel, which are cleared and faulted in again at every step: a tenth of a step's time with a large
    vocabulary on a CPU. Threads that start later share one heap: what the critic's thread frees, the policy's can use.
    Does nothing where the C library is not GNU's.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(M_ARENA_MAX, 1)


def return_freed_memory() -> None:
    """Give the kernel all pages of the heap that nothing lies in. Does nothing where the C library is not GNU's."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
