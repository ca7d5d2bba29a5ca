"""A step of decoding whose shapes do not change from token to token, so that a GPU can replay it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from klqlit.models.cache import ReservedCache, ReservedLayer
from klqlit.models.positions import positions, takes_positions

BACKENDS = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH]
"""For one query under a mask; PyTorch would try cuDNN first, which takes a fifth longer."""

REPEATED = 2**29
"""Bytes of a layer's keys and values at most, where each is repeated for a group of queries: transformers does so under
a mask, in memory. On an H200 copies of 0.4 GiB cost less than starting kernels from Python, and of 0.9 GiB more."""


@final
class FixedStep:
    """From one token a row to the logits of the next, reading all positions that the cache has reserved, under a mask.

    On a GPU the first call records its kernels as a CUDA graph, and the following ones replay it: Python takes longer
    to start the kernels of a token than the GPU to run them. The weights must stay where they are meanwhile.

    Args:
        forward: logits ``[B, V]`` of the token that follows, from the arguments of a transformers model.
        key_values: what was read so far; nobody else may change it while this lives.
        layers: all of its layers.
        rows: B.
    """

    def __init__(
        self,
        forward: Callable[..., Float[Tensor, "B V"]],
        key_values: ReservedCache,
        layers: list[ReservedLayer],
        rows: int,
    ) -> None:
        self._layers = layers
        (self._room,) = {layer.reserve() for layer in layers}
        device = layers[0].device
        self._tokens = torch.zeros((rows, 1), dtype=torch.long, device=device)
        self._positions = torch.zeros_like(self._tokens)
        self._column = torch.zeros(1, dtype=torch.long, device=device)
        self._mask = torch.zeros((rows, 1, 1, self._room), dtype=torch.bool, device=device)
        self._forward = forward
        self._inputs: dict[str, Any] = {
            "input_ids": self._tokens,
            "position_ids": self._positions,
            "attention_mask": self._mask,
            "past_key_values": key_values,
            "use_cache": True,
        }
        self._graph: torch.cuda.CUDAGraph | None = None
        self._logits: Tensor | None = None
        self._asks = False

    def has_room(self, mask: Bool[Tensor, "B S"]) -> bool:
        """Whether a token that ends `mask` still fits."""
        return mask.shape[1] <= self._room

    def __call__(self, tokens: Int[Tensor, "B 1"], mask: Bool[Tensor, "B S"]) -> Float[Tensor, "B V"]:
        """As `Policy.decode`; the logits are overwritten by the next call."""
        self._tokens.copy_(tokens)
        self._positions.copy_(positions(mask)[:, -1:])
        self._mask[:, 0, 0, : mask.shape[1]] = mask
        self._column.fill_(mask.shape[1] - 1)
        if self._graph is None and self._tokens.is_cuda and not self._asks:
            self._record()
        if self._graph is not None:
            self._graph.replay()
        else:
            self._logits = self._compute()
        for layer in self._layers:
            layer.advance(1)
        assert self._logits is not None
        return self._logits

    def _record(self) -> None:
        stream, owner = _workshop()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            # Libraries take their memory and choose their kernels now; what is written will be written once more.
            with _Asks() as watch:
                self._compute()
            self._asks = watch.asked
            if not self._asks:
                graph = torch.cuda.CUDAGraph()
                with _recording(graph, owner.pool()):
                    self._logits = self._compute()
                self._graph = graph
        torch.cuda.current_stream().wait_stream(stream)

    def _compute(self) -> Float[Tensor, "B V"]:
        for layer in self._layers:
            layer.column = self._column
        try:
            with sdpa_kernel(BACKENDS, set_priority=True):
                return self._forward(**self._inputs)
        finally:
            for layer in self._layers:
                layer.column = None


def fixed_step(
    model: PreTrainedModel, forward: Callable[..., Float[Tensor, "B V"]], key_values: ReservedCache, rows: int
) -> FixedStep | None:
    """None where it cannot be recorded, or would be slower than the usual step."""
    layers = key_values.reserved_layers
    if (
        layers is None
        # transformers knows which models can be recorded whole.
        or not model._can_compile_fullgraph
        or model.config._attn_implementation != "sdpa"
        or not takes_positions(model)
        or _repeated_bytes(model, layers[0], rows) > REPEATED
        # Sharded blocks gather their weights as they go.
        or any(isinstance(module, FSDPModule) for module in model.modules())
    ):
        return None
    return FixedStep(forward, key_values, layers, rows)


def _repeated_bytes(model: PreTrainedModel, layer: ReservedLayer, rows: int) -> int:
    """Of keys and values, one for each head of the queries; 0 where there are as many anyway."""
    assert layer.keys is not None
    _, groups, _, size = layer.keys.shape
    heads = model.config.get_text_config(decoder=True).num_attention_heads
    return 0 if heads == groups else 2 * rows * heads * layer.reserve() * size * layer.keys.element_size()


@contextmanager
def _recording(graph: torch.cuda.CUDAGraph, memory: Any) -> Iterator[None]:
    """As torch.cuda.graph(), which gives all free memory back first, and lets no other thread use the GPU meanwhile."""
    try:
        graph.capture_begin(memory, capture_error_mode="thread_local")
        try:
            yield
        finally:
            graph.capture_end()
    except torch.cuda.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise RuntimeError(
            f"the decoding of a token could not be recorded as a CUDA graph: {error}. Set policy.attn_implementation "
            "to eager, with which nothing is recorded"
        ) from error


@final
class _Asks(TorchDispatchMode):
    """Sees whether the CPU asks for a number, which a recording cannot give."""

    asked = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.asked |= func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@cache
def _workshop() -> tuple[torch.cuda.Stream, torch.cuda.CUDAGraph]:
    """The stream that records, and a graph that owns the memory of all: they take turns, and find what others left."""
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        graph.capture_begin(capture_error_mode="thread_local")
        torch.zeros(1, device="cuda")
        graph.capture_end()
    return stream, graph
