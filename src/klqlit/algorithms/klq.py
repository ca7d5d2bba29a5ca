r"""KLQ: KL-regularised Q-learning (arXiv 2508.17000).

The policy carries an action value, eq. (13), with which it is the Boltzmann policy of Q around the reference:

.. math:: Q(s, a) = \tau \log \frac{\pi(a|s)}{\pi_b(a|s)} + V(s)

Regressing it onto lambda-returns, eqs. (6), (7) and (14), trains policy and critic in one loss:

.. math:: L = \frac{1}{2} (Q_\theta(s_t, a_t) - G_t)^2, \qquad
          G_t = Q(s_t, a_t) + \alpha \sum_{k \ge t} (\lambda\gamma)^{k-t} \delta_k, \qquad
          \delta_t = r_{t+1} + \gamma V(s_{t+1}) - Q(s_t, a_t)
"""

from typing import Any, final

from jaxtyping import Float
from torch import Tensor

from klqlit.algorithms.base import RLHFModule
from klqlit.algorithms.q_losses import QLoss, SquaredError
from klqlit.algorithms.schedules import LinearSchedule
from klqlit.functional import lambda_returns, q_values, rescale, td_errors
from klqlit.functional.checks import check_alpha, check_gamma, check_unit_interval
from klqlit.types import Experience, Rollout


@final
class KLQ(RLHFModule):
    r"""KL-regularised Q-learning.

    Args:
        gamma: discount, in [0, 1].
        lam: lambda of the returns, in [0, 1], or a schedule over phases.
        alpha: step towards the lambda-return, in (0, 1]. Below 1 it acts as a penalty on KL(pi || pi_old) with weight
            tau (1 - alpha) / alpha, eq. (18).
        q_loss: distance of Q from its target; eq. (6) by default.
        rescale_targets: divide the targets by their standard deviation over the phase. Changes what tau means: Q is
            then learned in units of that deviation.
        base: policy, critic, reference, reward, tau and the other arguments of `RLHFModule`.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        *,
        gamma: float = 1.0,
        lam: float | LinearSchedule = 0.95,
        alpha: float = 1.0,
        q_loss: QLoss | None = None,
        rescale_targets: bool = False,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        self.gamma = gamma
        self.lam = lam if isinstance(lam, LinearSchedule) else LinearSchedule(lam, lam, phases=1)
        self.alpha = alpha
        self.q_loss = q_loss or SquaredError()
        self.rescale_targets = rescale_targets
        check_gamma(gamma)
        check_alpha(alpha)
        for value in (self.lam.start, self.lam.end):
            check_unit_interval("lam", value, "choose 1 for Monte-Carlo returns, 0 for one-step returns")

    def targets(self, rollout: Rollout) -> Experience:
        mask, values, logprobs = rollout.mask, rollout.values, rollout.logprobs
        q = q_values(logprobs, rollout.ref_logprobs, values, tau=self.kl_coefficient)
        deltas = td_errors(rollout.rewards, values, q, mask, gamma=self.gamma)
        lam = self.lam(self.current_epoch)
        returns = lambda_returns(q, deltas, mask, gamma=self.gamma, lam=lam, alpha=self.alpha)
        return Experience(
            sequences=rollout.sequences,
            logprobs=logprobs,
            ref_logprobs=rollout.ref_logprobs,
            values=values,
            advantages=returns - q,
            returns=rescale(returns, mask) if self.rescale_targets else returns,
        )

    def loss(
        self, experience: Experience, logprobs: Float[Tensor, "B T"], values: Float[Tensor, "B T"]
    ) -> tuple[Float[Tensor, "B T"], dict[str, Float[Tensor, "B T"]]]:
        return self.q_loss(experience, logprobs, values, tau=self.kl_coefficient), {}
