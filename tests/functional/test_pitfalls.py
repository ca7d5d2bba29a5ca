"""Errors that other implementations are known for, as far as they can be made on tensors."""

from math import inf, nan

import pytest
import torch
from hypothesis import given
from torch import Tensor
from torch.testing import assert_close

from klqlit.functional import (
    kl_k1,
    kl_k3,
    lambda_returns,
    last_index,
    masked_mean,
    masked_sum,
    penalised_surrogate,
    q_values,
    squared_error,
    td_errors,
    zero_padding,
)

from .batches import examples, generators, masks, normal, spoil


def test_the_score_lands_on_the_last_real_token() -> None:
    """Two tokens, score 1, V = 0.5, log-ratio 2 everywhere, tau = 0.1: Q = 0.7, and V(PAD) is never bootstrapped."""
    mask = torch.tensor([[True, True, False]])
    rewards = torch.zeros(1, 3).index_put((torch.arange(1), last_index(mask)), torch.ones(1))
    assert_close(rewards, torch.tensor([[0.0, 1.0, 0.0]]))
    values = torch.full((1, 3), 0.5)
    q = q_values(torch.full((1, 3), 2.0), torch.zeros(1, 3), values, tau=0.1)
    deltas = td_errors(rewards, values, q, mask, gamma=1.0)
    assert_close(deltas, torch.tensor([[-0.2, 0.3, 0.0]]))
    assert_close(lambda_returns(q, deltas, mask, gamma=1.0, lam=1.0), torch.tensor([[0.8, 1.0, 0.0]]))


@examples
@given(mask=masks(), generator=generators)
def test_nothing_after_the_last_token_reaches_a_target(mask: Tensor, generator: torch.Generator) -> None:
    """Neither a reward, nor a value, nor a log-ratio on the first PAD."""
    inputs = [normal(generator, *mask.shape) for _ in range(4)]

    def target(rewards: Tensor, values: Tensor, logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
        q = q_values(logprobs, ref_logprobs, values, tau=0.5)
        return lambda_returns(q, td_errors(rewards, values, q, mask, gamma=1.0), mask, gamma=1.0, lam=0.95)

    expected = target(*inputs)
    for k, x in enumerate(inputs):
        assert_close(target(*inputs[:k], spoil(x, mask, 10.0), *inputs[k + 1 :]), expected)


@examples
@given(mask=masks(), generator=generators)
def test_sentinels_in_padding_do_not_enter_the_divergence(mask: Tensor, generator: torch.Generator) -> None:
    logprobs, ref_logprobs = normal(generator, *mask.shape), normal(generator, *mask.shape)
    sentinel = spoil(logprobs, mask, 1.0)
    for estimator in (kl_k1, kl_k3):
        expected = estimator((logprobs - ref_logprobs)[mask]).mean()
        assert_close(masked_mean(estimator(sentinel - ref_logprobs), mask), expected)


@pytest.mark.parametrize("rubbish", [nan, inf, -inf])
@examples
@given(mask=masks(), generator=generators)
def test_rubbish_in_padding_reaches_neither_loss_nor_gradient(
    rubbish: float, mask: Tensor, generator: torch.Generator
) -> None:
    start, old, values, returns = (normal(generator, *mask.shape) for _ in range(4))

    def losses_and_gradients(*constants: Tensor) -> list[Tensor]:
        logprobs = start.clone().requires_grad_()
        old, values, returns = (zero_padding(constant, mask) for constant in constants)
        klq = masked_sum(squared_error(q_values(logprobs, old, values, tau=0.5), returns), mask)
        ppo = masked_sum(penalised_surrogate(logprobs, old, returns, beta=0.1), mask)
        gradients = [torch.autograd.grad(loss, logprobs)[0] for loss in (klq, ppo)]
        return [klq.detach(), ppo.detach(), *gradients]

    clean = losses_and_gradients(old, values, returns)
    assert_close(losses_and_gradients(*(spoil(x, mask, rubbish) for x in (old, values, returns))), clean)
    assert all((gradient[~mask] == 0).all() for gradient in clean[2:])


@examples
@given(generator=generators)
def test_the_split_into_micro_batches_changes_nothing(generator: torch.Generator) -> None:
    """Sums divided by the global number of tokens add up; means of micro-batches do not."""
    mask = torch.arange(6) < torch.tensor([1, 6, 2, 5, 3]).unsqueeze(1)
    q, returns = normal(generator, *mask.shape), normal(generator, *mask.shape)
    tokens = mask.sum()
    whole = masked_mean(squared_error(q, returns), mask)

    def parts(sizes: list[int]) -> list[tuple[Tensor, Tensor]]:
        pieces = zip(q.split(sizes), returns.split(sizes), mask.split(sizes), strict=True)
        return [(squared_error(a, b), m) for a, b, m in pieces]

    for sizes in ([5], [1, 4], [2, 2, 1], [1, 1, 1, 1, 1]):
        assert_close(torch.stack([masked_sum(x, m) / tokens for x, m in parts(sizes)]).sum(), whole)
    means = torch.stack([masked_mean(x, m) for x, m in parts([1, 4])]).mean()
    assert (means - whole).abs() > 1e-6
