"""One model split over ranks with torch's `fully_shard`."""

from collections.abc import Callable, Collection, Iterator, Sequence
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
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from klqlit.models.blocks import transformer_blocks


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
        module: what is split, in place.
        layout: how.
        methods: by which it is used, besides calling it.
    """

    def __init__(self, module: nn.Module, layout: Layout, methods: Sequence[str] = ()) -> None:
        if not isinstance(module, FSDPModule):
            _split(module, layout)
            for method in methods:
                register_fsdp_forward_method(module, method)
        assert isinstance(module, FSDPModule)
        self.root = module
        self.layout = layout
        self.blocks = [block for block in module.modules() if isinstance(block, FSDPModule) and block is not module]
        self.keep_gathered(False)

    @property
    def module(self) -> nn.Module:
        """The module that is split."""
        assert isinstance(self.root, nn.Module)
        return self.root

    @property
    def trunks(self) -> list[PreTrainedModel]:
        """The innermost transformers models, which run the blocks."""
        models = [model for model in self.module.modules() if isinstance(model, PreTrainedModel)]
        return [model for model in models if not any(inner in models for inner in list(model.modules())[1:])]

    @property
    def frozen(self) -> bool:
        """Whether nothing of it is trained."""
        return not any(parameter.requires_grad for parameter in self.module.parameters())

    def keep_gathered(self, keep: bool) -> None:
        """Whether blocks stay gathered after their forward pass, or as the layout says."""
        for block in self.blocks:
            block.set_reshard_after_forward(self.layout.reshard_after_forward and not keep, recurse=False)
        # What lies outside the blocks is needed again at once, when the backward pass begins.
        self.root.set_reshard_after_forward(self.frozen and not keep, recurse=False)

    def reshard(self) -> None:
        """Free what is gathered."""
        for unit in (self.root, *self.blocks):
            unit.reshard()
        self.keep_gathered(False)

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """The whole model on every rank: within, using it needs no other rank."""
        self.keep_gathered(True)
        for unit in (self.root, *self.blocks):
            unit.unshard()
        try:
            yield
        finally:
            self.reshard()


@contextmanager
def in_step(models: Sequence[ShardedModel], device: torch.device) -> Iterator[None]:
    """Ranks may use the models unequally often; one that is done goes on gathering what the others need.

    What lies outside the blocks, such as the embeddings, is gathered once. Gathering a block takes all ranks. So each
    pass through the blocks is announced, and a rank that leaves the `with` block takes part in the passes of the others
    until no rank announces another. All ranks use the models in the same order.
    """
    passes: list[list[FSDPModule]] = []
    with ExitStack() as hooks:
        for model in models:
            model.keep_gathered(True)
            model.root.unshard()
            for block in model.blocks:
                block.set_reshard_after_forward(True, recurse=False)
            for trunk in model.trunks:
                passes.append([])
                _watch(trunk, passes[-1], partial(_announce, len(passes), device), hooks)
        yield
        while number := _announce(0, device):
            for gathered in passes[number - 1]:
                gathered.unshard()
                gathered.reshard()
    for model in models:
        model.reshard()


@contextmanager
def set_aside(module: nn.Module, parts: Collection[nn.Module]) -> Iterator[None]:
    """Within, `module` is without the given parts of it, wherever they stand."""
    # By identity: a metric claims to be equal to everything.
    chosen = {id(part) for part in parts}
    places = [
        (parent, name, part)
        for parent in module.modules()
        for name, part in parent.named_children()
        if id(part) in chosen
    ]
    for parent, name, _ in places:
        parent.register_module(name, None)
    try:
        yield
    finally:
        for parent, name, part in places:
            parent.register_module(name, part)


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
    blocks = transformer_blocks(module)
    if layout.activation_checkpointing:
        apply_activation_checkpointing(module, check_fn=blocks.__contains__)
        blocks = [wrapper for wrapper in module.modules() if isinstance(wrapper, CheckpointWrapper)]
    pin = layout.mesh.device_type != "cpu"
    precision = MixedPrecisionPolicy(param_dtype=layout.compute_dtype, reduce_dtype=torch.float32)
    offload = CPUOffloadPolicy(pin_memory=pin) if layout.offload else OffloadPolicy()
    for part in (*blocks, module):
        fully_shard(part, mesh=layout.mesh, mp_policy=precision, offload_policy=offload)


def _watch(trunk: nn.Module, blocks: list[FSDPModule], announce: Callable[[], object], hooks: ExitStack) -> None:
    """Announce each pass through the blocks of a trunk, and note their order."""

    def begin(module: nn.Module, args: object) -> None:
        announce()
        blocks.clear()

    def visit(module: nn.Module, args: object) -> None:
        assert isinstance(module, FSDPModule)
        blocks.append(module)

    hooks.callback(trunk.register_forward_pre_hook(begin, prepend=True).remove)
    for block in trunk.modules():
        if isinstance(block, FSDPModule) and block is not trunk:
            hooks.callback(block.register_forward_pre_hook(visit, prepend=True).remove)


def _announce(number: int, device: torch.device) -> int:
    """The number of the trunk that some rank is about to pass; 0 when all are done."""
    numbers = torch.tensor(number, device=device)
    dist.all_reduce(numbers, op=dist.ReduceOp.MAX)
    return int(numbers)
