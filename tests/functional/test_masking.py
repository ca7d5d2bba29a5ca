from math import inf, nan

import pytest
import torch
from hypothesis import given
from torch import Tensor
from torch.testing import assert_close

from klqlit.functional import last_index, masked_mean, masked_moments, masked_sum, response_mask, zero_padding

from .batches import examples, generators, masks, normal, spoil

X = torch.tensor([[1.0, 2.0, nan], [4.0, inf, 6.0]])
MASK = torch.tensor([[True, True, False], [True, False, True]])


def test_sum_by_hand() -> None:
    assert_close(masked_sum(X, MASK), torch.tensor(13.0))
    assert_close(masked_sum(X, MASK, dim=1), torch.tensor([3.0, 10.0]))
    assert_close(masked_sum(X, MASK, dim=0), torch.tensor([5.0, 2.0, 6.0]))
    assert_close(masked_sum(X, torch.zeros_like(MASK)), torch.tensor(0.0))


def test_mean_by_hand() -> None:
    assert_close(masked_mean(X, MASK), torch.tensor(3.25))
    assert_close(masked_mean(X, MASK, dim=1), torch.tensor([1.5, 5.0]))
    assert_close(masked_mean(X, MASK, dim=0), torch.tensor([2.5, 2.0, 6.0]))


def test_moments_by_hand() -> None:
    mean, var = masked_moments(X, MASK)  # of 1, 2, 4, 6
    assert_close(mean, torch.tensor(3.25))
    assert_close(var, torch.tensor((2.25**2 + 1.25**2 + 0.75**2 + 2.75**2) / 4))


def test_moments_of_one_token() -> None:
    assert_close(
        masked_moments(X, torch.tensor([[False, True, False], [False] * 3])), (torch.tensor(2.0), torch.tensor(0.0))
    )


def test_a_mean_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"mask of shape \(2, 3\) selects nothing at all.*masked_sum"):
        masked_mean(X, torch.zeros_like(MASK))
    with pytest.raises(ValueError, match="selects nothing at all"):
        masked_moments(X, torch.zeros_like(MASK))
    one_empty_row = torch.tensor([[True, True, True], [False, False, False]])
    with pytest.raises(ValueError, match="selects nothing in some slice along dim 1"):
        masked_mean(X, one_empty_row, dim=1)


@examples
@given(mask=masks(), generator=generators)
def test_reduces_to_the_plain_reductions_without_padding(mask: Tensor, generator: torch.Generator) -> None:
    x = normal(generator, *mask.shape)
    everything = torch.ones_like(mask)
    assert_close(masked_sum(x, everything), x.sum())
    assert_close(masked_mean(x, everything, dim=1), x.mean(dim=1))
    assert_close(masked_moments(x, everything), (x.mean(), x.var(unbiased=False)))


@examples
@given(mask=masks(), generator=generators)
def test_padding_never_leaks(mask: Tensor, generator: torch.Generator) -> None:
    x = normal(generator, *mask.shape)
    for rubbish in (nan, inf, -inf):
        spoiled = spoil(x, mask, rubbish).requires_grad_()
        assert_close(masked_sum(spoiled, mask), x[mask].sum())
        assert_close(masked_moments(spoiled, mask), (x[mask].mean(), x[mask].var(unbiased=False)))
        masked_sum(spoiled, mask).backward()
        assert spoiled.grad is not None
        assert_close(spoiled.grad, mask.double())


def test_zero_padding_keeps_rubbish_out_of_gradients() -> None:
    old = torch.tensor([[1.0, nan]])
    mask = torch.tensor([[True, False]])
    x = torch.tensor([[3.0, 5.0]], requires_grad=True)
    masked_sum((x - zero_padding(old, mask)).square(), mask).backward()
    assert x.grad is not None
    assert_close(x.grad, torch.tensor([[4.0, 0.0]]))


def test_response_mask_by_hand() -> None:
    tokens = torch.tensor([[5, 7, 2, 2, 9], [2, 5, 5, 2, 5], [5, 6, 7, 8, 9], [5, 5, 5, 5, 2]])
    expected = torch.tensor([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1]]).bool()
    assert torch.equal(response_mask(tokens, eos_token_id=2), expected)


@examples
@given(mask=masks(), generator=generators)
def test_response_mask_ignores_what_follows_eos(mask: Tensor, generator: torch.Generator) -> None:
    tokens = torch.randint(0, 9, mask.shape, generator=generator)
    tokens = torch.where(mask & (tokens == 3), 4, tokens)
    tokens[torch.arange(len(mask)), last_index(mask)] = 3
    assert torch.equal(response_mask(tokens, eos_token_id=3), mask)


def test_last_index_by_hand() -> None:
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]).bool()
    assert torch.equal(last_index(mask), torch.tensor([1, 3, 0]))


def test_last_index_names_the_empty_rows() -> None:
    mask = torch.tensor([[1, 0], [0, 0], [1, 1], [0, 0]]).bool()
    with pytest.raises(ValueError, match=r"no True in rows \[1, 3\].*leave empty responses out"):
        last_index(mask)


@examples
@given(mask=masks())
def test_last_index_is_the_length_less_one(mask: Tensor) -> None:
    assert torch.equal(last_index(mask), mask.sum(dim=1) - 1)
