"""What is measured on a rollout."""

from typing import final

from jaxtyping import Float
from torch import Tensor, nn

from klqlit.functional import kl_k1, kl_k3, masked_sum
from klqlit.metrics.means import Means
from klqlit.types import Rollout


@final
class RolloutMetrics(nn.Module):
    r"""Score, KL, objective, entropy and length of rollouts.

    Names are grouped for TensorBoard. Per-sequence means weigh completions equally, per-token means weigh tokens
    equally:

    - ``reward/score``, ``reward/gold``: mean score as it came, by the reward and by the gold reward; ``_std`` their
      standard deviation over completions;
    - ``objective/J``: :math:`\sum_t r_{t+1} - \tau \log(\pi/\pi_b)` per completion, with the score before shaping;
    - ``kl/sequence``: k1 estimate of KL(pi || pi_b) per completion, ``kl/token_k1`` and ``kl/token_k3`` per token;
    - ``policy/entropy`` per token, ``policy/length`` in tokens, ``policy/ended`` share of completions that ended by
      themselves.

    Args:
        tau: KL coefficient of the objective.
    """

    def __init__(self, *, tau: float) -> None:
        super().__init__()
        self.tau = tau
        self.means = Means()

    def update(self, rollout: Rollout, gold: Float[Tensor, " B"] | None = None) -> None:
        """Add a rollout, and the gold scores of its completions where there are any."""
        mask, logratio = rollout.mask, rollout.logprobs - rollout.ref_logprobs
        kl = masked_sum(kl_k1(logratio), mask, dim=1)
        self.update_scores(rollout.scores, gold)
        self.means.update(
            {
                "objective/J": rollout.scores - self.tau * kl,
                "kl/sequence": kl,
                "policy/length": mask.sum(dim=1).double(),
                "policy/ended": rollout.completions.ended,
            }
        )
        per_token = {"kl/token_k1": kl_k1(logratio), "kl/token_k3": kl_k3(logratio), "policy/entropy": rollout.entropy}
        self.means.update(per_token, mask)

    def update_scores(self, scores: Float[Tensor, " B"], gold: Float[Tensor, " B"] | None = None) -> None:
        """Add scores alone."""
        for name, values in (("reward/score", scores), ("reward/gold", gold)):
            if values is not None:
                values = values.double()
                self.means.update({name: values, f"{name}_square": values.square()})

    def compute(self) -> dict[str, float]:
        """All metrics by name, over all ranks."""
        values = self.means.compute()
        for name in ("reward/score", "reward/gold"):
            if name in values:
                values[f"{name}_std"] = max(values.pop(f"{name}_square") - values[name] ** 2, 0.0) ** 0.5
        return values

    def reset(self) -> None:
        """Forget everything."""
        self.means.reset()
