from math import inf, nan

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from klqlit.functional import (
    discounted_sum,
    kl_penalised_rewards,
    lambda_returns,
    monte_carlo_returns,
    q_values,
    td_errors,
    zero_padding,
)

from .batches import examples, generators, masks, normal, spoil

ALL = torch.ones(1, 3, dtype=torch.bool)
TWO = torch.tensor([[True, True, False]])
rates = st.floats(0, 1)


def row(*values: float) -> Tensor:
    return torch.tensor([values])


def test_q_values_by_hand() -> None:
    assert_close(q_values(row(-1.0), row(-3.0), row(2.0), tau=0.5), row(3.0))


def test_td_errors_by_hand() -> None:
    rewards, values, q = row(0.25, 0.0, 1.0), row(1.0, 2.0, 3.0), row(0.5, 1.0, 2.5)
    assert_close(td_errors(rewards, values, q, ALL, gamma=0.5), row(0.75, 0.5, -1.5))
    assert_close(td_errors(rewards, values, q, TWO, gamma=0.5), row(0.75, -1.0, 0.0))


def test_discounted_sum_by_hand() -> None:
    assert_close(discounted_sum(row(1.0, 2.0, 4.0), ALL, decay=0.5), row(3.0, 4.0, 4.0))
    assert_close(discounted_sum(row(1.0, 2.0, nan), TWO, decay=0.5), row(2.0, 2.0, 0.0))


def test_discounted_sum_of_no_tokens() -> None:
    assert discounted_sum(torch.zeros(2, 0), torch.zeros(2, 0, dtype=torch.bool), decay=0.5).shape == (2, 0)


def test_lambda_returns_by_hand() -> None:
    baseline, deltas = row(10.0, 20.0, 30.0), row(1.0, 2.0, 4.0)
    assert_close(lambda_returns(baseline, deltas, ALL, gamma=0.5, lam=0.5), row(11.75, 23.0, 34.0))
    assert_close(lambda_returns(baseline, deltas, ALL, gamma=0.5, lam=0.5, alpha=0.5), row(10.875, 21.5, 32.0))
    assert_close(lambda_returns(baseline, deltas, TWO, gamma=1.0, lam=0.25), row(11.5, 22.0, 0.0))


def test_kl_penalised_rewards_by_hand() -> None:
    rewards = kl_penalised_rewards(row(0.0, 1.0, nan), row(-1.0, -1.0, 1.0), row(-3.0, -0.5, 1.0), TWO, tau=0.5)
    assert_close(rewards, row(-1.0, 1.25, 0.0))


def test_monte_carlo_returns_by_hand() -> None:
    assert_close(monte_carlo_returns(row(1.0, 0.0, 2.0), ALL, gamma=0.5), row(1.5, 1.0, 2.0))


def test_gradients_pass_through() -> None:
    x = row(1.0, 2.0, 4.0).requires_grad_()
    discounted_sum(x, ALL, decay=0.5).sum().backward()
    assert x.grad is not None
    assert_close(x.grad, row(1.0, 1.5, 1.75))


@examples
@given(mask=masks(), generator=generators, decay=rates)
def test_discounted_sum_is_its_definition(mask: Tensor, generator: torch.Generator, decay: float) -> None:
    x = normal(generator, *mask.shape)
    expected = torch.zeros_like(x)
    for b, t in mask.nonzero().tolist():
        for k in range(t, int(mask[b].sum())):
            expected[b, t] += decay ** (k - t) * x[b, k]
    assert_close(discounted_sum(x, mask, decay=decay), expected)


@examples
@given(mask=masks(), generator=generators, gamma=rates, alpha=st.floats(0.01, 1))
def test_lambda_zero_is_one_step(mask: Tensor, generator: torch.Generator, gamma: float, alpha: float) -> None:
    baseline, deltas = normal(generator, *mask.shape), normal(generator, *mask.shape)
    returns = lambda_returns(baseline, deltas, mask, gamma=gamma, lam=0.0, alpha=alpha)
    assert_close(returns, zero_padding(baseline + alpha * deltas, mask))


@examples
@given(mask=masks(), generator=generators, gamma=rates)
def test_lambda_one_is_monte_carlo(mask: Tensor, generator: torch.Generator, gamma: float) -> None:
    """The values telescope away, and nothing is bootstrapped past the last token."""
    rewards, values = normal(generator, *mask.shape), normal(generator, *mask.shape)
    deltas = td_errors(rewards, values, values, mask, gamma=gamma)
    returns = lambda_returns(values, deltas, mask, gamma=gamma, lam=1.0)
    assert_close(returns, monte_carlo_returns(rewards, mask, gamma=gamma))


@examples
@given(mask=masks(), generator=generators, gamma=rates, lam=rates)
def test_padding_never_leaks(mask: Tensor, generator: torch.Generator, gamma: float, lam: float) -> None:
    clean = [normal(generator, *mask.shape) for _ in range(4)]

    def outputs(rewards: Tensor, values: Tensor, logprobs: Tensor, ref_logprobs: Tensor) -> list[Tensor]:
        q = q_values(logprobs, ref_logprobs, values, tau=0.3)
        deltas = td_errors(rewards, values, q, mask, gamma=gamma)
        return [
            deltas,
            lambda_returns(q, deltas, mask, gamma=gamma, lam=lam),
            kl_penalised_rewards(rewards, logprobs, ref_logprobs, mask, tau=0.3),
            monte_carlo_returns(rewards, mask, gamma=gamma),
        ]

    expected = [zero_padding(output, mask) for output in outputs(*clean)]
    for rubbish in (nan, inf, -inf):
        assert_close(outputs(*(spoil(x, mask, rubbish) for x in clean)), expected)


def test_scalars_are_checked() -> None:
    x = row(1.0, 2.0, 3.0)
    with pytest.raises(ValueError, match=r"tau .* got 0\.0: choose a positive"):
        q_values(x, x, x, tau=0.0)
    with pytest.raises(ValueError, match=r"tau .* got -0\.1: choose a positive"):
        kl_penalised_rewards(x, x, x, ALL, tau=-0.1)
    with pytest.raises(ValueError, match=r"gamma .* got 1\.5: choose 1"):
        td_errors(x, x, x, ALL, gamma=1.5)
    with pytest.raises(ValueError, match=r"gamma .* got -0\.5: choose 1"):
        monte_carlo_returns(x, ALL, gamma=-0.5)
    with pytest.raises(ValueError, match=r"gamma .* got 1\.5: choose 1"):
        lambda_returns(x, x, ALL, gamma=1.5, lam=0.5)
    with pytest.raises(ValueError, match=r"lam .* got 1\.5: choose 0"):
        lambda_returns(x, x, ALL, gamma=0.5, lam=1.5)
    with pytest.raises(ValueError, match=r"alpha .* got 0\.0: choose 1"):
        lambda_returns(x, x, ALL, gamma=0.5, lam=0.5, alpha=0.0)
    with pytest.raises(ValueError, match=r"decay .* got 2\.0: it is a discount"):
        discounted_sum(x, ALL, decay=2.0)
