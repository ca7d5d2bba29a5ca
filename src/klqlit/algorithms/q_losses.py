"""Ways to measure the distance between Q_theta and its target: what `KLQ(q_loss=...)` takes."""

from abc import ABC, abstractmethod
from typing import final

from jaxtyping import Float
from torch import Tensor

from klqlit.functional import (
    double_clipped_error,
    huber_error,
    q_values,
    ratio_clipped_error,
    squared_error,
    value_clipped_error,
)
from klqlit.functional.checks import check_fraction, check_positive
from klqlit.types import Experience


class QLoss(ABC):
    """Distance of Q_theta = tau * log(pi/pi_b) + V from the lambda-return, per token."""

    @abstractmethod
    def __call__(
        self, experience: Experience, logprobs: Float[Tensor, "B T"], values: Float[Tensor, "B T"], *, tau: float
    ) -> Float[Tensor, "B T"]:
        """Per-token losses; the gradient flows through `logprobs` and `values`."""


@final
class SquaredError(QLoss):
    """Eq. (6): 1/2 (Q - G)^2."""

    def __call__(
        self, experience: Experience, logprobs: Float[Tensor, "B T"], values: Float[Tensor, "B T"], *, tau: float
    ) -> Float[Tensor, "B T"]:
        return squared_error(q_values(logprobs, experience.ref_logprobs, values, tau=tau), experience.returns)


@final
class HuberError(QLoss):
    """Quadratic up to an error of `delta` (in units of reward), linear beyond."""

    def __init__(self, delta: float = 1.0) -> None:
        check_positive("q_loss.delta", delta, "choose 1.0, in units of reward")
        self.delta = delta

    def __call__(
        self, experience: Experience, logprobs: Float[Tensor, "B T"], values: Float[Tensor, "B T"], *, tau: float
    ) -> Float[Tensor, "B T"]:
        q = q_values(logprobs, experience.ref_logprobs, values, tau=tau)
        return huber_error(q, experience.returns, delta=self.delta)


@final
class ValueClippedError(QLoss):
    """The larger of the errors with V free and with V held within `value_clip` of the rollout's."""

    def __init__(self, value_clip: float = 0.2) -> None:
        check_positive("q_loss.value_clip", value_clip, "choose 0.2, in units of reward")
        self.value_clip = value_clip

    def __call__(
        self, experience: Experience, logprobs: Float[Tensor, "B T"], values: Float[Tensor, "B T"], *, tau: float
    ) -> Float[Tensor, "B T"]:
        return value_clipped_error(
            logprobs - experience.ref_logprobs,
            values,
            experience.values,
            experience.returns,
            tau=tau,
            value_clip=self.value_clip,
        )


@final
class RatioClippedError(QLoss):
    """The larger of the errors with the policy free and with its ratio to the rollout's within 1 +- `ratio_clip`."""

    def __init__(self, ratio_clip: float = 0.2) -> None:
        check_fraction("q_loss.ratio_clip", ratio_clip, "choose 0.2")
        self.ratio_clip = ratio_clip

    def __call__(
        self, experience: Experience, logprobs: Float[Tensor, "B T"], values: Float[Tensor, "B T"], *, tau: float
    ) -> Float[Tensor, "B T"]:
        return ratio_clipped_error(
            logprobs,
            experience.logprobs,
            experience.ref_logprobs,
            values,
            experience.returns,
            tau=tau,
            ratio_clip=self.ratio_clip,
        )


@final
class DoubleClippedError(QLoss):
    """The larger of the errors with policy and value free and with both held near the rollout's."""

    def __init__(self, ratio_clip: float = 0.2, value_clip: float = 0.2) -> None:
        check_fraction("q_loss.ratio_clip", ratio_clip, "choose 0.2")
        self.ratio_clip = ratio_clip
        check_positive("q_loss.value_clip", value_clip, "choose 0.2, in units of reward")
        self.value_clip = value_clip

    def __call__(
        self, experience: Experience, logprobs: Float[Tensor, "B T"], values: Float[Tensor, "B T"], *, tau: float
    ) -> Float[Tensor, "B T"]:
        return double_clipped_error(
            logprobs,
            experience.logprobs,
            experience.ref_logprobs,
            values,
            experience.values,
            experience.returns,
            tau=tau,
            ratio_clip=self.ratio_clip,
            value_clip=self.value_clip,
        )
