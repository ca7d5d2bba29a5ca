"""KLQ's regression of Q on its lambda-return, per token. Reduce over real tokens elsewhere, by their global number.

Gradients flow through q, values and logprobs; targets and everything "old" or of the reference are constants.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from klqlit.functional.checks import check_fraction, check_positive, check_tau


def squared_error(q: Float[Tensor, "B T"], returns: Float[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """Eq. (6): 1/2 (Q_theta(s_t, a_t) - G_t)^2."""
    return 0.5 * (q - returns.detach()).square()


def huber_error(q: Float[Tensor, "B T"], returns: Float[Tensor, "B T"], *, delta: float) -> Float[Tensor, "B T"]:
    """Eq. (6) with Huber's loss: e^2 / 2 where |e| = |Q - G| <= delta, else delta (|e| - delta / 2).

    Raises:
        ValueError: `delta` is not positive.
    """
    check_positive("delta", delta, "it is the error, in units of reward, beyond which the loss grows linearly")
    error = (q - returns.detach()).abs()
    quadratic = error.clamp(max=delta)
    return quadratic * (error - 0.5 * quadratic)


def value_clipped_error(
    logratio: Float[Tensor, "B T"],
    values: Float[Tensor, "B T"],
    old_values: Float[Tensor, "B T"],
    returns: Float[Tensor, "B T"],
    *,
    tau: float,
    value_clip: float,
) -> Float[Tensor, "B T"]:
    """Eq. (6) with the value held near its old one: max(1/2 (Q - G)^2, 1/2 (Q_c - G)^2).

    Q = tau logratio + V and Q_c = tau logratio + V_old + clip(V - V_old, -value_clip, value_clip).

    Args:
        logratio: log pi - log pi_b of the taken tokens, nats.
        values: V(s_t).
        old_values: V(s_t) of the parameters that sampled the rollout.
        returns: G_t.
        tau: the KL coefficient.
        value_clip: the largest move of a value that still lowers the loss, in units of reward.

    Raises:
        ValueError: `tau` or `value_clip` is not positive.
    """
    check_tau(tau)
    clipped = _clip_values(values, old_values, value_clip)
    return _larger_error(tau * logratio + values, tau * logratio + clipped, returns)


def ratio_clipped_error(
    logprobs: Float[Tensor, "B T"],
    old_logprobs: Float[Tensor, "B T"],
    ref_logprobs: Float[Tensor, "B T"],
    values: Float[Tensor, "B T"],
    returns: Float[Tensor, "B T"],
    *,
    tau: float,
    ratio_clip: float,
) -> Float[Tensor, "B T"]:
    """Eq. (6) with the policy held near its old one: max(1/2 (Q - G)^2, 1/2 (Q_c - G)^2).

    Q = tau log(pi / pi_b) + V, and in Q_c the ratio pi / pi_old is clipped to [1 - ratio_clip, 1 + ratio_clip].

    Raises:
        ValueError: `tau` is not positive, or `ratio_clip` lies outside (0, 1).
    """
    check_tau(tau)
    ref_logprobs = ref_logprobs.detach()
    clipped = _clip_logprobs(logprobs, old_logprobs, ratio_clip)
    q, clipped_q = tau * (logprobs - ref_logprobs) + values, tau * (clipped - ref_logprobs) + values
    return _larger_error(q, clipped_q, returns)


def double_clipped_error(
    logprobs: Float[Tensor, "B T"],
    old_logprobs: Float[Tensor, "B T"],
    ref_logprobs: Float[Tensor, "B T"],
    values: Float[Tensor, "B T"],
    old_values: Float[Tensor, "B T"],
    returns: Float[Tensor, "B T"],
    *,
    tau: float,
    ratio_clip: float,
    value_clip: float,
) -> Float[Tensor, "B T"]:
    """Eq. (6) with policy and value both held near their old ones: as above, Q_c with both clips.

    Raises:
        ValueError: `tau` or `value_clip` is not positive, or `ratio_clip` lies outside (0, 1).
    """
    check_tau(tau)
    ref_logprobs = ref_logprobs.detach()
    clipped = _clip_logprobs(logprobs, old_logprobs, ratio_clip)
    clipped_values = _clip_values(values, old_values, value_clip)
    q, clipped_q = tau * (logprobs - ref_logprobs) + values, tau * (clipped - ref_logprobs) + clipped_values
    return _larger_error(q, clipped_q, returns)


def hold_near(x: Float[Tensor, "B T"], old: Float[Tensor, "B T"], low: float, high: float) -> Float[Tensor, "B T"]:
    """x_old + clip(x - x_old, low, high)."""
    old = old.detach()
    return old + (x - old).clamp(min=low, max=high)


def _clip_values(values: Float[Tensor, "B T"], old_values: Float[Tensor, "B T"], clip: float) -> Float[Tensor, "B T"]:
    check_positive("value_clip", clip, "choose a width in units of reward such as 0.2, or a loss without it")
    return hold_near(values, old_values, -clip, clip)


def _clip_logprobs(
    logprobs: Float[Tensor, "B T"], old_logprobs: Float[Tensor, "B T"], clip: float
) -> Float[Tensor, "B T"]:
    check_fraction("ratio_clip", clip, "choose a width such as 0.2, or a loss without ratio clipping")
    return hold_near(logprobs, old_logprobs, math.log1p(-clip), math.log1p(clip))


def _larger_error(
    q: Float[Tensor, "B T"], clipped_q: Float[Tensor, "B T"], returns: Float[Tensor, "B T"]
) -> Float[Tensor, "B T"]:
    return torch.maximum(squared_error(q, returns), squared_error(clipped_q, returns))
