r"""RLOO: REINFORCE with a leave-one-out baseline (arXiv 2402.14740), as an objective of your own.

.. math:: A_i = R_i - \frac{1}{k - 1} \sum_{j \ne i} R_j, \qquad
          R_i = \sum_t r_{t+1} - \tau \log \frac{\pi(a_t|s_t)}{\pi_b(a_t|s_t)}
"""

from typing import Any, final

import torch
from torch import Tensor

from klqlit import NoCritic, RLHFModule
from klqlit.functional import kl_penalised_rewards, masked_sum
from klqlit.types import Experience, Rollout


@final
class RLOO(RLHFModule):
    """REINFORCE whose baseline is the mean of a prompt's other completions.

    Args:
        samples_per_prompt: k, the same as the data module's, at least 2.
        base: as in `RLHFModule`.
    """

    def __init__(self, *, samples_per_prompt: int = 4, **base: Any) -> None:
        super().__init__(critic=NoCritic, **base)
        if samples_per_prompt < 2:
            raise ValueError(
                f"samples_per_prompt={samples_per_prompt} leaves nothing to compare with: choose 2 or more"
            )
        self.samples_per_prompt = samples_per_prompt

    def targets(self, rollout: Rollout) -> Experience:
        logprobs, reference, mask = rollout.logprobs, rollout.ref_logprobs, rollout.mask
        rewards = kl_penalised_rewards(rollout.rewards, logprobs, reference, mask, tau=self.tau)
        groups = masked_sum(rewards, mask, dim=1).view(-1, self.samples_per_prompt)
        others = (groups.sum(dim=1, keepdim=True) - groups) / (self.samples_per_prompt - 1)
        advantages = (groups - others).view(-1, 1).expand_as(rewards)
        return Experience(
            sequences=rollout.sequences,
            logprobs=logprobs,
            ref_logprobs=reference,
            values=rollout.values,
            advantages=advantages,
            returns=rewards,
        )

    def loss(self, experience: Experience, logprobs: Tensor, values: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        ratio = torch.exp(logprobs - experience.logprobs)
        return -ratio * experience.advantages, {"ratio": ratio}
