"""The policy against its reference on held-out prompts."""

from dataclasses import dataclass
from typing import final

from jaxtyping import Float
from torch import Tensor, nn

from klqlit.metrics.rollout import RolloutMetrics
from klqlit.metrics.win_rate import WinRate
from klqlit.types import Completions, Rollout


@dataclass(kw_only=True, slots=True)
class Scored:
    """Completions of one side with their scores.

    Attributes:
        completions: prompts and completions.
        scores: the reward's.
        gold: the gold reward's, where there is one.
    """

    completions: Completions
    scores: Float[Tensor, " B"]
    gold: Float[Tensor, " B"] | None


@dataclass(kw_only=True, slots=True)
class Comparison:
    """Both sides' completions of the same prompts, drawn with the same seeds.

    Attributes:
        policy: the policy's completions.
        reference: the reference's.
        rollout: the policy's completions with log-probabilities, values and raw scores; this rank's rows.
    """

    policy: Scored
    reference: Scored
    rollout: Rollout


@final
class ComparisonMetrics(nn.Module):
    """Metrics of the policy's rollouts, the reference's scores beside them, and win rates.

    Args:
        tau: KL coefficient of the objective.
    """

    def __init__(self, *, tau: float) -> None:
        super().__init__()
        self.rollouts = RolloutMetrics(tau=tau)
        self.reference = RolloutMetrics(tau=tau)
        self.score_wins = WinRate()
        self.gold_wins = WinRate()

    def update(self, comparison: Comparison) -> None:
        """Add a batch."""
        policy, reference = comparison.policy, comparison.reference
        self.rollouts.update(comparison.rollout, policy.gold)
        self.reference.update_scores(reference.scores, reference.gold)
        self.score_wins.update(policy.scores, reference.scores)
        if policy.gold is not None and reference.gold is not None:
            self.gold_wins.update(policy.gold, reference.gold)

    def compute(self) -> dict[str, float]:
        """All metrics by name, over all ranks: the policy's, `reference/...` and `win_rate/...`."""
        values = self.rollouts.compute()
        values |= {name.replace("reward/", "reference/"): value for name, value in self.reference.compute().items()}
        if self.gold_wins.update_called:
            values["win_rate/gold"] = float(self.gold_wins.compute())
        return values | {"win_rate/score": float(self.score_wins.compute())}

    def reset(self) -> None:
        """Forget everything."""
        self.rollouts.reset()
        self.reference.reset()
        self.score_wins.reset()
        self.gold_wins.reset()
