"""From a score to per-token rewards."""

from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from klqlit.functional.checks import check_not_negative, check_positive
from klqlit.functional.masking import last_index, masked_sum


def place_scores(scores: Float[Tensor, " B"] | Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """Scores as rewards r_{t+1}: a score per completion lands on the last real token, a score per token where it is."""
    if scores.ndim == 2:
        return torch.where(mask, scores, 0.0)
    rewards = torch.zeros(mask.shape, dtype=scores.dtype, device=scores.device)
    return rewards.scatter(1, last_index(mask)[:, None], scores[:, None])


def total_scores(scores: Float[Tensor, " B"] | Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, " B"]:
    """One score a completion: as it came, or the sum over its tokens."""
    return masked_sum(scores, mask, dim=1) if scores.ndim == 2 else scores


@final
class RewardShaping(nn.Module):
    r"""Optional changes to the rewards before the algorithm sees them, in this order; all off by default.

    1. clip: each reward to [-clip, clip];
    2. normalise: divide by the running standard deviation of the scores. Nothing is subtracted: a constant shift of the
       score changes V and leaves the best policy as it is;
    3. scale: multiply;
    4. missing-EOS penalty: subtract on the last real token of a response that the length limit cut. A response that
       a stop string ended is not punished.

    Args:
        clip: bound on the absolute reward, in units of score; None for none.
        normalise: divide by the running standard deviation.
        scale: factor.
        missing_eos_penalty: what a cut response loses, in units of the shaped reward.

    Raises:
        ValueError: `clip` or `scale` is not positive, or the penalty is negative.
    """

    count: Tensor
    mean: Tensor
    squares: Tensor

    def __init__(
        self,
        *,
        clip: float | None = None,
        normalise: bool = False,
        scale: float = 1.0,
        missing_eos_penalty: float = 0.0,
    ) -> None:
        super().__init__()
        if clip is not None:
            check_positive("shaping.clip", clip, "leave it out for no clipping")
        check_positive("shaping.scale", scale, "choose 1 to leave the rewards as they are")
        check_not_negative("shaping.missing_eos_penalty", missing_eos_penalty, "it is subtracted; choose 0 for none")
        self.clip = clip
        self.normalise = normalise
        self.scale = scale
        self.missing_eos_penalty = missing_eos_penalty
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros((), dtype=torch.float64))
        self.register_buffer("squares", torch.zeros((), dtype=torch.float64))

    def forward(
        self, rewards: Float[Tensor, "B T"], ended: Bool[Tensor, " B"], mask: Bool[Tensor, "B T"]
    ) -> Float[Tensor, "B T"]:
        """Shaped rewards; `normalise` first takes these scores into its running statistics."""
        if self.clip is not None:
            rewards = rewards.clamp(-self.clip, self.clip)
        if self.normalise:
            self._observe(rewards.sum(dim=1))
            rewards = rewards / self._deviation(rewards)
        return self.scale * rewards - place_scores(self.missing_eos_penalty * (~ended).to(rewards.dtype), mask)

    def _observe(self, scores: Float[Tensor, " B"]) -> None:
        """Chan's parallel update of count, mean and sum of squared deviations."""
        scores = scores.detach().to(self.mean)
        count = self.count + len(scores)
        delta = scores.mean() - self.mean
        self.squares += (scores - scores.mean()).square().sum() + delta.square() * self.count * len(scores) / count
        self.mean += delta * len(scores) / count
        self.count.copy_(count)

    def _deviation(self, like: Tensor) -> Tensor:
        # One score has no spread, and equal scores none either: then leave the scale as it is.
        variance = self.squares / (self.count - 1).clamp(min=1)
        return torch.where(variance > 0, variance.sqrt(), 1.0).to(like)
