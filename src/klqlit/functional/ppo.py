"""PPO's losses per token (Schulman et al., 2017), and what steers its KL coefficient.

The ratio is r = pi(a_t|s_t) / pi_old(a_t|s_t). Gradients flow through logprobs and values only.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from klqlit.functional.checks import check_alpha, check_not_negative, check_positive, check_tau
from klqlit.functional.klq import hold_near, squared_error

_CLIP_ADVICE = "choose a width such as 0.2"


def clipped_surrogate(
    logprobs: Float[Tensor, "B T"],
    old_logprobs: Float[Tensor, "B T"],
    advantages: Float[Tensor, "B T"],
    *,
    clip: float,
) -> Float[Tensor, "B T"]:
    """-min(r A, clip(r, 1 - clip, 1 + clip) A).

    Raises:
        ValueError: `clip` is not positive.
    """
    unclipped, clipped = _surrogates(logprobs, old_logprobs, advantages, clip)
    return -torch.minimum(unclipped, clipped)


def clip_fraction(
    logprobs: Float[Tensor, "B T"],
    old_logprobs: Float[Tensor, "B T"],
    advantages: Float[Tensor, "B T"],
    *,
    clip: float,
) -> Float[Tensor, "B T"]:
    """1 where the clip takes the gradient away (r > 1 + clip and A > 0, or r < 1 - clip and A < 0), else 0.

    Raises:
        ValueError: `clip` is not positive.
    """
    unclipped, clipped = _surrogates(logprobs, old_logprobs, advantages, clip)
    return (clipped < unclipped).to(unclipped.dtype)


def penalised_surrogate(
    logprobs: Float[Tensor, "B T"],
    old_logprobs: Float[Tensor, "B T"],
    advantages: Float[Tensor, "B T"],
    *,
    beta: float,
) -> Float[Tensor, "B T"]:
    """-r A + beta (r log r - (r - 1)): the surrogate with a reverse-KL penalty in place of clipping.

    Under a ~ pi_old, E[r log r] = sum_a pi log(pi / pi_old) = KL(pi || pi_old) and E[r - 1] = sum_a pi - 1 = 0, so
    the penalty's expectation is beta KL(pi || pi_old). The actions do not depend on the parameters, so its gradient,
    beta E[log r * grad r], is that of the divergence, without bias. The summand r - 1 changes neither; it makes the
    penalty f(r) = r log r - r + 1 convex with minimum f(1) = 0, hence not negative in any single sample.

    Raises:
        ValueError: `beta` is negative.
    """
    check_not_negative("beta", beta, "choose 0 for no penalty; tau + penalty_twin(tau, alpha) matches KLQ")
    logratio = logprobs - old_logprobs.detach()
    ratio = logratio.exp()
    return beta * (ratio * logratio - (ratio - 1)) - ratio * advantages.detach()


def value_error(values: Float[Tensor, "B T"], returns: Float[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """1/2 (V(s_t) - G_t)^2."""
    return squared_error(values, returns)


def clipped_value_error(
    values: Float[Tensor, "B T"], old_values: Float[Tensor, "B T"], returns: Float[Tensor, "B T"], *, clip: float
) -> Float[Tensor, "B T"]:
    """max(1/2 (V - G)^2, 1/2 (V_c - G)^2) with V_c = V_old + clip(V - V_old, -clip, clip).

    Raises:
        ValueError: `clip` is not positive.
    """
    check_positive("clip", clip, _CLIP_ADVICE)
    clipped = hold_near(values, old_values, -clip, clip)
    return torch.maximum(value_error(values, returns), value_error(clipped, returns))


def adaptive_kl_coefficient(tau: float, kl: float, *, target: float, horizon: int, episodes: int) -> float:
    """tau (1 + clip(kl / target - 1, -0.2, 0.2) episodes / horizon) (Ziegler et al., 2019, section 2.2).

    Args:
        tau: the present coefficient.
        kl: measured KL(pi || pi_b) per sequence, nats.
        target: the divergence to hold, same units.
        horizon: episodes over which an error of 20 % or more changes tau by 20 %.
        episodes: episodes since the last change.

    Raises:
        ValueError: an argument is not positive, or `horizon` is so short that tau might leave the positive numbers.
    """
    check_tau(tau)
    check_positive("target", target, "choose the divergence per sequence to hold, such as 6 nats")
    check_positive("episodes", episodes, "give the number of episodes since the last change")
    if not horizon > 0.2 * episodes:
        raise ValueError(
            f"horizon must exceed a fifth of the {episodes} episodes between changes, got {horizon}: "
            "choose a longer one, such as 10000"
        )
    error = min(max(kl / target - 1, -0.2), 0.2)
    return tau * (1 + error * episodes / horizon)


def penalty_twin(tau: float, alpha: float) -> float:
    """Eq. (18): beta = tau (1 - alpha) / alpha, the weight of KL(pi || pi_old) that a step size alpha amounts to.

    One exact regression of KLQ, pi proportional to pi_old exp(alpha A / tau), maximises
    E_pi[Q_old + A] - tau KL(pi || pi_b) - beta KL(pi || pi_old). Here E_pi[Q_old] - tau KL(pi || pi_b) is
    V_old - tau KL(pi || pi_old), so the two divergences to pi_old add up: `penalised_surrogate`, which knows no other,
    seeks the same policy with the coefficient tau + beta = tau / alpha.

    Raises:
        ValueError: `tau` is not positive, or `alpha` lies outside (0, 1].
    """
    check_tau(tau)
    check_alpha(alpha)
    return tau * (1 - alpha) / alpha


def _surrogates(
    logprobs: Float[Tensor, "B T"], old_logprobs: Float[Tensor, "B T"], advantages: Float[Tensor, "B T"], clip: float
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
    check_positive("clip", clip, _CLIP_ADVICE)
    ratio, advantages = (logprobs - old_logprobs.detach()).exp(), advantages.detach()
    return ratio * advantages, ratio.clamp(min=1 - clip, max=1 + clip) * advantages
