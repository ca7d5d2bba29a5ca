"""Exact values on trees of states: by hand, against the sum over all responses, and as fixed points."""

from itertools import product
from math import log

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from klqlit.functional.tabular import optimal_logprobs, optimal_values, policy_values, state_tree, walk

from .batches import examples, generators, normal

PROMPTS, VOCABULARY, HORIZON = 2, 4, 3
taus = st.floats(0.1, 2)


def tables(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Next states, the log-probabilities of a policy and of its reference, and rewards at every token."""
    next_states = state_tree(prompts=PROMPTS, vocab_size=VOCABULARY, horizon=HORIZON)
    logprobs, ref_logprobs = (normal(generator, *next_states.shape).log_softmax(-1) for _ in range(2))
    rewards = normal(generator, *next_states.shape)
    rewards[-1] = 0
    return next_states, logprobs, ref_logprobs, rewards


def responses() -> list[tuple[int, ...]]:
    """Every response: letters, then EOS unless the length limit comes first."""
    letters, eos = range(VOCABULARY - 1), VOCABULARY - 1
    short = [(*word, eos) for length in range(HORIZON) for word in product(letters, repeat=length)]
    return short + list(product(letters, repeat=HORIZON))


def along(table: Tensor, next_states: Tensor, prompt: int, response: tuple[int, ...]) -> Tensor:
    """Sum of a table's entries over the tokens of a response, state by state."""
    state, total = prompt, table.new_zeros(())
    for token in response:
        total = total + table[state, token]
        state = int(next_states[state, token])
    return total


def totals(table: Tensor, next_states: Tensor) -> Tensor:
    """Those sums for every prompt and response."""
    return torch.stack([torch.stack([along(table, next_states, x, y) for y in responses()]) for x in range(PROMPTS)])


def test_state_tree_by_hand() -> None:
    """Two letters, two tokens: state 0 leads to 1 and 2, and these to the end, 3, as EOS does."""
    assert state_tree(prompts=1, vocab_size=3, horizon=2).tolist() == [[1, 2, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3]]
    assert state_tree(prompts=2, vocab_size=2, horizon=2).tolist() == [[2, 4], [3, 4], [4, 4], [4, 4], [4, 4]]


def test_state_tree_has_a_state_for_each_prefix() -> None:
    next_states = state_tree(prompts=3, vocab_size=6, horizon=4)
    assert next_states.shape == (3 * (1 + 5 + 25 + 125) + 1, 6)
    reached = next_states[:-1].flatten()
    # Every state but the prompts is the child of one other.
    assert sorted(reached[reached < 468].tolist()) == list(range(3, 468))


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("prompts", {"prompts": 0, "vocab_size": 2, "horizon": 1}),
        ("vocab_size", {"prompts": 1, "vocab_size": 1, "horizon": 1}),
        ("horizon", {"prompts": 1, "vocab_size": 2, "horizon": 0}),
    ],
)
def test_nothing_to_choose_is_refused(name: str, sizes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least [12], got [01]"):
        state_tree(**sizes)
    assert state_tree(**(sizes | {name: sizes[name] + 1})).shape[1] == 2


def test_walk_by_hand() -> None:
    next_states = state_tree(prompts=1, vocab_size=3, horizon=2)
    tokens = torch.tensor([[1, 0], [2, 2], [0, 1]])
    assert walk(next_states, torch.tensor([0, 0, 0]), tokens).tolist() == [[0, 2], [0, 3], [0, 1]]


@pytest.mark.parametrize("tau", [1.0, 2.0])
def test_one_token_by_hand(tau: float) -> None:
    """pi_b = 1/2 each, rewards tau log 3 and 0: V* = tau log((3 + 1) / 2) = tau log 2, and pi* = 3/4, 1/4."""
    next_states = state_tree(prompts=1, vocab_size=2, horizon=1)
    half = torch.full((2, 2), 0.5, dtype=torch.float64).log()
    rewards = torch.tensor([[tau * log(3), 0], [0, 0]], dtype=torch.float64)
    values = optimal_values(half, rewards, next_states, tau=tau, horizon=1)
    assert_close(values, torch.tensor([tau * log(2), 0], dtype=torch.float64))
    best = optimal_logprobs(values, half, rewards, next_states, tau=tau)
    assert_close(best[0].exp(), torch.tensor([0.75, 0.25], dtype=torch.float64))
    # pi_b itself earns half the reward and pays nothing.
    reference = policy_values(half, half, rewards, next_states, tau=tau, horizon=1)
    assert_close(reference[0].item(), 0.5 * tau * log(3))
    # pi* earns 3/4 tau log 3 and pays tau (3/4 log 3/2 + 1/4 log 1/2): tau log 2 is left.
    assert_close(policy_values(best, half, rewards, next_states, tau=tau, horizon=1), values)


@examples
@given(generator=generators, tau=taus)
def test_values_are_sums_over_responses(generator: torch.Generator, tau: float) -> None:
    """V(x) = sum_y pi(y|x) (R(y) - tau log pi(y|x) / pi_b(y|x)), V*(x) = tau log sum_y pi_b(y|x) exp(R(y) / tau)."""
    next_states, logprobs, ref_logprobs, rewards = tables(generator)
    policy, reference, scores = (totals(table, next_states) for table in (logprobs, ref_logprobs, rewards))
    assert_close(policy.exp().sum(-1), torch.ones(PROMPTS, dtype=torch.float64))

    values = policy_values(logprobs, ref_logprobs, rewards, next_states, tau=tau, horizon=HORIZON)
    assert_close(values[:PROMPTS], (policy.exp() * (scores - tau * (policy - reference))).sum(-1))
    best = optimal_values(ref_logprobs, rewards, next_states, tau=tau, horizon=HORIZON)
    assert_close(best[:PROMPTS], tau * (reference + scores / tau).logsumexp(-1))
    best_logprobs = optimal_logprobs(best, ref_logprobs, rewards, next_states, tau=tau)
    assert_close(totals(best_logprobs, next_states), (reference + scores / tau).log_softmax(-1))


@examples
@given(generator=generators, tau=taus)
def test_nothing_is_better_than_the_optimum(generator: torch.Generator, tau: float) -> None:
    """pi* attains V*, and another policy falls short by tau KL(pi || pi*) over responses."""
    next_states, logprobs, ref_logprobs, rewards = tables(generator)
    best = optimal_values(ref_logprobs, rewards, next_states, tau=tau, horizon=HORIZON)
    best_logprobs = optimal_logprobs(best, ref_logprobs, rewards, next_states, tau=tau)
    assert_close(best_logprobs.exp().sum(-1), torch.ones(len(best), dtype=torch.float64))
    attained = policy_values(best_logprobs, ref_logprobs, rewards, next_states, tau=tau, horizon=HORIZON)
    assert_close(attained, best)
    policy, optimal = totals(logprobs, next_states), totals(best_logprobs, next_states)
    values = policy_values(logprobs, ref_logprobs, rewards, next_states, tau=tau, horizon=HORIZON)
    assert_close(best[:PROMPTS] - values[:PROMPTS], tau * (policy.exp() * (policy - optimal)).sum(-1))


@examples
@given(generator=generators, tau=taus)
def test_more_sweeps_change_nothing(generator: torch.Generator, tau: float) -> None:
    """After as many sweeps as tokens the values are the fixed point; the end is worth 0."""
    next_states, logprobs, ref_logprobs, rewards = tables(generator)
    for sweeps in (HORIZON, HORIZON + 1):
        best = optimal_values(ref_logprobs, rewards, next_states, tau=tau, horizon=sweeps)
        backup = tau * (ref_logprobs + (rewards + best[next_states]) / tau).logsumexp(-1)
        assert_close(best, backup)
        assert_close(best[-1].item(), 0.0)
    values = policy_values(logprobs, ref_logprobs, rewards, next_states, tau=tau, horizon=HORIZON)
    again = policy_values(logprobs, ref_logprobs, rewards, next_states, tau=tau, horizon=HORIZON + 1)
    assert_close(again, values)


def test_tau_must_be_positive() -> None:
    next_states, logprobs, ref_logprobs, rewards = tables(torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="tau must be"):
        policy_values(logprobs, ref_logprobs, rewards, next_states, tau=0.0, horizon=HORIZON)
    with pytest.raises(ValueError, match="tau must be"):
        optimal_values(ref_logprobs, rewards, next_states, tau=0.0, horizon=HORIZON)
    with pytest.raises(ValueError, match="tau must be"):
        optimal_logprobs(rewards[:, 0], ref_logprobs, rewards, next_states, tau=0.0)
