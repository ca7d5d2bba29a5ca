"""Running code at its true sizes without its numbers, and counting the memory it would take."""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from klqlit.models.loading import shapes_only

aten = torch.ops.aten


@final
class Tracker(TorchDispatchMode):
    """Counts the bytes of all floating-point storages from their making until nothing refers to them.

    Within it, floating-point tensors have shapes and no numbers: a model of any size goes in seconds through the code
    that a run goes through. Masks and positions, by which that code takes decisions, are real. Where an integer or a
    truth value would be made of numbers that are not there, all of it is `filler`: as a drawn token it ends nothing.

    Args:
        filler: a token that is not the end of a response.

    Attributes:
        now: bytes at present.
        peak: most bytes since `restart`.
        gradients: bytes of gradients at present; whoever makes them counts them.
        gradients_at_peak: the same at the peak.
    """

    def __init__(self, filler: int) -> None:
        super().__init__()
        self.filler = filler
        self.now = 0
        self.peak = 0
        self.gradients = 0
        self.gradients_at_peak = 0
        self._alive: dict[int, int] = {}
        self._shapes = FakeTensorMode(allow_non_fake_inputs=True)

    def restart(self) -> int:
        """Forget the peak so far; returns the bytes at present."""
        self.peak, self.gradients_at_peak = self.now, self.gradients
        return self.now

    def materialise(self, module: nn.Module, dtype: torch.dtype | None = None) -> None:
        """Give a module that was built without memory (`building`) counted tensors, of `dtype` where it is given."""
        made: dict[int, Tensor] = {}  # tied weights stay tied
        for part in module.modules():
            for tensors in (part._parameters, part._buffers):
                for name, old in tensors.items():
                    if old is not None and old.device.type == "meta":
                        made[id(old)] = made[id(old)] if id(old) in made else _empty_like(old, dtype)
                        tensors[name] = made[id(old)]  # type: ignore[assignment]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (aten._local_scalar_dense.default, aten.equal.default) and _hollow(args):
            return True
        if not _hollow((args, kwargs)) and not _makes_floats(func, args, kwargs):
            return func(*args, **kwargs)  # on real numbers, few: they stay real
        if func in (aten.index.Tensor, aten.index_put_.default, aten.index_put.default):
            args = (args[0], [i for index in args[1] for i in _as_positions(index)], *args[2:])
        if _mutates(func) and not _hollow(args[0]):
            return args[0]  # a few numbers a token, kept beside: whatever is written there is not there
        with self._shapes:
            out = _grouped_products(*args, **kwargs) if func is aten._grouped_mm.default else func(*args, **kwargs)
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        return tree_map_only(FakeTensor, self._decided, out)

    def _decided(self, x: FakeTensor) -> Tensor:
        if x.is_floating_point() or x.device.type == "meta":
            return x
        return torch.full(x.shape, True if x.dtype == torch.bool else self.filler, dtype=x.dtype)

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._alive:
            return
        self._alive[key] = storage.nbytes()
        self.now += storage.nbytes()
        if self.now > self.peak:
            self.peak, self.gradients_at_peak = self.now, self.gradients
        weakref.finalize(storage, self._release, key)

    def _release(self, key: int) -> None:
        self.now -= self._alive.pop(key, 0)


@contextmanager
def building() -> Iterator[None]:
    """Within it, models are built without memory and without their weights."""
    with shapes_only(), torch.device("meta"), _Unread():
        yield


@final
class _Unread(TorchDispatchMode):
    """Answers True where a decision is asked of numbers that are not there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (aten._local_scalar_dense.default, aten.equal.default):
            return True
        if func is aten._grouped_mm.default:
            return _grouped_products(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _grouped_products(a: Tensor, b: Tensor, offs: Tensor | None = None, *others: Any, **options: Any) -> Tensor:
    """What experts make of their tokens: PyTorch knows its shape in one type only.

    Without a dimension of its own for groups, rows or columns lie one group after the other, up to `offs`.
    """
    shape = [a.shape[-2], b.shape[-1]]
    if a.ndim == b.ndim:
        # Both hold groups, side by side or along what is summed over: a product of each.
        shape.insert(0, a.shape[0] if offs is None else offs.shape[0])
    return a.new_empty(shape)


def _hollow(tree: Any) -> bool:
    return any(
        isinstance(leaf, FakeTensor) or (isinstance(leaf, Tensor) and leaf.is_meta) for leaf in tree_leaves(tree)
    )


def _makes_floats(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether it makes a floating-point tensor of no tensor."""
    if any(isinstance(leaf, Tensor) for leaf in tree_leaves((args, kwargs))):
        return False
    dtype = kwargs.get("dtype")
    return dtype.is_floating_point if dtype is not None else func in (aten.rand.default, aten.empty.memory_format)


def _mutates(func: Any) -> bool:
    return func._schema.is_mutable and len(func._schema.arguments) > 0 and func._schema.arguments[0].is_write


def _as_positions(index: Tensor | None) -> list[Tensor | None]:
    """A mask among indices as the positions it stands for: their number must be known."""
    if index is None or isinstance(index, FakeTensor) or index.dtype != torch.bool:
        return [index]
    return list(index.nonzero(as_tuple=True))


def _empty_like(old: Tensor, dtype: torch.dtype | None) -> Tensor:
    if not old.is_floating_point():
        return torch.zeros(old.shape, dtype=old.dtype)
    new = torch.empty(old.shape, dtype=dtype or old.dtype)
    return nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
