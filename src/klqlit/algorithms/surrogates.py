"""Ways to keep a policy-gradient step near the rollout's policy: what `PPO(surrogate=...)` takes."""

from abc import ABC, abstractmethod
from typing import final

from jaxtyping import Float
from torch import Tensor

from klqlit.functional import clip_fraction, clipped_surrogate, penalised_surrogate
from klqlit.functional.checks import check_fraction, check_not_negative
from klqlit.types import Experience


class Surrogate(ABC):
    """The policy's part of the PPO loss, per token."""

    @abstractmethod
    def __call__(
        self, experience: Experience, logprobs: Float[Tensor, "B T"]
    ) -> tuple[Float[Tensor, "B T"], dict[str, Float[Tensor, "B T"]]]:
        """Per-token losses, and per-token quantities to log by name."""


@final
class ClippedSurrogate(Surrogate):
    """-min(r A, clip(r, 1 - clip, 1 + clip) A)."""

    def __init__(self, clip: float = 0.2) -> None:
        check_fraction("surrogate.clip", clip, "choose 0.2")
        self.clip = clip

    def __call__(
        self, experience: Experience, logprobs: Float[Tensor, "B T"]
    ) -> tuple[Float[Tensor, "B T"], dict[str, Float[Tensor, "B T"]]]:
        old, advantages = experience.logprobs, experience.advantages
        losses = clipped_surrogate(logprobs, old, advantages, clip=self.clip)
        return losses, {"clip_fraction": clip_fraction(logprobs, old, advantages, clip=self.clip)}


@final
class PenalisedSurrogate(Surrogate):
    """-r A + beta KL(pi || pi_old).

    KLQ's twin at beta = tau / alpha: the penalty tau (1 - alpha) / alpha of eq. (18), `functional.penalty_twin`, stands
    beside a penalty tau KL(pi || pi_b), and with Q_old in the objective that one acts as tau KL(pi || pi_old).

    Args:
        beta: weight of the divergence from the rollout's policy, in units of reward per nat.
    """

    def __init__(self, beta: float) -> None:
        check_not_negative("surrogate.beta", beta, "choose tau / alpha for KLQ's twin")
        self.beta = beta

    def __call__(
        self, experience: Experience, logprobs: Float[Tensor, "B T"]
    ) -> tuple[Float[Tensor, "B T"], dict[str, Float[Tensor, "B T"]]]:
        losses = penalised_surrogate(logprobs, experience.logprobs, experience.advantages, beta=self.beta)
        return losses, {}
