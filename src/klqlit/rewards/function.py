"""A python function as a reward."""

from collections.abc import Callable, Iterable, Sequence
from inspect import signature
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
        scores = list(self._call(completions))
        if len(scores) != len(completions):
            raise ValueError(
                f"reward.function returned {len(scores)} scores for {len(completions)} completions; return one each"
            )
        device = completions.sequences.tokens.device
        numbers = [_number(score, i) for i, score in enumerate(scores)]
        return torch.tensor(numbers, dtype=torch.float32, device=device)

    def _call(self, completions: Completions) -> Iterable[Any]:
        columns = completions.columns
        try:
            signature(self.function).bind([], [], **columns)
        except TypeError as error:
            raise ValueError(
                f"reward.function cannot be called with prompts, completions and the columns {sorted(columns)}: "
                f"{error}. Give it the signature f(prompts, completions, **columns)"
            ) from error
        scores = self.function(completions.prompts, completions.completions, **columns)
        if not isinstance(scores, Iterable):
            raise ValueError(f"reward.function returned {scores!r}; return a list with one score a completion")
        return scores


def _number(score: Any, i: int) -> float:
    # A text such as "1.5" would pass as a number, until one comes that does not.
    try:
        if not isinstance(score, str | bytes):
            return float(score)
    except (TypeError, ValueError, RuntimeError):  # None; a tensor of several numbers
        pass
    raise ValueError(
        f"reward.function returned {score!r:.60} ({type(score).__name__}) for completion {i}: return a number"
    )
