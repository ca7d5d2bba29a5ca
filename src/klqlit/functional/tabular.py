"""Exact values where every state can be listed: the yardstick that no language-model run offers.

Axes: N states, V vocabulary. A problem has P prompts and responses of at most T tokens; its last token, V - 1, is EOS,
and the other L = V - 1 are letters. States are numbered breadth first: the prompts are 0..P-1, and letter l takes state
s to P + s L + l. EOS, and whatever is chosen as token T, leads to the end, state N - 1, which leads to itself and is
worth 0.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from klqlit.functional.checks import check_tau


def state_tree(*, prompts: int, vocab_size: int, horizon: int) -> Int[Tensor, "N V"]:
    """The state that follows each state and token; N = P (1 + L + ... + L^(T-1)) + 1.

    Args:
        prompts: P.
        vocab_size: V, the letters and EOS.
        horizon: T, the longest response in tokens.

    Raises:
        ValueError: there is no letter, no prompt or no token to choose.
    """
    for name, value, least in (("prompts", prompts, 1), ("vocab_size", vocab_size, 2), ("horizon", horizon, 1)):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    letters = vocab_size - 1
    end = prompts * sum(letters**depth for depth in range(horizon))
    children = prompts + torch.arange(end * letters).reshape(end, letters)
    after_letters = torch.cat([children.clamp(max=end), torch.full((1, letters), end)])
    return torch.cat([after_letters, torch.full((end + 1, 1), end)], dim=1)


def walk(next_states: Int[Tensor, "N V"], start: Int[Tensor, " B"], tokens: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
    """The states s_0..s_{T-1} in which the tokens are chosen, with s_0 = start."""
    states = [start]
    for t in range(tokens.shape[1] - 1):
        states.append(next_states[states[-1], tokens[:, t]])
    return torch.stack(states, dim=1)


def policy_values(
    logprobs: Float[Tensor, "N V"],
    ref_logprobs: Float[Tensor, "N V"],
    rewards: Float[Tensor, "N V"],
    next_states: Int[Tensor, "N V"],
    *,
    tau: float,
    horizon: int,
) -> Float[Tensor, " N"]:
    r"""V(s) = \sum_a \pi(a|s) ( r(s,a) - \tau \log( \pi(a|s) / \pi_b(a|s) ) + V(s') ), so that J(pi) = E_x V(s_0).

    Args:
        logprobs: log pi(a|s), nats, finite.
        ref_logprobs: log pi_b(a|s), nats, finite.
        rewards: r(s, a); 0 at the end.
        next_states: s' of each state and token.
        tau: the KL coefficient, reward per nat.
        horizon: the longest response in tokens: so many sweeps of backward induction reach every state.

    Raises:
        ValueError: `tau` is not positive.
    """
    check_tau(tau)
    probs = logprobs.exp()
    gains = (probs * (rewards - tau * (logprobs - ref_logprobs))).sum(dim=1)
    gains[-1] = 0  # nothing is chosen at the end, whatever stands there in the tables
    values = torch.zeros_like(gains)
    for _ in range(horizon):
        values = gains + (probs * values[next_states]).sum(dim=1)
    return values


def optimal_values(
    ref_logprobs: Float[Tensor, "N V"],
    rewards: Float[Tensor, "N V"],
    next_states: Int[Tensor, "N V"],
    *,
    tau: float,
    horizon: int,
) -> Float[Tensor, " N"]:
    r"""V*(s) = \tau \log \sum_a \pi_b(a|s) \exp( (r(s,a) + V*(s')) / \tau ), so that J* = E_x V*(s_0).

    Arguments as for `policy_values`.

    Raises:
        ValueError: `tau` is not positive.
    """
    check_tau(tau)
    values = rewards.new_zeros(len(rewards))
    for _ in range(horizon):
        values = tau * (ref_logprobs + (rewards + values[next_states]) / tau).logsumexp(dim=1)
    return values


def optimal_logprobs(
    values: Float[Tensor, " N"],
    ref_logprobs: Float[Tensor, "N V"],
    rewards: Float[Tensor, "N V"],
    next_states: Int[Tensor, "N V"],
    *,
    tau: float,
) -> Float[Tensor, "N V"]:
    r"""\log \pi*(a|s) = \log \pi_b(a|s) + ( r(s,a) + V*(s') - V*(s) ) / \tau.

    Args:
        values: V*, from `optimal_values`.
        ref_logprobs: log pi_b(a|s), nats.
        rewards: r(s, a); 0 at the end.
        next_states: s' of each state and token.
        tau: the KL coefficient, reward per nat.

    Raises:
        ValueError: `tau` is not positive.
    """
    check_tau(tau)
    return ref_logprobs + (rewards + values[next_states] - values[:, None]) / tau
