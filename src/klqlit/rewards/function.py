"""A python function as a reward."""

from collections.abc import Callable, Sequence
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from klqlit.rewards.base import Reward
from klqlit.types import Completions


@final
class FunctionReward(Reward):
    """Scores by ``function(prompts, completions, **columns) -> list of floats``.

    Args:
        function: takes the prompts and completions as lists of str, and the other columns of the rows as keyword
            arguments (lists too; accept ``**columns`` to ignore them). In YAML: its import path.
    """

    def __init__(self, function: Callable[..., Sequence[float]]) -> None:
        super().__init__()
        self.function: Callable[..., Any] = function

    def forward(self, completions: Completions) -> Float[Tensor, " B"]:
        scores = self.function(completions.prompts, completions.completions, **completions.columns)
        if len(scores) != len(completions):
            raise ValueError(
                f"reward.function returned {len(scores)} scores for {len(completions)} completions; return one each"
            )
        device = completions.sequences.tokens.device
        return torch.tensor([float(score) for score in scores], dtype=torch.float32, device=device)
