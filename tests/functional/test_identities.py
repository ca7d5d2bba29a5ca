"""The six identities that tie KLQ, PPO and the optimum together, each from the package's own functions in float64."""

from dataclasses import dataclass
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from klqlit.functional import (
    full_kl,
    kl_penalised_rewards,
    lambda_returns,
    last_index,
    masked_mean,
    monte_carlo_returns,
    penalised_surrogate,
    penalty_twin,
    q_values,
    response_mask,
    squared_error,
    td_errors,
    token_logprobs,
    value_error,
    zero_padding,
)

from .batches import examples, generators, masks, normal

rates = st.floats(0, 1)
alphas = st.floats(0.05, 1)
taus = st.floats(0.05, 2)


@examples
@given(mask=masks(), generator=generators, gamma=rates, lam=rates, tau=taus)
def test_identity_1_one_td_error(
    mask: Tensor, generator: torch.Generator, gamma: float, lam: float, tau: float
) -> None:
    """KLQ's TD error is PPO's with the KL inside the reward, and its discounted sum is PPO's GAE advantage."""
    rewards, logprobs, ref_logprobs, values = (normal(generator, *mask.shape) for _ in range(4))
    q = q_values(logprobs, ref_logprobs, values, tau=tau)
    klq = td_errors(rewards, values, q, mask, gamma=gamma)
    penalised = kl_penalised_rewards(rewards, logprobs, ref_logprobs, mask, tau=tau)
    ppo = td_errors(penalised, values, values, mask, gamma=gamma)
    assert_close(klq, ppo)
    advantages = lambda_returns(values, ppo, mask, gamma=gamma, lam=lam) - zero_padding(values, mask)
    assert_close(lambda_returns(q, klq, mask, gamma=gamma, lam=lam) - zero_padding(q, mask), advantages)


@examples
@given(mask=masks(), generator=generators, lam=rates, tau=taus, alpha=alphas)
def test_identity_2_one_gradient(
    mask: Tensor, generator: torch.Generator, lam: float, tau: float, alpha: float
) -> None:
    """At the rollout parameters grad L_KLQ = alpha (tau grad L_PG + grad L_VF), for a shared table of parameters."""
    states, actions = 7, 5
    policy = normal(generator, states, actions).requires_grad_()
    critic = normal(generator, states).requires_grad_()
    visited = torch.randint(0, states, mask.shape, generator=generator)
    tokens = torch.randint(0, actions, mask.shape, generator=generator)
    rewards, ref_logprobs = normal(generator, *mask.shape), -normal(generator, *mask.shape).abs()
    logprobs, values = token_logprobs(policy[visited], tokens), critic[visited]
    old_logprobs, old_values = logprobs.detach(), values.detach()

    old_q = q_values(old_logprobs, ref_logprobs, old_values, tau=tau)
    deltas = td_errors(rewards, old_values, old_q, mask, gamma=0.9)
    returns = lambda_returns(old_q, deltas, mask, gamma=0.9, lam=lam, alpha=alpha)
    klq = masked_mean(squared_error(q_values(logprobs, ref_logprobs, values, tau=tau), returns), mask)

    penalised = kl_penalised_rewards(rewards, old_logprobs, ref_logprobs, mask, tau=tau)
    gae = td_errors(penalised, old_values, old_values, mask, gamma=0.9)
    advantages = lambda_returns(old_values, gae, mask, gamma=0.9, lam=lam) - old_values
    policy_gradient = masked_mean(penalised_surrogate(logprobs, old_logprobs, advantages, beta=0.0), mask)
    value_fit = masked_mean(value_error(values, old_values + advantages), mask)

    parameters = (policy, critic)
    expected = torch.autograd.grad(alpha * (tau * policy_gradient + value_fit), parameters, retain_graph=True)
    assert_close(torch.autograd.grad(klq, parameters), expected)


@pytest.mark.parametrize("alpha", [1.0, 0.5, 0.2])
@pytest.mark.parametrize("tau", [0.5, 2.0])
def test_identity_3_exact_regression(tau: float, alpha: float) -> None:
    """Regression over every action of a state: pi_old exp(alpha A / tau), the maximiser of eq. (18)."""
    generator = torch.Generator().manual_seed(3)
    old, ref = normal(generator, 1, 5).log_softmax(-1), normal(generator, 1, 5).log_softmax(-1)
    advantages, old_value = normal(generator, 1, 5), normal(generator, 1, 1)
    every = torch.ones(1, 5, dtype=torch.bool)
    old_q = q_values(old, ref, old_value.expand(1, 5), tau=tau)
    returns = lambda_returns(old_q, advantages, every, gamma=1.0, lam=0.0, alpha=alpha)

    logits, value = old.clone().requires_grad_(), old_value.clone().requires_grad_()
    solver = torch.optim.LBFGS(
        [logits, value], max_iter=500, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def regression() -> Tensor:
        solver.zero_grad()
        q = q_values(logits.log_softmax(-1), ref, value.expand(1, 5), tau=tau)
        loss = squared_error(q, returns).sum()
        loss.backward()
        return loss

    solver.step(regression)
    new = (old + alpha * advantages / tau).log_softmax(-1)
    assert_close(logits.detach().log_softmax(-1), new)
    lift = tau * (old + alpha * advantages / tau).logsumexp(-1, keepdim=True)
    assert_close(value.detach(), old_value + lift)

    beta = penalty_twin(tau, alpha)

    def objective(z: Tensor) -> Tensor:
        z = z.unsqueeze(1)
        gain = (z.softmax(-1).squeeze(1) * (old_q + advantages)).sum()
        return gain - tau * full_kl(z, ref.unsqueeze(1)).sum() - beta * full_kl(z, old.unsqueeze(1)).sum()

    best = new.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(objective(best), best)
    assert_close(gradient, torch.zeros_like(gradient))
    for _ in range(20):
        assert objective(new + normal(generator, 1, 5)) < objective(new)

    # The surrogate alone lacks the pull to pi_b, which is worth tau KL(pi || pi_old): it needs tau + beta.
    z = new.clone().requires_grad_()
    surrogate = (old.exp() * penalised_surrogate(z.log_softmax(-1), old, advantages, beta=tau + beta)).sum()
    (gradient,) = torch.autograd.grad(surrogate, z)
    assert_close(gradient, torch.zeros_like(gradient))


VOCABULARY, HORIZON, EOS = 6, 4, 0


@dataclass
class Tree:
    """Every response of at most four tokens out of six, token 0 being EOS, with the exact optimum at each state."""

    tokens: Tensor
    mask: Tensor
    scores: Tensor
    rewards: Tensor
    ref_logprobs: Tensor
    best_logprobs: Tensor
    best_values: Tensor


def plant_tree(tau: float, gamma: float) -> Tree:
    generator = torch.Generator().manual_seed(5)
    tokens = torch.tensor(list(product(range(VOCABULARY), repeat=HORIZON)))
    mask = response_mask(tokens, EOS)
    distinct = torch.where(mask, 0, tokens).sum(dim=1) == 0  # one row a response: EOS stands in for its padding
    tokens, mask = tokens[distinct], mask[distinct]
    rows = {tuple(response[real].tolist()): row for row, (response, real) in enumerate(zip(tokens, mask, strict=True))}
    scores = normal(generator, len(tokens))
    rewards = torch.zeros(mask.shape, dtype=torch.float64)
    rewards[torch.arange(len(mask)), last_index(mask)] = scores
    prefixes = [p for n in range(HORIZON) for p in product(range(1, VOCABULARY), repeat=n)]
    ref = {prefix: normal(generator, VOCABULARY).log_softmax(-1) for prefix in prefixes}
    best_q: dict[tuple[int, ...], Tensor] = {}
    best_v: dict[tuple[int, ...], Tensor] = {}
    for prefix in reversed(prefixes):
        outcomes = [(*prefix, action) for action in range(VOCABULARY)]
        best_q[prefix] = torch.stack([scores[rows[o]] if o in rows else gamma * best_v[o] for o in outcomes])
        best_v[prefix] = tau * (ref[prefix] + best_q[prefix] / tau).logsumexp(-1)
    columns = torch.full((3, *mask.shape), float("nan"), dtype=torch.float64)
    for row, t in mask.nonzero().tolist():
        prefix, action = tuple(tokens[row, :t].tolist()), tokens[row, t]
        boltzmann = ref[prefix] + (best_q[prefix] - best_v[prefix]) / tau
        columns[:, row, t] = torch.stack([ref[prefix][action], boltzmann[action], best_v[prefix]])
    return Tree(tokens, mask, scores, rewards, *columns)


@pytest.mark.parametrize("gamma", [1.0, 0.9])
@pytest.mark.parametrize("tau", [0.1, 0.5])
def test_identity_4_no_error_at_the_optimum(tau: float, gamma: float) -> None:
    """At pi*, V* every TD error of every trajectory is 0, so the loss is 0 for any lambda and alpha."""
    tree = plant_tree(tau, gamma)
    assert len(tree.mask) == 1 + 5 + 25 + 125 * 6
    q = q_values(tree.best_logprobs, tree.ref_logprobs, tree.best_values, tau=tau)
    deltas = td_errors(tree.rewards, tree.best_values, q, tree.mask, gamma=gamma)
    assert_close(deltas, torch.zeros_like(deltas))
    for lam, alpha in product((0.0, 0.95, 1.0), (0.5, 1.0)):
        returns = lambda_returns(q, deltas, tree.mask, gamma=gamma, lam=lam, alpha=alpha)
        loss = masked_mean(squared_error(q, returns), tree.mask)
        assert_close(loss, torch.zeros_like(loss))
    # And only there: the reference policy with the same values has errors.
    q = q_values(tree.ref_logprobs, tree.ref_logprobs, tree.best_values, tau=tau)
    assert td_errors(tree.rewards, tree.best_values, q, tree.mask, gamma=gamma).abs().max() > 0.1


@pytest.mark.parametrize("tau", [0.1, 0.5])
def test_identity_5_the_optimum_is_known(tau: float) -> None:
    """J* = V*(s_0), pi*(y) is pi_b(y) exp(R / tau) normalised, and J(pi) = J* - tau KL(pi || pi*) over responses."""
    tree = plant_tree(tau, gamma=1.0)
    best, ref = zero_padding(tree.best_logprobs, tree.mask).sum(1), zero_padding(tree.ref_logprobs, tree.mask).sum(1)
    assert_close(best.exp().sum(), torch.ones((), dtype=torch.float64))
    assert_close(best, (ref + tree.scores / tau).log_softmax(-1))
    optimum = tree.best_values[0, 0]
    assert_close(optimum, tau * (ref + tree.scores / tau).logsumexp(-1))

    def objective(logprobs: Tensor) -> Tensor:
        rewards = kl_penalised_rewards(tree.rewards, logprobs, tree.ref_logprobs, tree.mask, tau=tau)
        episode = monte_carlo_returns(rewards, tree.mask, gamma=1.0)[:, 0]
        return (zero_padding(logprobs, tree.mask).sum(1).exp() * episode).sum()

    assert_close(objective(tree.best_logprobs), optimum)
    assert_close(objective(tree.ref_logprobs), optimum - tau * (ref.exp() * (ref - best)).sum())
    assert objective(tree.ref_logprobs) < optimum - 0.1


@examples
@given(mask=masks(), generator=generators, tau=taus, alpha=alphas)
def test_identity_6_monte_carlo(mask: Tensor, generator: torch.Generator, tau: float, alpha: float) -> None:
    """lambda = gamma = 1: G_t = V + tau l_t + alpha (R - sum_{k >= t} tau l_k - V), with l the log-ratio."""
    logprobs, ref_logprobs, values = (normal(generator, *mask.shape) for _ in range(3))
    scores = normal(generator, len(mask))
    rewards = torch.zeros_like(values)
    rewards[torch.arange(len(mask)), last_index(mask)] = scores
    q = q_values(logprobs, ref_logprobs, values, tau=tau)
    deltas = td_errors(rewards, values, q, mask, gamma=1.0)
    returns = lambda_returns(q, deltas, mask, gamma=1.0, lam=1.0, alpha=alpha)
    logratio = logprobs - ref_logprobs
    for b, t in mask.nonzero().tolist():
        to_go = tau * logratio[b, t : int(mask[b].sum())].sum()
        expected = values[b, t] + tau * logratio[b, t] + alpha * (scores[b] - to_go - values[b, t])
        assert_close(returns[b, t], expected)
