"""A key-value cache that does not copy itself at each token."""

from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicLayer

BLOCK = 64
"""Positions that are reserved at a time, at least."""

ALIGNMENT = 8
"""Rooms are a multiple of so many positions: attention under a mask reads no others without copying the mask."""


@final
class ReservedLayer(DynamicLayer):
    """Keys and values with room behind them: a token's are written there, and all are copied once in `BLOCK` tokens.

    Attributes:
        column: None, or where tokens are written, for a pass whose shapes must not change: `update` then gives back
            all of the room, and what is kept grows by `advance` only.
    """

    def __init__(self) -> None:
        super().__init__()
        self.column: Int[Tensor, " 1"] | None = None
        self._room: tuple[Tensor, Tensor] | None = None
        self._newest: Tensor | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        # Rotary positions leave keys in float32 under autocast, which attention would cast anew at each token.
        key_states = key_states.to(value_states.dtype)
        if self.column is not None:
            assert self._room is not None
            for room, new in zip(self._room, (key_states, value_states), strict=True):
                room.index_copy_(2, self.column, new)
            return self._room
        seen, count = self.get_seq_length(), key_states.shape[-2]
        if self._full(count):
            self._reserve(key_states, value_states)
        assert self._room is not None
        for room, new in zip(self._room, (key_states, value_states), strict=True):
            room[:, :, seen : seen + count] = new
        self.advance(count)
        assert self.keys is not None
        assert self.values is not None
        return self.keys, self.values

    def reserve(self) -> int:
        """Positions of the room, after making sure that there is one for another token."""
        assert self.keys is not None
        assert self.values is not None
        if self._full(1):
            self._reserve(self.keys[:, :, :1], self.values[:, :, :1])
        assert self._room is not None
        return self._room[0].shape[-2]

    def advance(self, count: int) -> None:
        """Keep what stands in the next `count` positions of the room."""
        assert self._room is not None
        end = self.get_seq_length() + count
        self.keys, self.values = (room[:, :, :end] for room in self._room)
        self._newest = self.keys

    def _full(self, count: int) -> bool:
        # Whatever else changes the cache, such as a choice of rows, leaves a tensor of its own.
        changed = self.keys is not self._newest
        return self._room is None or changed or self.get_seq_length() + count > self._room[0].shape[-2]

    def _reserve(self, new_keys: Tensor, new_values: Tensor) -> None:
        """Room for what is kept, as many positions as the new ones, and a block more."""
        seen = self.get_seq_length()
        positions = -(-(seen + new_keys.shape[-2] + BLOCK) // ALIGNMENT) * ALIGNMENT
        self._room = _room(self.keys, new_keys, seen, positions), _room(self.values, new_values, seen, positions)
        self._newest = self.keys


@final
class ReservedCache(DynamicCache):
    """An empty cache for a model; layers of other kinds, such as sliding windows, are transformers' own.

    Args:
        config: of the model.
    """

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__(config=config)
        self.layers = [ReservedLayer() if type(layer) is DynamicLayer else layer for layer in self.layers]

    @property
    def reserved_layers(self) -> list[ReservedLayer] | None:
        """All layers, if all have room behind them."""
        layers = [layer for layer in self.layers if isinstance(layer, ReservedLayer)]
        return layers if len(layers) == len(self.layers) else None


def _room(
    kept: Tensor | None, new: Float[Tensor, "B heads n D"], seen: int, positions: int
) -> Float[Tensor, "B heads room D"]:
    """Memory for what is kept and what is new; behind it is 0, which attention may multiply by 0 under a mask."""
    batch, heads, count, size = new.shape
    room = torch.empty((batch, heads, positions, size), dtype=new.dtype, device=new.device)
    room[:, :, seen + count :] = 0
    if kept is not None and seen:
        room[:, :, :seen] = kept
    return room
