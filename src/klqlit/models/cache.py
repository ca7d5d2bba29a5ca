"""A key-value cache that does not copy itself at each token."""

from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicLayer

BLOCK = 64
"""Positions that are reserved at a time."""


@final
class ReservedLayer(DynamicLayer):
    """Keys and values with room behind them: a token's are written there, and all are copied once in `BLOCK` tokens."""

    def __init__(self) -> None:
        super().__init__()
        self._room: tuple[Tensor, Tensor] | None = None
        self._newest: Tensor | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        # Rotary positions leave keys in float32 under autocast, which attention would cast anew at each token.
        key_states = key_states.to(value_states.dtype)
        seen = self.get_seq_length()
        # Whatever else changes the cache, such as a choice of rows, leaves a tensor of its own.
        changed = self.keys is not self._newest
        if self._room is None or changed or seen + key_states.shape[-2] > self._room[0].shape[-2]:
            self._room = _reserve(self.keys, seen, key_states), _reserve(self.values, seen, value_states)
        keys, values = (
            _append(room, seen, new) for room, new in zip(self._room, (key_states, value_states), strict=True)
        )
        self.keys, self.values, self._newest = keys, values, keys
        return keys, values


def reserved_cache(config: PretrainedConfig) -> DynamicCache:
    """An empty cache for a model; layers of other kinds, such as sliding windows, are transformers' own."""
    cache = DynamicCache(config=config)
    cache.layers = [ReservedLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def _reserve(kept: Tensor, seen: int, new: Float[Tensor, "B heads n D"]) -> Float[Tensor, "B heads room D"]:
    """Memory for what is kept, what comes now, and a block more."""
    batch, heads, count, size = new.shape
    room = torch.empty((batch, heads, seen + count + BLOCK, size), dtype=new.dtype, device=new.device)
    if seen:
        room[:, :, :seen] = kept
    return room


def _append(room: Tensor, seen: int, new: Float[Tensor, "B heads n D"]) -> Float[Tensor, "B heads m D"]:
    end = seen + new.shape[-2]
    room[:, :, seen:end] = new
    return room[:, :, :end]
