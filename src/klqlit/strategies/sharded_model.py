"""One model split over ranks with torch's `fully_shard`."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointWrapper,
    apply_activation_checkpointing,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel


@dataclass(kw_only=True, slots=True)
class Layout:
    """How a model is split.

    Attributes:
        mesh: the ranks, in one dimension.
        reshard_after_forward: free a block's gathered parameters after its forward pass.
        activation_checkpointing: keep a block's input only, and compute the block again in the backward pass.
        compute_dtype: of the gathered parameters; None for that of the slices.
        stored_dtype: of the slices; None for what they were loaded in.
        offload: keep the slices in main memory.
    """

    mesh: DeviceMesh
    reshard_after_forward: bool = True
    activation_checkpointing: bool = False
    compute_dtype: torch.dtype | None = None
    stored_dtype: torch.dtype | None = None
    offload: bool = False


@final
class ShardedModel:
    """A module whose parameters are split over ranks: a group of its own for each transformer block, one for the rest.

    Args:
        module: used by calling it and in no other way; it is split in place.
        layout: how.
    """

    def __init__(self, module: nn.Module, layout: Layout) -> None:
        self.module = module
        self.layout = layout
        if not isinstance(module, FSDPModule):
            _split(module, layout)
        self.units = [unit for unit in module.modules() if isinstance(unit, FSDPModule)]
        self.keep_gathered(False)

    @property
    def frozen(self) -> bool:
        """Whether nothing of it is trained."""
        return not any(parameter.requires_grad for parameter in self.module.parameters())

    def keep_gathered(self, keep: bool) -> None:
        """Whether the parameters stay gathered after a forward pass, or as the layout says."""
        for unit in self.units:
            # What lies outside the blocks is needed again at once, when the backward pass begins.
            last = unit is self.module and not self.frozen
            unit.set_reshard_after_forward(not (keep or last) and self.layout.reshard_after_forward, recurse=False)

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """The whole model on every rank: within, calling it needs no other rank."""
        self.keep_gathered(True)
        for unit in self.units:
            unit.unshard()
        try:
            yield
        finally:
            for unit in self.units:
                unit.reshard()
            self.keep_gathered(False)


@contextmanager
def in_step(models: Sequence[ShardedModel], device: torch.device) -> Iterator[None]:
    """Ranks may call the models unequally often; one that is done goes on gathering what the others need.

    Gathering parameters takes all ranks. So each call is announced, and a rank that leaves the `with` block takes part
    in the calls of the others until no rank announces another. All ranks call the models in the same order.
    """
    with ExitStack() as hooks:
        visited: list[list[FSDPModule]] = []
        for number, model in enumerate(models, start=1):
            visited.append([])
            _before_each_call(model, visited[-1], partial(_announce, number, device), hooks)
            for unit in model.units:
                unit.reshard()
                unit.set_reshard_after_forward(True, recurse=False)
        yield
        while number := _announce(0, device):
            for gathered in visited[number - 1]:
                gathered.unshard()
                gathered.reshard()
    for model in models:
        for unit in model.units:
            unit.reshard()
        model.keep_gathered(False)


def transformers_in(module: nn.Module) -> list[PreTrainedModel]:
    """The outermost transformers models in a module."""
    if isinstance(module, PreTrainedModel):
        return [module]
    return [model for child in module.children() for model in transformers_in(child)]


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that may be split over ranks. All ranks call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _split(module: nn.Module, layout: Layout) -> None:
    if layout.stored_dtype is not None:
        for parameter in module.parameters():  # and no buffer: rotary frequencies need their precision
            parameter.data = parameter.data.to(layout.stored_dtype)
    blocks = _blocks(module)
    if layout.activation_checkpointing:
        apply_activation_checkpointing(module, check_fn=blocks.__contains__)
        blocks = [wrapper for wrapper in module.modules() if isinstance(wrapper, CheckpointWrapper)]
    pin = layout.mesh.device_type != "cpu"
    precision = MixedPrecisionPolicy(param_dtype=layout.compute_dtype, reduce_dtype=torch.float32)
    offload = CPUOffloadPolicy(pin_memory=pin) if layout.offload else OffloadPolicy()
    for part in (*blocks, module):
        fully_shard(part, mesh=layout.mesh, mp_policy=precision, offload_policy=offload)


def _blocks(module: nn.Module) -> list[nn.Module]:
    """Transformer blocks: what transformers says must stay on one device."""
    names = {
        name
        for model in module.modules()
        if isinstance(model, PreTrainedModel)
        for name in model._no_split_modules or ()
    }
    return [block for block in module.modules() if type(block).__name__ in names]


def _before_each_call(
    model: ShardedModel, visited: list[FSDPModule], announce: Callable[[], object], hooks: ExitStack
) -> None:
    """Before each call of the model, announce it; note in which order its units are gathered."""

    def visit(unit: nn.Module, args: object) -> None:
        assert isinstance(unit, FSDPModule)
        if unit is model.module:
            announce()
            visited.clear()
        visited.append(unit)

    for unit in model.units:
        assert isinstance(unit, nn.Module)
        hooks.callback(unit.register_forward_pre_hook(visit, prepend=True).remove)


def _announce(number: int, device: torch.device) -> int:
    """The number of the model that some rank is about to call; 0 when all are done."""
    numbers = torch.tensor(number, device=device)
    dist.all_reduce(numbers, op=dist.ReduceOp.MAX)
    return int(numbers)
