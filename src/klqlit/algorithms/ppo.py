r"""PPO for language models: a clipped policy gradient with the KL inside the reward.

.. math:: \hat r_{t+1} = r_{t+1} - \tau \log \frac{\pi_{old}(a_t|s_t)}{\pi_b(a_t|s_t)}, \qquad
          A_t = \sum_{k \ge t} (\lambda\gamma)^{k-t} \left( \hat r_{k+1} + \gamma V(s_{k+1}) - V(s_k) \right)

The loss is the surrogate of the ratio with A plus the error of V from V_old + A, the form of the well-known TL;DR
reproduction (arXiv 2403.17031).
"""

from typing import Any, final

from jaxtyping import Float
from torch import Tensor

from klqlit.algorithms.base import RLHFModule
from klqlit.algorithms.surrogates import ClippedSurrogate, Surrogate
from klqlit.functional import (
    adaptive_kl_coefficient,
    clipped_value_error,
    kl_penalised_rewards,
    lambda_returns,
    masked_sum,
    td_errors,
    value_error,
    whiten,
)
from klqlit.functional.checks import check_gamma, check_not_negative, check_positive, check_unit_interval
from klqlit.types import Experience, Rollout


@final
class AdaptiveKL:
    """Moves the KL coefficient so that the KL to the reference stays near a target (Ziegler et al., 2019).

    Args:
        target: KL per sequence to hold, nats.
        horizon: episodes over which the coefficient adapts; more than a fifth of a phase's.

    Raises:
        ValueError: a number is not positive.
    """

    def __init__(self, target: float, horizon: int = 10_000) -> None:
        self.target = target
        self.horizon = horizon
        self.check(episodes=1)

    def check(self, episodes: int) -> None:
        """Refuse phases of so many episodes that tau might leave the positive numbers."""
        # The function checks its arguments: let it do so before a run starts.
        self(tau=1.0, kl=self.target, episodes=episodes)

    def __call__(self, *, tau: float, kl: float, episodes: int) -> float:
        return adaptive_kl_coefficient(tau, kl, target=self.target, horizon=self.horizon, episodes=episodes)


@final
class PPO(RLHFModule):
    """Proximal policy optimisation.

    Args:
        gamma: discount, in [0, 1].
        lam: lambda of the generalised advantage estimate, in [0, 1].
        surrogate: how a step is kept near the rollout's policy: clipping, or a reverse-KL penalty.
        value_clip: the new value may move this far from the rollout's; None for no clipping.
        value_coefficient: weight of the value error.
        whiten_advantages: shift and scale the phase's advantages to mean 0 and variance 1.
        adaptive_kl: lets the KL coefficient move; it starts at `tau`.
        base: policy, critic, reference, reward, tau and the other arguments of `RLHFModule`.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        *,
        gamma: float = 1.0,
        lam: float = 0.95,
        surrogate: Surrogate | None = None,
        value_clip: float | None = 0.2,
        value_coefficient: float = 0.1,
        whiten_advantages: bool = True,
        adaptive_kl: AdaptiveKL | None = None,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        check_gamma(gamma)
        check_unit_interval("lam", lam, "choose 1 for Monte-Carlo returns, 0 for one-step returns")
        check_not_negative("value_coefficient", value_coefficient, "choose 0.1, or 0 to leave the critic as it is")
        if value_clip is not None:
            check_positive("value_clip", value_clip, "choose 0.2, or null for no clipping")
        self.gamma = gamma
        self.lam = lam
        self.surrogate = surrogate or ClippedSurrogate()
        self.value_clip = value_clip
        self.value_coefficient = value_coefficient
        self.whiten_advantages = whiten_advantages
        self.adaptive_kl = adaptive_kl
        if adaptive_kl is not None:
            self.phase_checks.append(adaptive_kl.check)

    def targets(self, rollout: Rollout) -> Experience:
        mask, values, tau = rollout.mask, rollout.values, self.kl_coefficient
        rewards = kl_penalised_rewards(rollout.rewards, rollout.logprobs, rollout.ref_logprobs, mask, tau=tau)
        deltas = td_errors(rewards, values, values, mask, gamma=self.gamma)
        returns = lambda_returns(values, deltas, mask, gamma=self.gamma, lam=self.lam)
        advantages = returns - values
        self._adapt(rollout)
        return Experience(
            sequences=rollout.sequences,
            logprobs=rollout.logprobs,
            ref_logprobs=rollout.ref_logprobs,
            values=values,
            advantages=whiten(advantages, mask) if self.whiten_advantages else advantages,
            returns=returns,
        )

    def loss(
        self, experience: Experience, logprobs: Float[Tensor, "B T"], values: Float[Tensor, "B T"]
    ) -> tuple[Float[Tensor, "B T"], dict[str, Float[Tensor, "B T"]]]:
        policy_loss, metrics = self.surrogate(experience, logprobs)
        value_loss = self._value_loss(experience, values)
        metrics |= {"policy_loss": policy_loss, "value_loss": value_loss}
        return policy_loss + self.value_coefficient * value_loss, metrics

    def _value_loss(self, experience: Experience, values: Float[Tensor, "B T"]) -> Float[Tensor, "B T"]:
        if self.value_clip is None:
            return value_error(values, experience.returns)
        return clipped_value_error(values, experience.values, experience.returns, clip=self.value_clip)

    def _adapt(self, rollout: Rollout) -> None:
        if self.adaptive_kl is None:
            return
        kl = masked_sum(rollout.logprobs - rollout.ref_logprobs, rollout.mask, dim=1).mean()
        episodes = len(rollout.sequences)
        self.kl_coefficient = self.adaptive_kl(tau=self.kl_coefficient, kl=float(kl), episodes=episodes)
