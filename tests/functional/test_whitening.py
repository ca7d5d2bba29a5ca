from math import inf, nan

import pytest
import torch
from hypothesis import assume, given
from torch import Tensor
from torch.testing import assert_close

from klqlit.functional import masked_moments, rescale, whiten, zero_padding

from .batches import examples, generators, masks, normal, spoil

MASK = torch.tensor([[True, True, False], [True, True, False]])
X = torch.tensor([[1.0, 5.0, nan], [5.0, 1.0, inf]])  # mean 3, standard deviation 2


def test_by_hand() -> None:
    assert_close(whiten(X, MASK), torch.tensor([[-1.0, 1.0, 0.0], [1.0, -1.0, 0.0]]))
    assert_close(rescale(X, MASK), torch.tensor([[0.5, 2.5, 0.0], [2.5, 0.5, 0.0]]))


@pytest.mark.parametrize("constant", [0.1, -0.1, 0.0, 1e4, -1e-4])
def test_a_batch_without_spread_is_not_divided(constant: float) -> None:
    """Rounding of the mean leaves a spread of about 1e-8 of it: noise that must not be blown up."""
    x = torch.full((3, 67), constant)
    mask = torch.ones_like(x, dtype=torch.bool)
    assert whiten(x, mask).abs().max() <= 1e-5 * abs(constant)
    assert_close(rescale(x, mask), x)


def test_one_token() -> None:
    mask = torch.tensor([[False, True, False], [False, False, False]])
    assert_close(whiten(X, mask), torch.zeros(2, 3))
    assert_close(rescale(X, mask), torch.tensor([[0.0, 5.0, 0.0], [0.0, 0.0, 0.0]]))


def test_small_but_real_spread_is_kept() -> None:
    x = torch.tensor([[1e-6, 3e-6]])
    assert_close(whiten(x, torch.ones_like(x, dtype=torch.bool)), torch.tensor([[-1.0, 1.0]]))
    x = torch.tensor([[1000.0, 1002.0], [1000.0, 1002.0]])
    assert_close(whiten(x, torch.ones_like(x, dtype=torch.bool)), torch.tensor([[-1.0, 1.0], [-1.0, 1.0]]))


def test_an_empty_mask_is_refused() -> None:
    for function in (whiten, rescale):
        with pytest.raises(ValueError, match="selects nothing"):
            function(X, torch.zeros_like(MASK))


@examples
@given(mask=masks(), generator=generators)
def test_moments_and_scale(mask: Tensor, generator: torch.Generator) -> None:
    assume(mask.sum() > 1)
    x = normal(generator, *mask.shape)
    zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    assert_close(masked_moments(whiten(x, mask), mask), (zero, one))
    assert_close(masked_moments(rescale(x, mask), mask)[1], one)
    assert_close(whiten(3 * x + 5, mask), whiten(x, mask))
    assert_close(rescale(3 * x, mask), rescale(x, mask))
    mean = masked_moments(rescale(x, mask), mask)[0]
    assert_close(zero_padding(rescale(x, mask) - mean, mask), whiten(x, mask))


@examples
@given(mask=masks(), generator=generators)
def test_padding_never_leaks(mask: Tensor, generator: torch.Generator) -> None:
    x = normal(generator, *mask.shape)
    for function in (whiten, rescale):
        for rubbish in (nan, inf):
            assert_close(function(spoil(x, mask, rubbish), mask), function(x, mask))
