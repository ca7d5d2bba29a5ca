"""TD errors and returns, shared by every algorithm. Entry t belongs to state s_t and action a_t = y_{t+1}.

Whatever depends on a mask is 0 in padding and reads nothing there. Discounts count positions, and the mask is that of
responses padded on the right, so the last True ends the episode: nothing is bootstrapped past it.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from klqlit.functional.checks import check_alpha, check_gamma, check_tau, check_unit_interval
from klqlit.functional.masking import zero_padding


def q_values(
    logprobs: Float[Tensor, "B T"], ref_logprobs: Float[Tensor, "B T"], values: Float[Tensor, "B T"], *, tau: float
) -> Float[Tensor, "B T"]:
    r"""Eq. (13): Q(s_t, a_t) = \tau \log( \pi(a_t|s_t) / \pi_b(a_t|s_t) ) + V(s_t).

    Args:
        logprobs: log pi(a_t|s_t), nats.
        ref_logprobs: log pi_b(a_t|s_t) of the reference policy, nats.
        values: V(s_t), in units of reward.
        tau: the KL coefficient, reward per nat.

    Raises:
        ValueError: `tau` is not positive.
    """
    check_tau(tau)
    return tau * (logprobs - ref_logprobs) + values


def td_errors(
    rewards: Float[Tensor, "B T"],
    values: Float[Tensor, "B T"],
    q_values: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    *,
    gamma: float,
) -> Float[Tensor, "B T"]:
    r"""Eq. (14): \delta_t = r_{t+1} + \gamma V(s_{t+1}) - Q(s_t, a_t), with V = 0 after the last real token.

    With `values` in the place of `q_values` and rewards that carry the KL penalty it is PPO's TD error, which is
    the same number.

    Raises:
        ValueError: `gamma` lies outside [0, 1].
    """
    check_gamma(gamma)
    values = zero_padding(values, mask)
    next_values = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    return zero_padding(rewards + gamma * next_values - q_values, mask)


def discounted_sum(x: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], *, decay: float) -> Float[Tensor, "B T"]:
    r"""S_t = \sum_{k \ge t} decay^{k-t} x_k over real tokens, by the reverse scan S_t = x_t + decay S_{t+1}.

    Raises:
        ValueError: `decay` lies outside [0, 1].
    """
    check_unit_interval("decay", decay, "it is a discount, such as gamma or gamma * lambda")
    x = zero_padding(x, mask)
    sums = torch.empty_like(x)
    running = x.new_zeros(x.shape[0])
    for t in reversed(range(x.shape[1])):
        running = x[:, t] + decay * running
        sums[:, t] = running
    return zero_padding(sums, mask)


def lambda_returns(
    baseline: Float[Tensor, "B T"],
    deltas: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    *,
    gamma: float,
    lam: float,
    alpha: float = 1.0,
) -> Float[Tensor, "B T"]:
    r"""Eq. (7): G_t = b_t + \alpha \sum_{k \ge t} (\lambda\gamma)^{k-t} \delta_k.

    With b = Q it is the target of KLQ. With b = V it is the lambda-return of PPO, and the GAE advantage is
    `lambda_returns(values, deltas, mask, ...) - values`.

    Args:
        baseline: Q(s_t, a_t) or V(s_t) of the parameters that sampled the rollout.
        deltas: TD errors of the same parameters.
        mask: True at real tokens.
        gamma: discount.
        lam: lambda; 0 gives the one-step target, 1 the Monte-Carlo return.
        alpha: step size towards the lambda-return.

    Raises:
        ValueError: `gamma` or `lam` lies outside [0, 1], or `alpha` outside (0, 1].
    """
    check_gamma(gamma)
    check_unit_interval("lam", lam, "choose 0 for one-step targets, 1 for Monte-Carlo ones, or between, such as 0.95")
    check_alpha(alpha)
    return zero_padding(baseline + alpha * discounted_sum(deltas, mask, decay=lam * gamma), mask)


def kl_penalised_rewards(
    rewards: Float[Tensor, "B T"],
    logprobs: Float[Tensor, "B T"],
    ref_logprobs: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    *,
    tau: float,
) -> Float[Tensor, "B T"]:
    r"""PPO's reward, the summand of eq. (2): r_{t+1} - \tau (\log \pi(a_t|s_t) - \log \pi_b(a_t|s_t)).

    Raises:
        ValueError: `tau` is not positive.
    """
    check_tau(tau)
    return zero_padding(rewards - tau * (logprobs - ref_logprobs), mask)


def monte_carlo_returns(
    rewards: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], *, gamma: float
) -> Float[Tensor, "B T"]:
    r"""\sum_{k \ge t} \gamma^{k-t} r_{k+1}: the discounted reward to go.

    Raises:
        ValueError: `gamma` lies outside [0, 1].
    """
    check_gamma(gamma)
    return discounted_sum(rewards, mask, decay=gamma)
