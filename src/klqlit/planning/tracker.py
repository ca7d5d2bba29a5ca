"""Counting the memory of tensors that are never allocated."""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@final
class Tracker(TorchDispatchMode):
    """Counts the bytes of all storages that operations make, from their making until nothing refers to them.

    Within it tensors are fake: they have shapes and kinds but no numbers, so that a model of any size runs in seconds
    through the same code as a real one. Where that code asks a tensor for a number, it is told 0 or False: no response
    has ended.

    Attributes:
        now: bytes at present.
        peak: most bytes since `restart`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self._alive: dict[int, int] = {}

    @contextmanager
    def on(self) -> Iterator["Tracker"]:
        """Fake tensors, counted."""
        with FakeTensorMode(), self:
            yield self

    def restart(self) -> int:
        """Forget the peak so far; returns the bytes at present."""
        self.peak = self.now
        return self.now

    def materialise(self, module: nn.Module) -> None:
        """Give a module that was built on the meta device counted memory."""
        made: dict[int, Tensor] = {}  # tied weights stay tied
        for part in module.modules():
            for tensors in (part._parameters, part._buffers):
                for name, old in tensors.items():
                    if old is not None:
                        tensors[name] = made.setdefault(id(old), _empty_like(old))  # type: ignore[assignment]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return False if args[0].dtype == torch.bool else 0
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._alive:
            return
        self._alive[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._release, key)

    def _release(self, key: int) -> None:
        self.now -= self._alive.pop(key, 0)


def _empty_like(old: Tensor) -> Tensor:
    new = torch.empty(old.shape, dtype=old.dtype)
    return nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
