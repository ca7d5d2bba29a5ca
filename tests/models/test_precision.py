"""Weights that are cast once."""

from contextlib import nullcontext

import torch
from torch import nn

from klqlit.models.precision import casts_kept


def five_products(module, context):
    """Their results, and how often autocast copied something into another type for them."""
    x = torch.ones(2, 4, dtype=torch.bfloat16)
    autocast = torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False)
    with torch.no_grad(), autocast, torch.profiler.profile() as profiler, context:
        outputs = [module(x) for _ in range(5)]
    return outputs, sum(row.count for row in profiler.key_averages() if row.key == "aten::_to_copy")


def test_a_weight_is_cast_once_and_the_results_stay():
    linear = nn.Linear(4, 4, bias=False)
    plain, casts = five_products(linear, nullcontext())
    assert casts == 5
    kept, casts = five_products(linear, casts_kept())
    assert casts == 1
    assert all(torch.equal(a, b) for a, b in zip(plain, kept, strict=True))


def test_afterwards_weights_are_cast_anew():
    linear = nn.Linear(4, 4, bias=False)
    x = torch.ones(1, 4, dtype=torch.bfloat16)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False):
        with casts_kept():
            before = linear(x)
        linear.weight.mul_(2)
        assert torch.equal(linear(x), 2 * before)
        with casts_kept():
            assert torch.equal(linear(x), 2 * before)
    assert torch.is_autocast_cache_enabled()
