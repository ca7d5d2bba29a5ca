"""How often one side's completion beats the other's."""

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric


@final
class WinRate(Metric):
    """Share of pairs that the first side wins; a tie counts as half a win for each."""

    full_state_update = False
    higher_is_better = True
    wins: Tensor
    pairs: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("wins", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("pairs", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, scores: Float[Tensor, " B"], other: Float[Tensor, " B"]) -> None:
        """Add pairs by the scores of both sides; verdicts of 1, 1/2 and 0 against what they leave: `v, 1 - v`."""
        # Not in place: what a validation of its own leaves behind are inference tensors.
        self.wins = self.wins + (scores > other).sum() + 0.5 * (scores == other).sum()
        self.pairs = self.pairs + len(scores)

    def compute(self) -> Tensor:
        """Win rate in [0, 1]."""
        return self.wins / self.pairs
