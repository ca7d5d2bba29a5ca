"""Two models computed at the same time, with half of a CPU's threads each, there and back.

Most operators of a small model are too short to be split well over threads: one starts them while the others wait. Two
models that do not read each other keep all threads busy.
"""

import ctypes
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeVar, final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

T = TypeVar("T")

OMP_PAUSE_SOFT = 1
"""From omp.h."""


def side_by_side(first: Callable[[], Tensor], second: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
    """What both give, computed at the same time; so are their gradients.

    They reach the weights through `backward`, once; `torch.autograd.grad` does not find the weights.

    Args:
        first: computed by this thread. Both must give a tensor on the CPU, and may share neither weights nor modules.
        second: computed by another thread, under this one's autocast.
    """
    start = torch.zeros((), requires_grad=True)  # autograd does not see the weights, which are in graphs of their own
    return _SideBySide.apply(start, first, second)


@final
class _SideBySide(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, start: Tensor, first: Callable[[], Tensor], second: Callable[[], Tensor]) -> Any:
        ctx.outputs = _both(_recorded(first), _recorded(second))
        return tuple(output.detach() for output in ctx.outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        first, second = zip(ctx.outputs, gradients, strict=True)
        _both(lambda: _go_back(*first), lambda: _go_back(*second))
        return None, None, None


def _both(first: Callable[[], T], second: Callable[[], T]) -> tuple[T, T]:
    threads = torch.get_num_threads()

    def aside() -> T:
        with _threads(threads // 2):
            return second()

    other = _aside().submit(aside)
    try:
        with _threads(threads - threads // 2):
            mine = first()
    finally:
        theirs = other.result()  # on an error, too: it must not go on behind the back of what comes next
    return mine, theirs


def _recorded(compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """With gradients, which are off inside of a `Function`, and with this thread's autocast, in whatever thread."""
    autocast = torch.autocast(
        "cpu",
        dtype=torch.get_autocast_dtype("cpu"),
        enabled=torch.is_autocast_enabled("cpu"),
        cache_enabled=torch.is_autocast_cache_enabled(),
    )

    def recorded() -> Tensor:
        with torch.enable_grad(), autocast:
            return compute()

    return recorded


def _go_back(output: Tensor, gradient: Tensor) -> None:
    if output.requires_grad:  # not so where the weights are frozen
        torch.autograd.backward(output, gradient)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """The number of threads that share an operator which the calling thread starts."""
    before = torch.get_num_threads()
    _let_go_of_helpers()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        _let_go_of_helpers()
        torch.set_num_threads(before)


def _let_go_of_helpers() -> None:
    """End the OpenMP threads that help the calling one; the next operator starts them anew.

    They wait for their next operator in a loop, for milliseconds, on the cores that are now the other model's.
    """
    if (pause := _openmp_pause()) is not None:
        pause(OMP_PAUSE_SOFT)


@cache
def _openmp_pause() -> Callable[[int], int] | None:
    """OpenMP 5's `omp_pause_resource_all`; None where torch came with another library of threads."""
    try:
        return ctypes.CDLL(None).omp_pause_resource_all
    except (AttributeError, TypeError):  # not there; no such library can be asked for
        return None


@cache
def _aside() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="side_by_side")
