from math import log

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from klqlit.functional import (
    adaptive_kl_coefficient,
    clip_fraction,
    clipped_surrogate,
    clipped_value_error,
    full_kl,
    penalised_surrogate,
    penalty_twin,
    value_clipped_error,
    value_error,
)

from .batches import examples, generators, masks, normal

RATIOS = torch.tensor([[2.0, 2.0, 0.5, 0.5, 1.1, 0.9]])
ADVANTAGES = torch.tensor([[1.0, -1.0, 1.0, -1.0, 1.0, -1.0]])
OLD = torch.full((1, 6), -1.5)


def row(*values: float) -> Tensor:
    return torch.tensor([values])


def test_clipped_surrogate_by_hand() -> None:
    loss = clipped_surrogate(OLD + RATIOS.log(), OLD, 3 * ADVANTAGES, clip=0.2)
    assert_close(loss, 3 * row(-1.2, 2.0, -0.5, 0.8, -1.1, 0.9))


def test_clip_fraction_by_hand() -> None:
    assert_close(clip_fraction(OLD + RATIOS.log(), OLD, ADVANTAGES, clip=0.2), row(1.0, 0.0, 0.0, 1.0, 0.0, 0.0))
    assert_close(clip_fraction(OLD, OLD, ADVANTAGES, clip=0.2), torch.zeros(1, 6))


def test_penalised_surrogate_by_hand() -> None:
    loss = penalised_surrogate(row(log(2) - 1, log(0.5) - 1, -1.0), row(-1.0, -1.0, -1.0), row(3.0, 3.0, 3.0), beta=0.5)
    assert_close(loss, row(0.5 * (2 * log(2) - 1) - 6, 0.5 * (0.5 - 0.5 * log(2)) - 1.5, -3.0))


def test_value_errors_by_hand() -> None:
    assert_close(value_error(row(3.0, 1.0), row(1.0, 4.0)), row(2.0, 4.5))
    # V = 3 is clipped to 1.5, V = -1 to 0.5; V = 1.25 is left alone.
    values, returns = row(3.0, 3.0, -1.0, 1.25), row(2.0, 3.0, -1.0, 1.0)
    loss = clipped_value_error(values, row(1.0, 1.0, 1.0, 1.0), returns, clip=0.5)
    assert_close(loss, row(0.5, 1.125, 1.125, 0.03125))


def test_adaptive_kl_coefficient_by_hand() -> None:
    def adapted(kl: float) -> float:
        return adaptive_kl_coefficient(0.1, kl, target=6.0, horizon=1000, episodes=100)

    assert adapted(6.0) == pytest.approx(0.1)
    assert adapted(6.6) == pytest.approx(0.101)
    assert adapted(5.4) == pytest.approx(0.099)
    assert adapted(60.0) == pytest.approx(0.102)
    assert adapted(0.0) == pytest.approx(0.098)


def test_penalty_twin_by_hand() -> None:
    assert penalty_twin(0.5, 0.25) == pytest.approx(1.5)
    assert penalty_twin(0.05, 0.5) == pytest.approx(0.05)
    assert penalty_twin(0.5, 1.0) == 0


@examples
@given(tau=st.floats(0.01, 10), alpha=st.floats(0.01, 1))
def test_penalty_twin_inverts(tau: float, alpha: float) -> None:
    assert tau / (tau + penalty_twin(tau, alpha)) == pytest.approx(alpha)


@examples
@given(mask=masks(), generator=generators, clip=st.floats(0.05, 0.5))
def test_clipping_is_pessimistic(mask: Tensor, generator: torch.Generator, clip: float) -> None:
    logprobs, old, advantages = (normal(generator, *mask.shape) for _ in range(3))
    plain = -((logprobs - old).exp() * advantages)
    loss = clipped_surrogate(logprobs, old, advantages, clip=clip)
    assert (loss >= plain).all()
    active = clip_fraction(logprobs, old, advantages, clip=clip).bool()
    assert torch.equal(active, loss > plain)
    assert_close(penalised_surrogate(logprobs, old, advantages, beta=0.0), plain)
    variable = logprobs.clone().requires_grad_()
    clipped_surrogate(variable, old, advantages, clip=clip).sum().backward()
    assert variable.grad is not None
    assert_close(variable.grad, torch.where(active, 0.0, plain))


@examples
@given(mask=masks(), generator=generators)
def test_fresh_rollouts_give_the_policy_gradient(mask: Tensor, generator: torch.Generator) -> None:
    """At ratio 1 both surrogates are -A, with gradient -A grad log pi."""
    old, advantages = normal(generator, *mask.shape), normal(generator, *mask.shape)
    assert_close(clipped_surrogate(old, old, advantages, clip=0.2), -advantages)
    assert_close(penalised_surrogate(old, old, advantages, beta=2.0), -advantages)
    logprobs = old.clone().requires_grad_()
    penalised_surrogate(logprobs, old, advantages, beta=2.0).sum().backward()
    assert logprobs.grad is not None
    assert_close(logprobs.grad, -advantages)


@examples
@given(mask=masks(), generator=generators, beta=st.floats(0.01, 2))
def test_penalty_is_the_divergence_in_expectation(mask: Tensor, generator: torch.Generator, beta: float) -> None:
    """Summed over every action with the weights of pi_old: beta KL(pi || pi_old), and its gradient."""
    logits = normal(generator, *mask.shape, 5).requires_grad_()
    old_logits = normal(generator, *mask.shape, 5)
    logprobs, old = logits.log_softmax(-1).flatten(1), old_logits.log_softmax(-1).flatten(1)
    penalty = penalised_surrogate(logprobs, old, torch.zeros_like(old), beta=beta)
    assert (penalty >= 0).all()
    expectation = (old.exp() * penalty).sum()
    divergence = beta * full_kl(logits, old_logits).sum()
    assert_close(expectation, divergence)
    assert_close(torch.autograd.grad(expectation, logits), torch.autograd.grad(divergence, logits))


@examples
@given(mask=masks(), generator=generators)
def test_clipped_value_error_is_klqs_without_a_log_ratio(mask: Tensor, generator: torch.Generator) -> None:
    values, old, returns = (normal(generator, *mask.shape) for _ in range(3))
    expected = value_clipped_error(torch.zeros_like(values), values, old, returns, tau=1.0, value_clip=0.2)
    assert_close(clipped_value_error(values, old, returns, clip=0.2), expected)
    assert_close(clipped_value_error(values, values, returns, clip=0.2), value_error(values, returns))


def test_gradients_reach_policy_and_value_only() -> None:
    logprobs, old, advantages = (row(0.1 * k).requires_grad_() for k in range(3))
    clipped_surrogate(logprobs, old, advantages, clip=0.2).sum().backward()
    penalised_surrogate(logprobs, old, advantages, beta=0.1).sum().backward()
    clipped_value_error(logprobs, old, advantages, clip=0.2).sum().backward()
    assert logprobs.grad is not None
    assert old.grad is None
    assert advantages.grad is None


def test_scalars_are_checked() -> None:
    x = row(1.0)
    for function in (clipped_surrogate, clip_fraction, clipped_value_error):
        with pytest.raises(ValueError, match=r"clip .* got 0\.0: choose a width"):
            function(x, x, x, clip=0.0)
    with pytest.raises(ValueError, match=r"beta .* got -0\.1: choose 0"):
        penalised_surrogate(x, x, x, beta=-0.1)
    with pytest.raises(ValueError, match=r"alpha .* got 0\.0: choose 1"):
        penalty_twin(0.5, 0.0)
    with pytest.raises(ValueError, match=r"tau .* got 0\.0: choose a positive"):
        penalty_twin(0.0, 0.5)


def test_adaptive_coefficient_checks_its_scalars() -> None:
    with pytest.raises(ValueError, match=r"tau .* got 0\.0: choose a positive"):
        adaptive_kl_coefficient(0.0, 1.0, target=6.0, horizon=1000, episodes=10)
    with pytest.raises(ValueError, match=r"target .* got 0\.0: choose the divergence"):
        adaptive_kl_coefficient(0.1, 1.0, target=0.0, horizon=1000, episodes=10)
    with pytest.raises(ValueError, match=r"episodes .* got 0: give the number"):
        adaptive_kl_coefficient(0.1, 1.0, target=6.0, horizon=1000, episodes=0)
    with pytest.raises(ValueError, match=r"horizon must exceed a fifth of the 10 episodes .* got 2: choose a longer"):
        adaptive_kl_coefficient(0.1, 1.0, target=6.0, horizon=2, episodes=10)
    assert adaptive_kl_coefficient(0.1, 0.0, target=6.0, horizon=3, episodes=10) > 0
