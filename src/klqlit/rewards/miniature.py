"""The miniature tasks' gold scores as rewards: what a learned reward model is to be checked against."""

from collections.abc import Callable
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from klqlit.data.miniature.hh_score import score_answer
from klqlit.data.miniature.sums_score import score_solution
from klqlit.data.miniature.tldr_score import score_summary
from klqlit.rewards.base import Reward
from klqlit.types import Completions


@final
class MiniHHGold(Reward):
    """Gold score of answers to `MiniHH`'s questions; the formula is `hh_score`'s.

    Needs the columns ``topic``, ``aspect`` and ``situation``, and raises ValueError without them.
    """

    def forward(self, completions: Completions) -> Float[Tensor, " B"]:
        return _score(completions, score_answer, "MiniHH", ("topic", "aspect", "situation"))


@final
class MiniTLDRGold(Reward):
    """Gold score of summaries of `MiniTLDR`'s posts; the formula is `tldr_score`'s.

    Needs the columns ``person``, ``deed``, ``result`` and ``ask``, and raises ValueError without them.
    """

    def forward(self, completions: Completions) -> Float[Tensor, " B"]:
        return _score(completions, score_summary, "MiniTLDR", ("person", "deed", "result", "ask"))


@final
class MiniSumsGold(Reward):
    """Gold score of solutions to `MiniSums`' stories; the formula is `sums_score`'s.

    Needs the column ``chain``, and raises ValueError without it.
    """

    def forward(self, completions: Completions) -> Float[Tensor, " B"]:
        return _score(completions, score_solution, "MiniSums", ("chain",))


def _score(
    completions: Completions, function: Callable[..., float], task: str, names: tuple[str, ...]
) -> Float[Tensor, " B"]:
    missing = [name for name in names if name not in completions.columns]
    if missing:
        raise ValueError(f"the gold reward of {task} needs the column {missing[0]!r}: score rows that {task} made")
    rows = zip(*(completions.columns[name] for name in names), completions.completions, strict=True)
    return torch.tensor([function(*row) for row in rows], device=completions.sequences.tokens.device)
