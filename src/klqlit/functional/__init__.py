"""Pure functions on tensors: one equation each. Nothing here knows models, records or algorithms.

Axes: B rollouts, T response positions, V vocabulary, N pairs. `mask` is True at real tokens.
"""

from klqlit.functional.kl import full_kl, kl_k1, kl_k2, kl_k3
from klqlit.functional.klq import (
    double_clipped_error,
    huber_error,
    ratio_clipped_error,
    squared_error,
    value_clipped_error,
)
from klqlit.functional.linear_logprobs import linear_logprobs
from klqlit.functional.logprobs import entropy, token_logprobs
from klqlit.functional.masking import (
    last_index,
    masked_mean,
    masked_moments,
    masked_sum,
    response_mask,
    zero_padding,
)
from klqlit.functional.ppo import (
    adaptive_kl_coefficient,
    clip_fraction,
    clipped_surrogate,
    clipped_value_error,
    penalised_surrogate,
    penalty_twin,
    value_error,
)
from klqlit.functional.preference import bradley_terry_loss, expected_calibration_error, preference_accuracy
from klqlit.functional.returns import (
    discounted_sum,
    kl_penalised_rewards,
    lambda_returns,
    monte_carlo_returns,
    q_values,
    td_errors,
)
from klqlit.functional.whitening import rescale, whiten

__all__ = [
    "adaptive_kl_coefficient",
    "bradley_terry_loss",
    "clip_fraction",
    "clipped_surrogate",
    "clipped_value_error",
    "discounted_sum",
    "double_clipped_error",
    "entropy",
    "expected_calibration_error",
    "full_kl",
    "huber_error",
    "kl_k1",
    "kl_k2",
    "kl_k3",
    "kl_penalised_rewards",
    "lambda_returns",
    "last_index",
    "linear_logprobs",
    "masked_mean",
    "masked_moments",
    "masked_sum",
    "monte_carlo_returns",
    "penalised_surrogate",
    "penalty_twin",
    "preference_accuracy",
    "q_values",
    "ratio_clipped_error",
    "rescale",
    "response_mask",
    "squared_error",
    "td_errors",
    "token_logprobs",
    "value_clipped_error",
    "value_error",
    "whiten",
    "zero_padding",
]
