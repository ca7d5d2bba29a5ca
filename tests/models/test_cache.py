"""The cache with room behind it holds what transformers' own holds."""

import pytest
import torch
from transformers import DynamicCache, Gemma2Config
from transformers.cache_utils import DynamicSlidingWindowLayer

from builders import tiny_config
from klqlit.models.cache import ALIGNMENT, BLOCK, ReservedCache, ReservedLayer

CONFIG = tiny_config("llama", 320)


def states(rows, count, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 1, count, 8, generator=generator), torch.randn(rows, 1, count, 8, generator=generator)


def both():
    return ReservedCache(CONFIG), DynamicCache(config=CONFIG)


def update(caches, rows, count, seed):
    """The keys and values that our cache gives back for the last layer."""
    for layer in range(CONFIG.num_hidden_layers):
        ours, theirs = (cache.update(*states(rows, count, seed), layer) for cache in caches)
        for one, other in zip(ours, theirs, strict=True):
            assert torch.equal(one, other)
    assert caches[0].get_seq_length() == caches[1].get_seq_length()
    return ours


def test_tokens_are_kept_in_order_through_several_blocks():
    caches = both()
    update(caches, 2, 5, seed=0)
    for t in range(2 * BLOCK + 3):
        update(caches, 2, 1, seed=t + 1)
    assert caches[0].get_seq_length() == 2 * BLOCK + 8


def test_a_token_is_written_in_place():
    caches = both()
    first, _ = update(caches, 2, 5, seed=0)
    for t in range(BLOCK):
        keys, _ = update(caches, 2, 1, seed=t + 1)
        assert keys.data_ptr() == first.data_ptr()
    for t in range(ALIGNMENT):
        keys, _ = update(caches, 2, 1, seed=BLOCK + t + 1)
    assert keys.data_ptr() != first.data_ptr()


@pytest.mark.parametrize("rows", [[1], [2, 0], [0, 0, 1, 2, 2]])
def test_rows_can_be_dropped_and_repeated_on_the_way(rows):
    caches = both()
    update(caches, 3, 4, seed=0)
    update(caches, 3, 1, seed=1)
    for cache in caches:
        cache.reorder_cache(torch.tensor(rows))
    for t in range(3):
        update(caches, len(rows), 1, seed=t + 2)


def test_tokens_can_be_taken_back():
    caches = both()
    update(caches, 2, 6, seed=0)
    for cache in caches:
        cache.crop(-2)
    update(caches, 2, 1, seed=1)


def test_layers_with_a_window_stay_as_they_are():
    config = Gemma2Config(num_hidden_layers=4, layer_types=["sliding_attention", "full_attention"] * 2)
    kinds = [type(layer) for layer in ReservedCache(config).layers]
    assert kinds == [DynamicSlidingWindowLayer, ReservedLayer] * 2


def test_keys_take_the_type_of_the_values():
    """Rotary positions in float32 leave keys in it where the rest is in half of it."""
    cache = ReservedCache(CONFIG)
    for t, count in enumerate((5, 1)):
        keys, values = states(2, count, seed=t)
        kept, _ = cache.update(keys, values.bfloat16(), 0)
        assert kept.dtype == torch.bfloat16
        assert torch.equal(kept[:, :, -count:], keys.bfloat16())
